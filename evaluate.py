"""Loss, perplexity and bits per byte of a checkpoint, on its validation split or on any text.

python evaluate.py --ckpt out/capstone_best.pt [--text FILE] [--json]
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

from common import checkpoint, distributed
from common.arguments import saved_settings
from common.cli import Parser, command
from common.dataset import load_dataset
from common.device import autocast, pick_device, pick_dtype
from common.errors import UserError
from common.files import read_text
from config import make_config
from model import GPT

BATCH_TOKENS = 1 << 14  # that go through the model at once
BATCH_LOGITS = 1 << 26  # and no more logits than this: 256 MB


@torch.no_grad()
def mean_loss(
    model: GPT, tokens: np.ndarray, dtype: torch.dtype, max_tokens: int | None = None
) -> float:
    """Cross-entropy in nats per token, each token but the first predicted once.

    tokens (N,) is cut from position 0 into windows of block_size; the last may be shorter. Where they hold more
    than max_tokens, evenly spaced ones are used. Always the same windows, and no random numbers. Several processes
    share the windows; every one of them has to call this, and gets the same loss.
    """
    T = model.config.block_size
    device = model.token_embedding.weight.device
    batch_size = max(1, min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocab_size) // T)
    full, rest = divmod(len(tokens) - 1, T)
    windows = np.arange(full)
    if full and max_tokens is not None and len(tokens) - 1 > max_tokens:
        count = max(1, min(full, max_tokens // T))
        windows, rest = np.arange(count) * full // count, 0
    batches = [(windows[i : i + batch_size], T) for i in range(0, len(windows), batch_size)]
    if rest:
        batches.append((np.array([full]), rest))
    training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for starts, length in batches[distributed.rank() :: distributed.world_size()]:
        ids = torch.from_numpy(
            tokens[starts[:, None] * T + np.arange(length + 1)].astype(np.int64)
        ).to(device)
        with autocast(device, dtype):
            logits = model(ids[:, :-1])
        total += F.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        ).cpu()
        count += ids[:, 1:].numel()
    model.train(training)
    total, count = distributed.total([total.item(), count])
    return total / count


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt", default="out/capstone_best.pt", help="checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--text",
        help="UTF-8 file to evaluate on (default: the validation split it was trained beside)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    args = parser.parse_args(argv)

    device, _ = pick_device(args.device)
    state = checkpoint.load(args.ckpt)
    model, tokenizer = checkpoint.build(state, device)
    config = make_config(saved_settings(state))
    if args.text:
        text = read_text(args.text)
        try:
            tokens, n_bytes, name = tokenizer.encode(text), len(text.encode("utf-8")), args.text
        except ValueError as error:
            raise UserError(f"{args.text} has {error}") from None
    else:
        dataset = load_dataset(config.dataset)
        if dataset.fingerprint != state["dataset_fingerprint"]:
            raise UserError(
                f"data/{dataset.name} is not the text that {args.ckpt} was trained on; use --text FILE"
            )
        tokens, n_bytes, name = (
            dataset.val,
            dataset.meta["val"]["bytes"],
            f"validation split of {dataset.name}",
        )
    if len(tokens) < 2:
        raise UserError(f"{name} is too short: a loss needs at least 2 tokens")

    dtype, _ = pick_dtype(config.dtype, device)
    loss = mean_loss(model, tokens, dtype)
    if not loss < 700:  # nan too: its exponential would be no number
        raise UserError(f"{args.ckpt} is of no use: its loss on {name} is {loss}")
    result = {
        "checkpoint": args.ckpt,
        "step": state["step"],
        "text": name,
        "tokens": len(tokens),
        "bytes": n_bytes,
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) * len(tokens) / n_bytes,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{args.ckpt}, step {state['step']:,}, on {name}: {len(tokens):,} tokens, {n_bytes:,} bytes"
        )
        print(
            f"loss {loss:.4f} nats per token | perplexity {result['perplexity']:.3f} | {result['bits_per_byte']:.4f} bits per byte"
        )


if __name__ == "__main__":
    raise SystemExit(main())
