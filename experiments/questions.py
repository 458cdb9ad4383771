"""Measurements inside a trained model and on short runs, as evidence for REPORT.md.

python -m experiments.questions out/capstone_best.pt out/python_byte_best.pt     7 minutes, 2 cores

Looks into the first checkpoint, and saves the config, metrics, samples and results of all of them
in <results>/trained/, ahead of those already there. Then trains small models with one part changed.
The measurements go to <results>/questions/measured.json.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import model as model_module
from common import checkpoint
from common.checkpoint import Checkpoint
from common.cli import Parser, command
from common.dataset import load_dataset, windows
from common.device import pick_dtype
from common.errors import UserError
from common.metrics import read_metrics
from config import Config
from evaluate import BATCH_LOGITS, mean_loss
from experiments.ablate import CPU
from experiments.memorize import memorization
from experiments.runs import add_options, machine, markdown, read_json, with_steps, write_json
from model import GPT, count_parameters, next_token_loss
from prepare import prepare_missing
from train import Run

DEVICE = torch.device("cpu")
BASE = replace(CPU, max_steps=300, warmup_steps=25, learning_rate=4e-3, device="cpu")  # short runs
TOO_HIGH = 1.6e-2  # learning rate at which post-norm doesn't learn, from the study "stability"
SEEDS = 3
GRADIENT_STEPS = (0, 10, 20, 40, 80, 150)  # steps at which gradients are measured
WINDOWS = 512  # windows of the validation split, for the loss at each position
FEW_WINDOWS = 64  # for all other measurements inside a model; fewer if their logits are large

# -------------------------------------------------------------------------------------------------
# tools


def attend(
    q, k, v, mask=None, factor: float = 1.0, causal: bool = True, keep: Callable | None = None
):
    """model.attend with scores `factor` times as large, or without the mask.

    q, k, v: (B, H, T, D). keep, if given, is called with the attention weights (B, H, T, T).
    """
    scores = factor / math.sqrt(q.size(-1)) * (q @ k.mT).float()
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    weights = scores.softmax(-1)
    if keep:
        keep(weights)
    return weights.type_as(v) @ v


@contextmanager
def attending(**changes):
    """Replaces model.attend, for all models, by `attend` with these arguments.

    Swapping a global of another module is a hack; here it keeps the model free of experiments.
    """
    before, model_module.attend = model_module.attend, partial(attend, **changes)
    try:
        yield
    finally:
        model_module.attend = before


def training(config: Config) -> Iterator[GPT]:
    """Trains on the CPU. Yields the model before each step and after the last one."""
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    dtype, _ = pick_dtype(config.dtype, DEVICE)
    run = Run(config, dataset, DEVICE, dtype)
    for step in range(config.max_steps):
        yield run.model
        run.update(step)
    yield run.model


def trained(config: Config) -> GPT:
    """The model at the end of a run, ready for evaluation."""
    *_, model = training(config)
    return model.eval()


def spaced_windows(tokens: np.ndarray, length: int, count: int) -> torch.Tensor:
    """`count` windows at equal distances, (count, length + 1). Raises UserError."""
    if len(tokens) <= length:
        raise UserError(f"a split with {len(tokens):,} tokens is too short: {length + 1:,} needed")
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(int)
    return windows(tokens, starts, length + 1)


def loss_on(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss on windows ids (B, T + 1)."""
    return next_token_loss(model(ids[:, :-1]), ids)


def rms(x) -> float:
    return x.float().square().mean().sqrt().item()


def validation_loss(model: GPT, base: Config) -> float:
    """The loss of a short run's model."""
    return mean_loss(model, load_dataset(base.dataset).val, torch.float32, base.eval_tokens)


# -------------------------------------------------------------------------------------------------
# measurements inside a trained model


