import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
from evaluate import mean_loss
from model import GPT, GPTConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=50, block_size=8, n_layers=1, n_heads=1, d_model=16, dropout=0.5)
    )
    with torch.no_grad():
        model.head.weight.normal_()  # predictions that differ from token to token
    return model


def losses(model, tokens, starts, length=8):
    """The naive way: each window by itself."""
    found = []
    for start in starts:
        ids = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
        found += F.cross_entropy(
            model.eval()(ids[None, :-1])[0], ids[1:], reduction="none"
        ).tolist()
    return found


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 41, 77])
def test_every_token_but_the_first_is_predicted_once(model, n_tokens, monkeypatch):
    tokens = np.random.default_rng(0).integers(50, size=n_tokens, dtype=np.uint16)
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", 3 * 8)
    expected = losses(model, tokens, range(0, n_tokens - 1, 8))
    assert len(expected) == n_tokens - 1
    assert mean_loss(model, tokens, torch.float32) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_limit_takes_evenly_spaced_windows_always_the_same(model):
    tokens = np.random.default_rng(0).integers(50, size=161, dtype=np.uint16)
    expected = losses(model, tokens, [0, 40, 80, 120])
    model.train()
    for _ in range(2):  # dropout is off meanwhile, whatever the mode
        assert mean_loss(model, tokens, torch.float32, max_tokens=32) == pytest.approx(
            np.mean(expected), rel=1e-5
        )
    assert model.training
    assert mean_loss(model, tokens, torch.float32, max_tokens=160) == mean_loss(
        model, tokens, torch.float32
    )
