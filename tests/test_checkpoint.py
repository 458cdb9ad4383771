import os
import pickle
import zipfile

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from model import GPT, GPTConfig


@pytest.fixture
def state():
    config = {
        "vocab_size": 5,
        "block_size": 8,
        "n_layers": 1,
        "n_heads": 1,
        "d_model": 8,
        "batch_size": 2,
    }
    model = GPT(GPTConfig(**{k: v for k, v in config.items() if k != "batch_size"}))
    return {
        "model": model.state_dict(), "raw_model": {}, "optimizers": [], "scaler": {}, "config": config, "step": 3,
        "best_step": 2, "best_val_loss": 1.5,
        "tokenizer": {"kind": "char", "characters": "abcde"}, "dataset_fingerprint": "f", "run_id": "r",
    }  # fmt: skip


def test_what_is_saved_is_loaded(state, tmp_path):
    path = tmp_path / "new folder" / "ä b.pt"
    checkpoint.save(path, state)
    assert [p.name for p in path.parent.iterdir()] == ["ä b.pt"]  # no temporary file remains
    loaded = checkpoint.load(path)
    assert loaded["step"] == 3 and loaded["config"] == state["config"]
    model, tokenizer = checkpoint.build(loaded, torch.device("cpu"))
    assert all(
        torch.equal(tensor, state["model"][name]) for name, tensor in model.state_dict().items()
    )
    assert tokenizer.decode([4, 0]) == "ea" and not model.training


def test_a_save_that_fails_leaves_the_old_checkpoint(state, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, state)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(path, state | {"step": 4})
    assert checkpoint.load(path)["step"] == 3 and [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_an_altered_byte_is_noticed(state, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, state)
    whole = path.read_bytes()
    weight = whole.index(state["model"]["head.weight"].numpy().tobytes())
    path.write_bytes(whole[: weight + 8] + bytes([whole[weight + 8] ^ 1]) + whole[weight + 9 :])
    assert "model" in torch.load(path, weights_only=True)  # torch itself does not see it
    with pytest.raises(UserError, match="a.pt is no checkpoint, or was cut short or altered"):
        checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_the_other_offered(state, tmp_path, length):
    checkpoint.save(tmp_path / "run_best.pt", state)
    whole = (tmp_path / "run_best.pt").read_bytes()
    (tmp_path / "run_last.pt").write_bytes(
        whole[: int(length * len(whole)) if isinstance(length, float) else length]
    )
    with pytest.raises(UserError, match="run_last.pt is no checkpoint.*run_best.pt") as error:
        checkpoint.load(tmp_path / "run_last.pt")
    assert "\n" not in str(error.value)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_loading_executes_nothing(folder):
    torch.save({"model": Malicious()}, "evil.pt")
    with open("evil.pickle", "wb") as file:
        pickle.dump(Malicious(), file)
    for name in ("evil.pt", "evil.pickle"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(name)
    assert not os.path.exists("executed")
    torch.load("evil.pt", weights_only=False)
    assert os.path.exists("executed")  # so the file was indeed dangerous


def test_what_is_not_ours_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("hello", "there")
    (tmp_path / "text.pt").write_text("To be, or not to be")
    for name in ("other.pt", "archive.pt", "text.pt", "missing.pt"):
        with pytest.raises(UserError, match=name) as error:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"config": {"n_layers": 1}},
        {"config": {"vocab_size": 5, "n_layers": "two"}},
        {"tokenizer": {"kind": "words"}},
    ],
)
def test_contents_that_fit_nothing_are_refused(state, change):
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.build(state | change, torch.device("cpu"))