@torch.no_grad()
def look_into(model: GPT, tokens: np.ndarray) -> dict:
    """All measurements inside a model, on a validation split `tokens`."""
    T, sums = model.config.block_size, torch.zeros(model.config.block_size)
    few = max(1, min(FEW_WINDOWS, BATCH_LOGITS // (T * model.config.vocab_size)))
    for part in spaced_windows(tokens, T, WINDOWS).split(few):
        losses = next_token_loss(model(part[:, :-1]), part, reduction="none")
        sums += losses.view(-1, T).sum(0)
    ids, heads = spaced_windows(tokens, T, few), []
    with attending(keep=lambda weights: heads.append(weights.mean(0))):
        loss = loss_on(model, ids).item()
    with attending(factor=math.sqrt(model.config.head_dim)):
        unscaled = loss_on(model, ids).item()
    return {
        "loss": loss,
        "positions": (sums / WINDOWS).tolist(),
        "heads": by_distance(torch.stack(heads)),
        "loss_unscaled": unscaled,
        "stream": read_stream(model, ids),
        "mask": change_token(model, ids),
    }


def by_distance(heads) -> list:
    """Mean weights (layers, H, T, T) -> mean weight at each distance back (layers, H, T / 2).

    Averages over the second half of the positions, which all have T / 2 tokens before them.
    """
    T = heads.size(-1)
    means = [
        heads.diagonal(-distance, dim1=2, dim2=3)[..., T // 2 - distance :].mean(-1)
        for distance in range(T // 2)
    ]
    return torch.stack(means, dim=-1).tolist()


def read_stream(model: GPT, ids) -> list[dict]:
    """The residual stream after the embedding and after each block.

    Its size, what attention and MLP added, and the loss if the head read the stream there.
    """
    rows, added = [], {}

    def keep_size(name: str, module, inputs, output):
        added[name] = rms(output)

    def read(x):
        loss = next_token_loss(model.head(model.final_norm(x)), ids).item()
        rows.append({"size": rms(x), "loss": loss, **added})
        added.clear()

    hooks = [model.blocks[0].register_forward_pre_hook(lambda block, inputs: read(inputs[0]))]
    for block in model.blocks:
        hooks += [
            block.attn.register_forward_hook(partial(keep_size, "attention")),
            block.mlp.register_forward_hook(partial(keep_size, "mlp")),
            block.register_forward_hook(lambda block, inputs, output: read(output)),
        ]
    model(ids[:, :-1])
    for hook in hooks:
        hook.remove()
    return rows


def change_token(model: GPT, ids) -> dict:
    """How far logits before and from a middle token on move when that token changes."""
    changed, middle = ids[:, :-1].clone(), model.config.block_size // 2
    changed[:, middle] = (changed[:, middle] + 1) % model.config.vocab_size
    moved = (model(changed) - model(ids[:, :-1])).abs()
    return {"before": moved[:, :middle].max().item(), "from": moved[:, middle:].mean().item()}


def scores_by_width() -> list[dict]:
    """Attention scores of random queries and keys whose channels have variance 1.

    Their standard deviation, and the largest softmax weight of 128 keys with and without the
    division by sqrt(D).
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for D in (16, 64, 256, 1024):
        q, k = (torch.randn(1000, count, D, generator=generator) for count in (1, 128))
        scores = (q @ k.mT)[:, 0]
        row = {"head_dim": D, "deviation": scores.std().item()}
        for name, divisor in (("plain", 1.0), ("scaled", math.sqrt(D))):
            row[name] = (scores / divisor).softmax(-1).amax(-1).mean().item()
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------------
# measurements on short runs


def gradients(base: Config) -> dict[str, list]:
    """Gradient norms of each block at some steps, pre- and post-norm, at too high a rate."""
    ids = spaced_windows(load_dataset(base.dataset).train, base.block_size, 16)
    rows = {"pre": [], "post": []}
    for position in rows:
        config = replace(base, norm_position=position, learning_rate=TOO_HIGH)
        for step, model in enumerate(islice(training(config), GRADIENT_STEPS[-1] + 1)):
            if step in GRADIENT_STEPS:
                loss = loss_on(model, ids)
                loss.backward()
                norms = [
                    math.hypot(*(p.grad.norm().item() for p in block.parameters()))
                    for block in model.blocks
                ]
                rows[position].append({"step": step, "loss": loss.item(), "norms": norms})
                model.zero_grad(set_to_none=True)
    return rows


def scaling_of_scores(base: Config) -> dict[str, float]:
    """Losses with and without the division of scores by sqrt(D), each with and without QK-norm."""
    losses = {}
    for norm in (True, False):
        for name, factor in {"scaled": 1.0, "plain": math.sqrt(base.head_dim)}.items():
            with attending(factor=factor):
                loss = validation_loss(trained(replace(base, qk_norm=norm)), base)
            losses[name + (", QK-norm" if norm else "")] = loss
    return losses


def without_mask(base: Config) -> dict[str, float]:
    """The loss of a model trained without the mask: without it, and with it."""
    with attending(causal=False):
        model = trained(base)
        seen = validation_loss(model, base)
    return {"seen": seen, "hidden": validation_loss(model, base)}


def norm_times(base: Config, rounds: int = 5, steps: int = 30) -> dict[str, list[float]]:
    """Milliseconds per step with each norm, alternating; the first five steps don't count."""
    times = {"rmsnorm": [], "layernorm": []}
    for _ in range(rounds):
        for norm, medians in times.items():
            config = replace(base, norm_type=norm, max_steps=steps, warmup_steps=0)
            ticks = [time.perf_counter() for _ in training(config)]
            medians.append(1000 * float(np.median(np.diff(ticks[5:]))))
    return times


def weight_decay(base: Config) -> dict[str, float]:
    """Root mean square of the matrices' elements after runs with and without weight decay."""
    sizes = {}
    for name, decay in (("with", 0.1), ("without", 0.0)):
        model = trained(replace(base, weight_decay=decay))
        matrices = model.parameter_groups()["matrices"]
        sizes[name] = rms(torch.cat([matrix.flatten() for matrix in matrices]))
    return sizes


# -------------------------------------------------------------------------------------------------
# tables


def report_tables(measured: dict) -> dict[str, str]:
    """The tables of REPORT.md, by name."""
    inside = measured["checkpoint"]
    stream = [
        {
            "read after": f"block {layer}" if layer else "the embedding",
            "size (RMS)": f"{row['size']:.2f}",
            "added by attention": f"{row['attention']:.2f}" if layer else "",
            "added by the MLP": f"{row['mlp']:.2f}" if layer else "",
            "loss of the head there": f"{row['loss']:.3f}",
        }
        for layer, row in enumerate(inside["stream"])
    ]
    return {
        "stream table": markdown(stream),
        "context table": context_table(inside["positions"]),
    }


def context_table(losses: list[float]) -> str:
    """The mean loss by the number of tokens in the context, in groups of 1, 2, 4, 8, ..."""
    row, low = {"tokens of context": "loss"}, 1
    while 2 * low - 1 <= len(losses):
        high = 2 * low - 1
        name = f"{low} to {high}" if low > 1 else "1"
        row[name] = f"{np.mean(losses[low - 1 : high]):.2f}"
        low *= 2
    return markdown([row])


# -------------------------------------------------------------------------------------------------
# the command


def check(path: str, saved: Checkpoint) -> None:
    """Raises UserError if what `describe` needs is missing."""
    saved.check_data(load_dataset(saved.settings().dataset), path)
    read_metrics(metrics_path(path, saved))


def describe(path: str, saved: Checkpoint) -> dict:
    """What the run of a checkpoint was, and its result. Raises UserError."""
    config, rows = saved.settings(), read_metrics(metrics_path(path, saved))
    dataset = load_dataset(config.dataset)
    model, _ = saved.build(DEVICE)
    dtype, _ = pick_dtype(config.dtype, DEVICE)
    loss = mean_loss(model, dataset.val, dtype)
    reread = saved.step * config.tokens_per_step > len(dataset.train)  # else nothing is memorized
    return {
        "machine": machine(DEVICE),
        "config": saved.config,
        "parameters": count_parameters(config),
        "step": saved.step,
        "seconds": max(row["seconds"] for row in rows if row["step"] <= saved.step),
        "loss": loss,
        "bits_per_byte": dataset.bits_per_byte(loss),
        "memorized": memorization(model, dataset, dtype) if reread else None,
        "source": dataset.meta["source"],
        "train": dataset.meta["train"],
        "val": dataset.meta["val"],
    }


def metrics_path(path: str, saved: Checkpoint) -> Path:
    """The metrics file next to a checkpoint."""
    kept = ".prev" if Path(path).stem.endswith(".prev") else ""  # of a run that was replaced
    return Path(path).with_name(f"{saved.config['run_name']}_metrics{kept}.jsonl")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.questions", description=__doc__)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        default=["out/capstone_best.pt"],
        help="(default: out/capstone_best.pt)",
    )
    add_options(parser, parallel=False)
    args = parser.parse_args(argv)
    base = with_steps(BASE, args.steps or BASE.max_steps)

    # the runs
    saved = {path: checkpoint.load(path) for path in args.checkpoints}
    names = [state.config["run_name"] for state in saved.values()]
    if len(set(names)) < len(names):
        raise UserError(f"several of the runs have the same name: {', '.join(names)}", status=2)
    for path, state in saved.items():  # what follows may take hours
        check(path, state)
    prepare_missing(base.dataset)

    # measure
    first = saved[args.checkpoints[0]]
    model, _ = first.build(DEVICE)
    inside = look_into(model, load_dataset(first.config["dataset"]).val)
    runs = [describe(path, state) for path, state in saved.items()]
    measured = {
        "machine": machine(DEVICE),
        "checkpoint": inside,
        "scores": scores_by_width(),
        "norm_times": norm_times(base),
    }
    short_runs = (gradients, scaling_of_scores, without_mask, weight_decay)
    seeds = args.seeds or SEEDS
    with tqdm(total=len(short_runs) * seeds, unit="comparison") as bar:
        for measure in short_runs:
            measured[measure.__name__] = []
            for seed in range(1, seeds + 1):
                measured[measure.__name__].append(measure(replace(base, seed=seed)))
                bar.update()

    # keep it; only now, so that all results are of the same runs
    folder = args.results / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    for path, state in saved.items():
        copy = folder / f"{state.config['run_name']}_metrics.jsonl"
        copy.write_bytes(metrics_path(path, state).read_bytes())
    path = folder / "runs.json"
    earlier = read_json(path) if path.exists() else []
    runs += [run for run in earlier if run["config"]["run_name"] not in names]
    write_json(path, runs, indent=1)
    write_json(args.results / "questions" / "measured.json", measured)
    print(f"python -m experiments.report --results {args.results} writes a report")


if __name__ == "__main__":
    raise SystemExit(main())
