from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import UserError
from train import Batches

ORDERS = ("shuffled", "random")


def token_range(count):
    """Tokens that are equal to their positions."""
    return np.arange(count, dtype=np.uint16)


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_has_contiguous_windows(tiny, order):
    batch = Batches(token_range(1000), tiny(batch_order=order))(7)
    assert batch.shape == (4, 33)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(33))


@pytest.mark.parametrize("order", ORDERS)
def test_batches_depend_on_seed_and_step_only(tiny, order):
    tokens, config = token_range(1000), tiny(batch_order=order)
    batch = Batches(tokens, config)(7)
    later = Batches(tokens, config)
    later(3)
    assert torch.equal(batch, later(7))
    assert not torch.equal(batch, later(8))
    assert not torch.equal(batch, Batches(tokens, replace(config, seed=2))(7))


def test_each_shuffled_epoch_uses_every_window_once_at_a_new_offset(tiny):
    batches = Batches(token_range(1001), tiny(batch_size=5))
    assert batches.windows_per_epoch == 30
    starts = np.concatenate([batches.starts(step) for step in range(18)])
    epochs = [np.sort(epoch) for epoch in np.split(starts, 3)]
    for epoch in epochs:
        assert np.array_equal(np.diff(epoch), np.full(29, 32))
        assert epoch[0] >= 0
        assert epoch[-1] + 33 <= 1001
    assert len({int(epoch[0]) for epoch in epochs}) > 1


def test_a_batch_can_span_two_epochs(tiny):
    batches = Batches(token_range(161), tiny(batch_size=6))
    assert batches.windows_per_epoch == 4
    starts = np.concatenate([batches.starts(0), batches.starts(1)])
    for epoch in np.split(starts, 3):
        assert len(set(epoch.tolist())) == 4


@pytest.mark.parametrize("n_tokens", [33, 34, 64, 65, 97])
@pytest.mark.parametrize("order", ORDERS)
def test_every_token_of_a_short_text_is_used(tiny, order, n_tokens):
    batches = Batches(token_range(n_tokens), tiny(batch_order=order))
    seen = torch.cat([batches(step) for step in range(200)])
    assert seen.unique().tolist() == list(range(n_tokens))


@pytest.mark.parametrize("order", ORDERS)
def test_processes_get_different_parts_of_one_batch(tiny, order, monkeypatch):
    batches = Batches(token_range(1000), tiny(batch_order=order))
    whole = batches(3)
    parts = []
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        parts.append(batches(3))
    assert torch.equal(torch.cat(parts), whole)


def test_a_text_shorter_than_a_window_is_refused(tiny):
    with pytest.raises(UserError, match="32 training tokens, but block_size=32 needs at least 33"):
        Batches(token_range(32), tiny())
    with pytest.raises(UserError, match="needs at least 33: prepare more text$"):
        Batches(token_range(32), tiny(init_from="a.pt"))  # the model determines block_size


def test_the_order_of_the_windows_is_random_and_new_in_each_epoch(tiny):
    batches = Batches(token_range(1001), tiny(batch_size=30))  # an epoch per step
    orders = [np.argsort(batches.starts(step)).tolist() for step in range(2)]
    assert orders[0] != orders[1]
    assert list(range(30)) not in orders
