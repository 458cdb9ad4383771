import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, shorten_endings, verses

from common import gpt2_bpe
from common.errors import UserError
from config import Config
from prepare import prepare
from train import train

os.environ["CAPSTONE_DATA"] = "data"  # datasets are in the current folder of each test
torch.set_num_threads(1)  # the models here are so small that threads would only wait


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often test_kill.py kills a run")
    parser.addoption("--kill_seed", type=int, help="repeats the kills of an earlier test_kill.py")
    parser.addoption("--memory_steps", type=int, default=160, help="steps in test_memory.py")


@pytest.fixture(autouse=True)
def short_endings(request, monkeypatch):
    """Runs draw no curves and write short samples, which take most of the time of a tiny run.

    Not in tests marked whole_endings, nor in other processes.
    """
    if "whole_endings" not in request.keywords:
        shorten_endings(monkeypatch)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


@pytest.fixture
def bpe(folder, monkeypatch):
    """The current folder, with the files of GPT-2's BPE from the project's own downloads."""
    try:
        (folder / "data").mkdir(exist_ok=True)
        with monkeypatch.context() as project:
            project.setenv("CAPSTONE_DATA", str(ROOT / "data"))
            downloads = gpt2_bpe.fetch().parent
        (folder / "data" / "downloads").symlink_to(downloads)
    except UserError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture
def empty_config(folder):
    """The path of a config file that sets nothing, in the current folder."""
    Path("empty.py").write_text("")
    return "empty.py"


@pytest.fixture
def dataset(folder):
    """The current folder, with a prepared data/verses_char."""
    Path("verses.txt").write_text(verses(400))
    prepare("verses_char", ["verses.txt"])
    return folder


@pytest.fixture
def noise(folder):
    """Settings of a run on a short random text, which a model can only memorize."""
    Path("noise.txt").write_text("".join(random.Random(0).choices("abcdefgh", k=400)))
    prepare("noise_char", ["noise.txt"])
    return {
        "dataset": "noise_char",
        "block_size": 16,
        "eval_interval": 10,
        "learning_rate": 3e-2,  # overfits after 10 steps
    }


@pytest.fixture
def tiny():
    """tiny(**changes): a Config that trains in a second."""

    def make(**changes):
        return Config(**(TINY | changes))

    return make


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder with a text, its dataset, a config file and a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("verses.txt").write_text(verses(400))
        settings = "".join(f"{name} = {value!r}\n" for name, value in TINY.items())
        Path("tiny.py").write_text(settings)
        prepare("verses_char", ["verses.txt"])
        train(Config(**TINY))
    return folder


@pytest.fixture
def finished_run(template, folder):
    """The current folder, as a copy of `template`: with a finished run "tiny"."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder
