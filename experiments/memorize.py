"""How much of its training text a model repeats: measured on samples, and by its loss."""

import statistics

import numpy as np
import torch

from common.dataset import Dataset
from evaluate import mean_loss
from model import GPT

SAMPLES = 10
LENGTH = 1000  # tokens of each sample, fewer if the validation split is shorter


def longest_overlap(text: str, source: str) -> str:
    """The longest substring of text that occurs in source."""
    start, length = 0, 0
    for i in range(len(text)):
        while i + length < len(text) and text[i : i + length + 1] in source:
            start, length = i, length + 1
    return text[start : start + length]


def memorization(model: GPT, dataset: Dataset, dtype: torch.dtype) -> dict:
    """The loss on training and on validation text, and the longest overlaps with the training text.

    Overlaps, in characters, of samples at temperature 0.8 and, to compare with, of as many equally
    long passages of the validation text, which share names and phrases with the training text.
    "longest" is the longest of the samples' overlaps itself.
    """
    decode, device = dataset.tokenizer.decode, model.device
    source, length = decode(dataset.train.tolist()), min(LENGTH, len(dataset.val))
    start = torch.tensor([dataset.tokenizer.start_ids] * SAMPLES, device=device)
    generator = torch.Generator(device).manual_seed(1337)
    model.eval()
    ids = model.generate(start, length, temperature=0.8, generator=generator)[:, start.size(1) :]
    samples = [longest_overlap(decode(sample.tolist()), source) for sample in ids]
    starts = np.linspace(0, len(dataset.val) - length, SAMPLES, dtype=int)
    passages = [decode(dataset.val[i : i + length].tolist()) for i in starts]
    overlaps = [len(longest_overlap(passage, source)) for passage in passages]
    return {
        "train_loss": mean_loss(model, dataset.train, dtype, len(dataset.val)),
        "val_loss": mean_loss(model, dataset.val, dtype),
        "samples": [len(overlap) for overlap in samples],
        "median": statistics.median(len(overlap) for overlap in samples),
        "validation": overlaps,
        "validation_median": statistics.median(overlaps),
        "longest": max(samples, key=len),
    }
