"""A prepared corpus on disk, data/<dataset>/{train.bin, val.bin, meta.json}: finding, checking and reading it.

The .bin files are plain uint16 token ids. meta.json holds the tokenizer, where the text came from, its sha256,
and for each split the number of tokens, characters and bytes.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import tokenizer as tokenizers
from common.errors import UserError

DATA_DIR = Path("data")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Dataset:
    name: str
    tokenizer: tokenizers.Tokenizer
    meta: dict
    train: np.ndarray  # token ids, uint16, memory-mapped
    val: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A hash of the text, its tokenizer and its split: equal for the same data, wherever it was prepared."""
        identity = [self.meta[key] for key in ("sha256", "tokenizer", *SPLITS)]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def bits_per_byte(self, loss: float) -> float:
        """Loss on the validation split in bits per byte of text, from nats per token."""
        return loss / math.log(2) * self.meta["val"]["tokens"] / self.meta["val"]["bytes"]


def is_prepared(name: str) -> bool:
    """meta.json is written last: a dataset without it was never finished."""
    return (DATA_DIR / name / "meta.json").exists()


def load_dataset(name: str) -> Dataset:
    """Opens data/<name> and checks that its files belong together. Raises UserError."""
    folder = DATA_DIR / name
    again = f"prepare it again: python prepare.py {name} (with --input, if it was made of your own text)"
    if not is_prepared(name):
        raise UserError(f"there is no prepared dataset in {folder}: python prepare.py {name}")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = tokenizers.from_dict(meta["tokenizer"])
        counts = [
            meta[split][unit] for split in SPLITS for unit in ("tokens", "characters", "bytes")
        ]
        if not all(type(count) is int and 0 < count < 2**63 for count in counts) or not isinstance(
            meta["sha256"], str
        ):
            raise ValueError("its counts are wrong")
        if min(meta[split]["tokens"] for split in SPLITS) < 2:
            raise ValueError("a split has a single token")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'meta.json'} is damaged ({error}); {again}") from None
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        if not path.exists() or path.stat().st_size != 2 * meta[split]["tokens"]:
            raise UserError(
                f"{path} does not have the {meta[split]['tokens']:,} tokens of meta.json; {again}"
            )
        splits[split] = np.memmap(path, dtype="<u2", mode="r")
        if (largest := splits[split].max()) >= tokenizer.vocab_size:
            raise UserError(
                f"{path} has the id {largest}, past the vocabulary of {tokenizer.vocab_size}; {again}"
            )
    return Dataset(name, tokenizer, meta, **splits)
