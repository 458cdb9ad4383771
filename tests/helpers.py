"""What several tests use."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.metrics import read_metrics
from train import Run

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
    "eval_interval": 6,
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


# processes


def start(*command, **options) -> subprocess.Popen:
    """Starts one of the project's commands: start("train.py", "some.py", ...)."""
    return start_python(str(ROOT / command[0]), *command[1:], **options)


def start_python(*arguments, **options) -> subprocess.Popen:
    """Starts Python with one thread and with pipes for its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=environment, **(pipes | options))


def run(*command) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one of the project's commands."""
    process = start(*command)
    output, error = process.communicate(timeout=300)
    return process.returncode, output, error


def wait_for_line(process: subprocess.Popen, words: str) -> None:
    """Reads the output of a process up to a line with these words."""
    assert any(words in line for line in process.stdout), process.stderr.read()


# runs


def shorten_endings(monkeypatch) -> None:
    """Makes runs draw no curves and write short samples: these take most of a tiny run's time."""
    sample = Run.sample
    monkeypatch.setattr("train.draw", lambda runs, out: None)
    monkeypatch.setattr(Run, "sample", lambda run, length: sample(run, min(length, 50)))


def before_update(monkeypatch, action: Callable[[Run, int], None]) -> None:
    """Calls action(run, step) before every optimizer step."""
    update = Run.update

    def wrapper(run, step):
        action(run, step)
        return update(run, step)

    monkeypatch.setattr(Run, "update", wrapper)


def stop_at(monkeypatch, step: int) -> None:
    """Sends SIGTERM to the training process when this step begins."""

    def action(_, current):
        if current == step:
            signal.raise_signal(signal.SIGTERM)

    before_update(monkeypatch, action)


def timeless(path) -> list[dict]:
    """The rows of a metrics file without the times, which differ from run to run."""
    rows = read_metrics(path)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def trained_steps(path) -> list[int]:
    """The optimizer steps that a metrics file has a row of."""
    return [row["step"] for row in read_metrics(path) if "train/loss" in row]


def weights(path) -> dict:
    return checkpoint.load(path).model


def same(a: dict, b: dict) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler"
)

# files


def contents(folder: Path) -> dict:
    """Everything in a folder: the bytes of each file, and None for each subfolder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def error_line(capsys) -> str:
    """What a command wrote to standard error, which has to be a single line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text
