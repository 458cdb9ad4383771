import os
import pickle
import resource
import zipfile
from dataclasses import asdict, replace

import pytest
import torch
from helpers import same

from common import checkpoint
from common.checkpoint import Checkpoint
from common.errors import UserError
from config import Config
from model import GPT

CPU = torch.device("cpu")


@pytest.fixture
def saved():
    """A checkpoint of a small model."""
    config = Config(vocab_size=5, block_size=8, n_layers=2, n_heads=2, d_model=8, batch_size=2)
    torch.manual_seed(0)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2)
    return Checkpoint(
        model=model.state_dict(),
        config=asdict(config),
        tokenizer={"kind": "char", "characters": "abcde"},
        raw_model={},
        optimizers=[],
        scaler={},
        step=3,
        best_step=2,
        patience_start=2,
        best_val_loss=1.5,
        dataset_fingerprint="fingerprint",
        run_id="id",
    )


def load_error(path) -> str:
    """The message with which a file is refused: a single line."""
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    message = str(error.value)
    assert "\n" not in message
    return message


# save and load


def test_a_loaded_checkpoint_equals_the_saved_one(saved, tmp_path):
    path = tmp_path / "new folder" / "ä b.pt"
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert os.listdir(path.parent) == ["ä b.pt"]
    assert same(loaded.model, saved.model)
    assert replace(loaded, model={}) == replace(saved, model={})


def test_a_loaded_model_can_be_built_with_its_tokenizer(saved, tmp_path):
    checkpoint.save(tmp_path / "a.pt", saved)
    model, tokenizer = checkpoint.load(tmp_path / "a.pt").build(CPU)
    assert same(model.state_dict(), saved.model)
    assert not model.training
    assert tokenizer.decode([4, 0]) == "ea"


def test_settings_are_those_of_the_run_without_unknown_ones(saved):
    saved.config["removed_setting"] = 5
    config = saved.settings()
    assert config.batch_size == 2
    assert config.vocab_size == 5


def test_a_save_that_fails_leaves_the_old_checkpoint(saved, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, saved)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*previous file is unchanged"):
        checkpoint.save(path, replace(saved, step=4))
    assert checkpoint.load(path).step == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_disk_that_refuses_what_torch_writes_leaves_the_old_checkpoint(saved, tmp_path):
    path, (soft, hard) = tmp_path / "a.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save(path, saved)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="File too large.*previous file is unchanged"):
            checkpoint.save(path, replace(saved, step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path).step == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_peek_reads_the_values_of_a_checkpoint(saved, tmp_path):
    checkpoint.save(tmp_path / "a.pt", saved)
    state = checkpoint.peek(tmp_path / "a.pt")
    assert state.run_id == "id"
    assert state.step == 3


@pytest.mark.parametrize("content", [b"", b"To be, or not to be", pickle.dumps({"run_id": "id"})])
def test_peek_finds_nothing_in_another_file(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    assert checkpoint.peek(tmp_path / "a.pt") is None
    assert checkpoint.peek(tmp_path / "missing.pt") is None


# files that can't be trusted


def test_a_changed_byte_is_detected(saved, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, saved)
    content = bytearray(path.read_bytes())
    weight = content.index(saved.model["head.weight"].numpy().tobytes())
    content[weight + 8] ^= 1
    path.write_bytes(content)
    assert "model" in torch.load(path, weights_only=True)  # PyTorch itself does not notice
    assert "a.pt is not a checkpoint, or is truncated or corrupted" in load_error(path)


@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_another_one_suggested(saved, tmp_path, fraction):
    checkpoint.save(tmp_path / "run_best.pt", saved)
    content = (tmp_path / "run_best.pt").read_bytes()
    (tmp_path / "run_last.pt").write_bytes(content[: int(fraction * len(content))])
    message = load_error(tmp_path / "run_last.pt")
    assert "run_last.pt is not a checkpoint, or is truncated" in message
    assert f"there is also {tmp_path / 'run_best.pt'}" in message


def test_a_missing_checkpoint_is_refused_and_another_one_suggested(saved, tmp_path):
    assert "train.py makes one" in load_error(tmp_path / "run_last.pt")
    checkpoint.save(tmp_path / "run_best.pt", saved)
    assert f"the folder has {tmp_path / 'run_best.pt'}" in load_error(tmp_path / "run_last.pt")
    for number in range(20):
        (tmp_path / f"other_{number}_last.pt").touch()
    message = load_error(tmp_path / "run_last.pt")
    assert f"the folder has {tmp_path / 'run_best.pt'}" in message and message.count(".pt") == 6


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["evil.pt", "evil.pickle"])
def test_loading_runs_no_code(folder, name):
    torch.save({"model": Malicious()}, "evil.pt")
    with open("evil.pickle", "wb") as file:
        pickle.dump(Malicious(), file)
    assert name in load_error(name)
    assert checkpoint.peek(name) is None
    assert not os.path.exists("executed")


def test_the_malicious_checkpoint_really_contains_code(folder):
    torch.save({"model": Malicious()}, "evil.pt")
    torch.load("evil.pt", weights_only=False)
    assert os.path.exists("executed")


def test_other_archives_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("hello", "there")
    assert "other.pt is not a checkpoint of train.py" in load_error(tmp_path / "other.pt")
    assert "archive.pt is not a checkpoint" in load_error(tmp_path / "archive.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"config": {"n_layers": 1}},
        {"config": {"vocab_size": 5, "n_layers": "two"}},
        {"tokenizer": {"kind": "words"}},
        {"tokenizer": {"kind": "char", "characters": "abc"}},
    ],
)
def test_contents_of_another_version_are_refused(saved, change):
    with pytest.raises(UserError, match="fit this version: ") as error:
        replace(saved, **change).build(CPU)
    assert "\n" not in str(error.value)
