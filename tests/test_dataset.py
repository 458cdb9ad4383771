import numpy as np
import pytest
import torch

from common.dataset import bits_per_byte, windows


def test_windows_are_slices_of_the_tokens():
    tokens = np.arange(100, dtype="<u2") + 65_000
    found = windows(tokens, np.array([0, 7, 96]), 4)
    assert found.dtype == torch.int64
    assert found.tolist() == [tokens[i : i + 4].tolist() for i in (0, 7, 96)]


def test_a_uniform_distribution_over_bytes_costs_eight_bits_per_byte():
    assert bits_per_byte(np.log(256), tokens=10, n_bytes=10) == pytest.approx(8)
    assert bits_per_byte(np.log(256), tokens=10, n_bytes=40) == pytest.approx(2)
