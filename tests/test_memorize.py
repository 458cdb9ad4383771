import numpy as np
import torch

from common.dataset import load_dataset
from experiments import memorize
from experiments.memorize import longest_overlap, memorization
from model import GPT, GPTConfig


def test_longest_overlap_is_the_longest_common_part():
    assert longest_overlap("xx to be or not", "she said: to be or so") == " to be or "
    assert longest_overlap("abcabd", "zabd abc") == "abc"  # the first of equally long ones
    assert longest_overlap("abc", "xyz") == ""
    assert longest_overlap("abc", "abcd") == "abc"


def test_a_model_that_repeats_its_text_is_seen(dataset, monkeypatch):
    monkeypatch.setattr(memorize, "LENGTH", 60)
    data = load_dataset("verses_char")
    model = GPT(
        GPTConfig(vocab_size=data.tokenizer.vocab_size, block_size=64, n_heads=1, d_model=6)
    )
    passage = torch.from_numpy(data.train[100:160].astype(np.int64))
    monkeypatch.setattr(
        model,
        "generate",
        lambda start, n, **_: torch.cat((start, passage.repeat(len(start), 1)), 1),
    )
    measured = memorization(model, data, torch.float32)
    assert measured["samples"] == [60] * memorize.SAMPLES
    assert measured["longest"] == data.tokenizer.decode(passage.tolist())
    assert 0 < measured["validation_median"] <= 60
    assert measured["train_loss"] > 1
