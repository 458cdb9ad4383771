"""Saving and loading a run's state, safely.

A checkpoint is a dict of tensors and plain values, nothing that could run code when it is loaded:

    model            the weights by name, uncompiled, float32; their average over the steps, where the run keeps one
    raw_model        the weights that go on learning, beside such an average; empty without one
    optimizers       their state_dicts
    config           every setting of the run
    tokenizer        what turns its ids into text
    scaler           float16's loss scale; empty without it
    step, best_step, best_val_loss, dataset_fingerprint, run_id
"""

import os
import pickle
import zipfile
from dataclasses import fields
from pathlib import Path

import torch

import tokenizer as tokenizers
from cli import UserError
from model import GPT, GPTConfig

TYPES = {
    "model": dict, "raw_model": dict, "optimizers": list, "scaler": dict, "config": dict, "tokenizer": dict,
    "step": int, "best_step": int, "best_val_loss": float, "dataset_fingerprint": str, "run_id": str,
}  # fmt: skip


def write_atomically(path: Path, write) -> None:
    """Calls write(file) on a temporary file beside path, and renames it once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def save(path: Path, state: dict) -> None:
    """Writes a checkpoint; whatever happens, `path` holds the old one or the new one, whole. Raises UserError."""
    assert state.keys() == TYPES.keys(), state.keys() ^ TYPES.keys()
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = next((e.strerror for e in (error, error.__context__) if isinstance(e, OSError)), None) or error
        raise UserError(
            f"can't save {path} ({str(reason).splitlines()[0]}); what was there before is still there"
        ) from None


def load(path: str | Path) -> dict:
    """Reads a checkpoint onto the CPU, after checking it byte by byte. Executes nothing of it. Raises UserError."""
    path = Path(path)
    if not path.is_file():
        others = sorted(str(other) for other in path.parent.glob("*.pt"))
        hint = f"there is {', '.join(others)}" if others else "python train.py makes one"
        raise UserError(f"there is no checkpoint {path}; {hint}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not check the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file can fail in any way
        reason = "it holds more than data" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        others = sorted(str(other) for other in path.parent.glob("*.pt") if other != path)
        hint = f"; there is also {', '.join(others)}" if others else ""
        raise UserError(f"{path} is no checkpoint, or was cut short or altered ({reason}){hint}") from None
    typed = isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in TYPES.items())
    if not typed or state["step"] < 0:
        raise UserError(f"{path} is not a checkpoint of train.py")
    return state


def run_id(path: Path) -> str | None:
    """Which run a checkpoint is of; None where the file is no checkpoint."""
    try:
        return load(path)["run_id"]
    except UserError:
        return None


def build(state: dict, device: torch.device) -> tuple[GPT, tokenizers.Tokenizer]:
    """The model of a checkpoint, ready for evaluation, and its tokenizer."""
    names = {field.name for field in fields(GPTConfig)}
    try:
        model = GPT(GPTConfig(**{name: value for name, value in state["config"].items() if name in names}))
        model.load_state_dict(state["model"])
        tokenizer = tokenizers.from_dict(state["tokenizer"])
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(f"a tokenizer of {tokenizer.vocab_size} tokens for {model.config.vocab_size}")
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise UserError(f"the checkpoint does not fit this version of model.py: {str(error).splitlines()[0]}") from None
    return model.to(device).eval(), tokenizer
