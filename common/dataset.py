"""A prepared dataset on disk: data/<dataset>/{train.bin, val.bin, meta.json}.

The .bin files are plain uint16 token ids. meta.json has the tokenizer, where the text came from,
its sha256, and for each split the number of tokens, characters and bytes.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.cli import command_for, quote
from common.errors import UserError
from common.files import ROOT, data_dir
from common.tokenizer import Tokenizer, from_dict

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val")
CHECKED = 1 << 16  # ids of each split that load_dataset checks
UNITS = ("tokens", "characters", "bytes")


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: its tokenizer, the content of meta.json, and the ids of both splits."""

    name: str
    tokenizer: Tokenizer
    meta: dict
    train: np.ndarray  # token ids, uint16, memory-mapped
    val: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A hash of the text, its tokenizer and its split: equal for equal data."""
        identity = [self.meta[key] for key in ("sha256", "tokenizer", *SPLITS)]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def bits_per_byte(self, loss: float) -> float:
        """A loss on the validation split, in nats per token, as bits per byte."""
        val = self.meta["val"]
        return bits_per_byte(loss, val["tokens"], val["bytes"])


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """Converts a loss in nats per token; n_bytes: the length of the tokens' text in UTF-8."""
    return loss / math.log(2) * tokens / n_bytes


def windows(
    tokens: np.ndarray, starts: np.ndarray, length: int, vocab_size: int | None = None
) -> "torch.Tensor":
    """The windows of a token array that begin at `starts`: (len(starts), length), int64.

    Raises UserError if vocab_size is given and an id is not below it.
    """
    import torch  # here, because prepare.py needs this module but not torch

    ids = tokens[starts[:, None] + np.arange(length)]
    if vocab_size and (largest := ids.max(initial=0)) >= vocab_size:
        path = getattr(tokens, "filename", "the text")
        raise UserError(
            f"{path} has the id {largest}, but the vocabulary has only {vocab_size} tokens:"
            " prepare the dataset again"
        )
    return torch.from_numpy(ids.astype(np.int64))


def is_prepared(name: str) -> bool:
    """Whether data/<name> is complete: meta.json is written last."""
    return (data_dir() / name / "meta.json").exists()


def load_dataset(name: str) -> Dataset:
    """Opens data/<name> and checks that its files belong together. Raises UserError."""
    folder = data_dir() / name
    corpus, _, _ = name.rpartition("_")
    ours = (ROOT / "data" / f"{corpus}.py").exists()
    command = f"{command_for('prepare.py')} {quote(name)}" + ("" if ours else " --input FILE")
    again = f"prepare it again: {command}"
    if not is_prepared(name):
        raise UserError(f"no prepared dataset in {folder}; run: {command}")

    # meta.json
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = from_dict(meta["tokenizer"])
        counts = [meta[split][unit] for split in SPLITS for unit in UNITS]
        if not all(type(count) is int and 0 < count < 2**63 for count in counts):
            raise ValueError("its counts are wrong")
        if not isinstance(meta["sha256"], str):
            raise ValueError("its sha256 is wrong")
        if min(meta[split]["tokens"] for split in SPLITS) < 2:
            raise ValueError("a split has a single token")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'meta.json'} is damaged ({error}); {again}") from None

    # the tokens
    splits = {}
    for split in SPLITS:
        path, count = folder / f"{split}.bin", meta[split]["tokens"]
        if not path.exists() or path.stat().st_size != 2 * count:
            raise UserError(f"{path} does not have the {count:,} tokens of meta.json; {again}")
        # checks the first ids only, as the file may be large; `windows` checks those that it uses
        tokens = np.memmap(path, dtype="<u2", mode="r")
        if (largest := tokens[:CHECKED].max()) >= tokenizer.vocab_size:
            raise UserError(
                f"{path} has the id {largest}, but the vocabulary has only {tokenizer.vocab_size}"
                f" tokens; {again}"
            )
        splits[split] = tokens
    return Dataset(name, tokenizer, meta, **splits)
