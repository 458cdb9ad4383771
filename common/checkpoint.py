"""Checkpoints: what is in them, and how they are saved and loaded safely.

A checkpoint file is the dict of a Checkpoint's fields: tensors and plain values only, nothing that
could run code when it is loaded.
"""

import difflib
import math
import pickle
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from common.dataset import Dataset
from common.errors import UserError, one_line
from common.files import data_dir, write_atomically
from common.tokenizer import Tokenizer, from_dict
from config import SETTINGS, Config, make_config
from model import GPT


@dataclass
class SavedModel:
    """What sampling, evaluation and fine-tuning need. GPT-2's weights come with nothing else."""

    model: dict  # weights by name, float32; their moving average if the run keeps one
    config: dict  # every setting of the run; for GPT-2, its architecture
    tokenizer: dict  # from Tokenizer.to_dict()

    def settings(self) -> Config:
        """The settings of the run. Raises UserError if they don't fit this version of the code."""
        known = {name: value for name, value in self.config.items() if name in SETTINGS}
        try:
            return replace(make_config(known), vocab_size=self.config["vocab_size"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"the checkpoint's settings don't fit this version: {error}") from None

    def build(self, device: torch.device) -> tuple[GPT, Tokenizer]:
        """The model, ready for evaluation, and its tokenizer. Raises UserError."""
        config = self.settings()
        try:
            model = GPT(config)
            model.load_state_dict(self.model)
            tokenizer = from_dict(self.tokenizer)
            if tokenizer.vocab_size != config.vocab_size:
                raise ValueError(
                    f"a tokenizer with {tokenizer.vocab_size} tokens,"
                    f" a model with {config.vocab_size}"
                )
        except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            reason = one_line(error)
            raise UserError(f"the checkpoint doesn't fit this version: {reason}") from None
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise UserError("the checkpoint is unusable: its run diverged (its weights are nan)")
        return model.to(device).eval(), tokenizer


@dataclass
class Checkpoint(SavedModel):
    """The whole state of a run."""

    raw_model: dict  # the weights being trained if `model` is their moving average, else empty
    optimizers: list  # their state_dicts
    scaler: dict  # float16's loss scale; empty for other dtypes
    step: int  # updates made
    best_step: int  # the step of best_val_loss
    best_val_loss: float  # in nats per token; infinite until trained weights are evaluated
    patience_start: int  # the step after which config.patience counts evaluations
    dataset_fingerprint: str
    run_id: str

    def check_data(self, dataset: Dataset, path: str | Path, hint: str = "") -> None:
        """Raises UserError if the run of this checkpoint, in `path`, was trained on other data."""
        if self.dataset_fingerprint != dataset.fingerprint:
            folder = data_dir() / dataset.name
            raise UserError(f"{folder} is not the data that {path} was trained on{hint}")


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; if that fails, the previous file is unchanged. Raises UserError."""
    try:
        write_atomically(path, lambda file: torch.save(vars(checkpoint), file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        causes = [cause for cause in (error, error.__context__) if isinstance(cause, OSError)]
        reason = (causes[0].strerror if causes else None) or one_line(error)
        raise UserError(f"can't save {path} ({reason}); the previous file is unchanged") from None


def similar(path: Path) -> list[str]:
    """The five checkpoints in the same folder whose names are most similar, the nearest first."""
    names = [other.name for other in path.parent.glob("*.pt") if other != path]
    nearest = difflib.get_close_matches(path.name, sorted(names), n=5, cutoff=0)
    return [str(path.parent / name) for name in nearest]


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU, after verifying its checksums. Raises UserError."""
    path = Path(path)
    if not path.is_file():
        others = similar(path)
        hint = f"the folder has {', '.join(others)}" if others else "train.py makes one"
        raise UserError(f"checkpoint {path} not found; {hint}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not verify checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except Exception as error:  # a foreign or damaged file can fail in many ways
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it contains code" if pickled else type(error).__name__
        others = similar(path)
        hint = f"; there is also {', '.join(others)}" if others else ""
        raise UserError(
            f"{path} is not a checkpoint, or is truncated or corrupted ({reason}){hint}"
        ) from None
    found = from_state(state)
    if not found or found.step < 0 or math.isnan(found.best_val_loss):
        raise UserError(f"{path} is not a checkpoint of train.py")
    return found


def peek(path: Path) -> Checkpoint | None:
    """A checkpoint, read quickly, without verifying it; None if there is none."""
    try:
        return from_state(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # no file, or a foreign or damaged one, which can fail in many ways
        return None


def from_state(state: object) -> Checkpoint | None:
    """The Checkpoint whose vars() are in a file; None if it has something else."""
    types = {field.name: field.type for field in fields(Checkpoint)}
    if isinstance(state, dict) and all(isinstance(state.get(name), types[name]) for name in types):
        return Checkpoint(**{name: state[name] for name in types})
    return None
