import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.dataset import bits_per_byte, load_dataset, windows
from common.errors import UserError
from prepare import prepare


def test_windows_are_slices_of_the_tokens():
    tokens = np.arange(100, dtype="<u2") + 65_000
    found = windows(tokens, np.array([0, 7, 96]), 4, 1 << 16)
    assert found.dtype == torch.int64
    assert found.tolist() == [tokens[i : i + 4].tolist() for i in (0, 7, 96)]


def test_windows_with_an_id_outside_the_vocabulary_are_refused():
    tokens = np.array([0, 1, 2, 3, 65, 4, 5], dtype="<u2")
    assert windows(tokens, np.array([0]), 4, 65).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match="has the id 65, but the vocabulary has only 65"):
        windows(tokens, np.array([0]), 5, 65)


def test_loading_a_dataset_reads_only_its_beginning(dataset):
    path = Path("data/verses_char")
    meta = json.loads((path / "meta.json").read_text())
    count = 10**11  # 200 GB, of which the file system stores nothing
    with open(path / "train.bin", "r+b") as file:
        file.truncate(2 * count)
    (path / "meta.json").write_text(json.dumps(meta | {"train": meta["train"] | {"tokens": count}}))
    assert len(load_dataset("verses_char").train) == count


def test_a_uniform_distribution_over_bytes_costs_eight_bits_per_byte():
    assert bits_per_byte(np.log(256), tokens=10, n_bytes=10) == pytest.approx(8)
    assert bits_per_byte(np.log(256), tokens=10, n_bytes=40) == pytest.approx(2)


def test_bits_per_byte_of_a_dataset_are_those_of_its_validation_text(folder):
    Path("a.txt").write_text("a" * 90 + "é" * 10, encoding="utf-8")
    prepare("a_char", ["a.txt"])
    assert load_dataset("a_char").bits_per_byte(np.log(2)) == pytest.approx(0.5)
