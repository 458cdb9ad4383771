"""Loss, perplexity and bits per byte of a checkpoint, on its validation split or on any text.

python evaluate.py --ckpt out/capstone_best.pt [--text FILE] [--json]
"""

import common.threads  # isort: skip  # noqa: F401 (before torch)
import json
import math
import sys

import numpy as np
import torch

from common import distributed
from common.checkpoint import Checkpoint
from common.cli import Parser, command
from common.dataset import bits_per_byte, load_dataset, windows
from common.device import autocast, pick_device, pick_dtype
from common.errors import UserError
from common.files import read_text
from common.gpt2 import load_model
from common.inputs import is_json, print_notes, split_documents
from common.tokenizer import UnknownCharacters, known_line_ends
from model import GPT, next_token_loss

BATCH_TOKENS = 1 << 14  # tokens per forward pass
BATCH_LOGITS = 1 << 26  # at most this many logits per forward pass (256 MB), or one window's


@torch.no_grad()
def mean_loss(
    model: GPT, tokens: np.ndarray, dtype: torch.dtype, max_tokens: int | None = None
) -> float:
    """Cross-entropy in nats per token; each token but the first is predicted once.

    tokens (N,) is cut from position 0 into windows of block_size; the last one may be shorter. If
    there are more than max_tokens tokens, evenly spaced windows are used. There is no randomness.
    Several processes share the windows: each has to call this, and gets the same loss.
    """
    T, device = model.config.block_size, model.device

    # where the windows start: all of them, or evenly spaced ones
    full, rest = divmod(len(tokens) - 1, T)
    starts = T * np.arange(full)
    if full and max_tokens is not None and len(tokens) - 1 > max_tokens:
        chosen = max(1, min(full, max_tokens // T))
        starts, rest = T * (np.arange(chosen) * full // chosen), 0

    # batches of windows of equal length: (starts, length)
    batch_size = max(1, min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocab_size) // T)
    batches = [(starts[i : i + batch_size], T) for i in range(0, len(starts), batch_size)]
    if rest:
        batches.append((np.array([full * T]), rest))

    # this process's share of the sum
    training = model.training
    model.eval()
    losses, count = [], 0
    for batch_starts, length in batches[distributed.rank() :: distributed.world_size()]:
        ids = windows(tokens, batch_starts, length + 1, model.config.vocab_size).to(device)
        with autocast(device, dtype):
            logits = model(ids[:, :-1])
        losses.append(next_token_loss(logits, ids, reduction="sum"))
        count += len(batch_starts) * length
    model.train(training)

    loss_sum, count = distributed.all_reduce_sum([sum(loss.item() for loss in losses), count])
    return loss_sum / count


def evaluate(path: str, text_path: str | None, device_name: str) -> dict:
    """Measures a checkpoint, or GPT-2, on a text, or on its validation split.

    Returns what --json prints: loss in nats per token, perplexity, bits_per_byte, tokens, bytes and
    what was measured. Raises UserError.
    """
    # the model
    device, _ = pick_device(device_name)
    torch.set_float32_matmul_precision("high")  # as in train.py
    saved = load_model(path)
    model, tokenizer = saved.build(device)
    config = saved.settings()

    # the text
    if text_path:
        name, original = text_path, read_text(text_path)
        text = known_line_ends(original, tokenizer)
        if text != original:
            note = "note: the model does not know \\r: each \\r\\n or \\r counts as one \\n"
            print(note, file=sys.stderr)
        print_notes(text, tokenizer)
        if is_json(text_path):
            print(f"note: {text_path} is measured as it is, not by fields", file=sys.stderr)
        documents = list(filter(None, split_documents(text, tokenizer))) or [""]
        try:
            tokens = tokenizer.encode_documents(documents)
        except UnknownCharacters as error:
            raise UserError(
                f"{text_path} has {error}; remove them, or use a model with byte or BPE tokens"
            ) from None
        n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    elif isinstance(saved, Checkpoint):
        dataset = load_dataset(config.dataset)
        saved.check_data(dataset, path, hint="; use --text FILE")
        name = f"the validation split of {dataset.name}"
        tokens, n_bytes = dataset.val, dataset.meta["val"]["bytes"]
    else:
        raise UserError("GPT-2 comes without a validation split: use --text FILE", status=2)
    if len(tokens) < 2 or not n_bytes:
        raise UserError(f"{name} is too short: a loss needs at least 2 tokens of text")

    # the loss
    dtype, _ = pick_dtype(config.dtype, device)
    loss = mean_loss(model, tokens, dtype)
    if not loss < 700:  # its exponential would overflow; also catches nan
        raise UserError(f"{path} is unusable: its loss on {name} is {loss}")
    step = {"step": saved.step} if isinstance(saved, Checkpoint) else {}
    return {
        "checkpoint": path,
        **step,
        "text": name,
        "tokens": len(tokens),
        "bytes": n_bytes,
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits_per_byte(loss, len(tokens), n_bytes),
    }


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument(
        "--ckpt", default="out/capstone_best.pt", help="checkpoint, or gpt2 (default: %(default)s)"
    )
    parser.add_argument("--text", help="UTF-8 file (default: the validation split of its dataset)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    args = parser.parse_args(argv)
    with distributed.group():
        result = evaluate(args.ckpt, args.text, args.device)
        if args.json:
            print(json.dumps(result))
            return
        step = f" (step {result['step']:,})" if "step" in result else ""
        print(f"{args.ckpt}{step} on {result['text']}")
        print(f"{result['tokens']:,} tokens, {result['bytes']:,} bytes")
        print(
            f"loss {result['loss']:.4f} nats per token | perplexity {result['perplexity']:.3f} |"
            f" {result['bits_per_byte']:.4f} bits per byte"
        )
        print("to compare models with different tokenizers, use bits per byte, not the loss")


if __name__ == "__main__":
    distributed.exit_process(main())
