"""What several tests use."""

import os
import random
import subprocess
import sys
from pathlib import Path

import torch

from common import checkpoint
from common.metrics import read_metrics

ROOT = Path(__file__).parent.parent
TINY = {  # settings of a run that takes a second
    "dataset": "verses_char",
    "run_name": "tiny",
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 32,
    "block_size": 32,
    "batch_size": 4,
    "max_steps": 12,
    "warmup_steps": 2,
    "eval_interval": 4,
    "log_interval": 1,
    "sample_interval": 0,
    "learning_rate": 1e-2,
    "device": "cpu",
    "dtype": "float32",
}


def verses(lines: int, seed: int = 0) -> str:
    """Text with something to learn in it, always the same."""
    rng = random.Random(seed)
    subjects = ["the king", "my lord", "a fool"]
    verbs = ["loves", "doubts", "sees"]
    objects = ["thee", "the sea", "war"]
    choices = (subjects, verbs, objects)
    return "".join(" ".join(map(rng.choice, choices)) + ".\n" for _ in range(lines))


def arguments(**settings) -> list[str]:
    """TINY with these changes, as a command line."""
    return [f"--{name}={value}" for name, value in (TINY | settings).items()]


def start(*command, **options) -> subprocess.Popen:
    """Starts one of the project's commands: start("train.py", "some.py", ...)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *command[1:]], **(pipes | options)
    )


def run(*command) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one of the project's commands."""
    process = start(*command)
    output, error = process.communicate(timeout=300)
    return process.returncode, output, error


def timeless(path) -> list[dict]:
    """The rows of a metrics file without the times, which differ from run to run."""
    rows = read_metrics(path)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def weights(path) -> dict:
    return checkpoint.load(path).model


def same(a: dict, b: dict) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
