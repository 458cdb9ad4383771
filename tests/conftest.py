import random

import pytest
import torch

from config import Config
from prepare import prepare

torch.set_num_threads(1)  # the models here are tiny: threads would only wait for one another


def verses(lines: int, seed: int = 0) -> str:
    """Text with something to learn in it, and always the same."""
    rng = random.Random(seed)
    subjects, verbs, objects = (
        ["the king", "my lord", "a fool"],
        ["loves", "doubts", "sees"],
        ["thee", "the sea", "war"],
    )
    return "".join(f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}.\n" for _ in range(lines))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


@pytest.fixture
def dataset(folder):
    """The current folder, with a prepared data/verses_char."""
    (folder / "verses.txt").write_text(verses(400))
    prepare("verses_char", ["verses.txt"])
    return folder


TINY = {
    "dataset": "verses_char", "run_name": "tiny", "n_layers": 2, "n_heads": 2, "d_model": 32, "block_size": 32,
    "batch_size": 4, "max_steps": 12, "warmup_steps": 2, "eval_interval": 4, "log_interval": 1, "sample_interval": 0,
    "learning_rate": 1e-2, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def tiny():
    """tiny(**changes): a Config that trains in a second."""
    return lambda **changes: Config(**(TINY | changes))


def arguments(**settings) -> list[str]:
    """Settings as a command line."""
    return [f"--{name}={value}" for name, value in (TINY | settings).items()]
