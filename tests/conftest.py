import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import checkpoint, gpt2_bpe
from common.errors import UserError
from common.metrics import read_metrics
from config import Config
from prepare import prepare
from train import train

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # the models here are tiny: threads would only wait for one another


def verses(lines: int, seed: int = 0) -> str:
    """Text with something to learn in it, and always the same."""
    rng = random.Random(seed)
    subjects, verbs, objects = (
        ["the king", "my lord", "a fool"],
        ["loves", "doubts", "sees"],
        ["thee", "the sea", "war"],
    )
    return "".join(
        f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}.\n" for _ in range(lines)
    )


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=3, help="how often tests/test_kill.py kills a run"
    )
    parser.addoption(
        "--memory_steps", type=int, default=400, help="how long tests/test_memory.py trains"
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


@pytest.fixture
def bpe(folder):
    """The current folder, with GPT-2's files, which the tests of tokenizers have fetched into the project's own."""
    try:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "downloads").symlink_to(
            gpt2_bpe.fetch(ROOT / "data" / "downloads").parent
        )
    except UserError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture
def dataset(folder):
    """The current folder, with a prepared data/verses_char."""
    (folder / "verses.txt").write_text(verses(400))
    prepare("verses_char", ["verses.txt"])
    return folder


TINY = {
    "dataset": "verses_char", "run_name": "tiny", "n_layers": 2, "n_heads": 2, "d_model": 32, "block_size": 32,
    "batch_size": 4, "max_steps": 12, "warmup_steps": 2, "eval_interval": 4, "log_interval": 1, "sample_interval": 0,
    "learning_rate": 1e-2, "device": "cpu", "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def tiny():
    """tiny(**changes): a Config that trains in a second."""
    return lambda **changes: Config(**(TINY | changes))


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder with a text, the dataset made of it, a config file and a run that has ended: to be copied."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("verses.txt").write_text(verses(400))
        Path("tiny.py").write_text("".join(f"{name} = {value!r}\n" for name, value in TINY.items()))
        prepare("verses_char", ["verses.txt"])
        train(Config(**TINY))
    return folder


def arguments(**settings) -> list[str]:
    """Settings as a command line."""
    return [f"--{name}={value}" for name, value in (TINY | settings).items()]


def start(*command, **options) -> subprocess.Popen:
    """One of the project's commands in a process of its own: start("train.py", "some.py", ...)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *command[1:]], **(pipes | options)
    )


def run(*command) -> tuple[int, str, str]:
    """Exit status, output and errors of one of the project's commands."""
    process = start(*command)
    output, error = process.communicate(timeout=300)
    return process.returncode, output, error


def timeless(path) -> list[dict]:
    """The rows of a metrics file without what differs from run to run."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in read_metrics(path)
    ]


def weights(path) -> dict:
    return checkpoint.load(path)["model"]


def same(a: dict, b: dict) -> bool:
    """Whether two models have the same weights, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
