"""What happens inside, and what goes wrong without it: evidence for REPORT.md from trained checkpoints and short runs.

python -m experiments.questions out/capstone_best.pt out/python_byte_best.pt     seven minutes on 2 cores

It looks into the first checkpoint, keeps config, metrics and samples of all of them in experiments/results/trained/, trains
small models with one part changed, and leaves what it measured in experiments/results/questions/measured.json.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import model as model_module
from common import checkpoint
from common.arguments import saved_settings
from common.cli import Parser, command
from common.dataset import is_prepared, load_dataset
from common.device import pick_dtype
from common.errors import UserError
from common.metrics import read_metrics
from config import Config, make_config
from evaluate import mean_loss
from experiments.ablate import CPU, STUDIES
from experiments.bench import machine
from model import GPT, count_parameters
from prepare import prepare
from train import Batches, Run, optimizer_step

RESULTS = Path("experiments/results")
DEVICE = torch.device("cpu")
BASE = replace(
    CPU, max_steps=300, warmup_steps=25, learning_rate=4e-3, device="cpu"
)  # of the short runs
TOO_HIGH = (
    1.6e-2  # a learning rate at which post-norm does not learn, as the study "stability" found
)
SEEDS = (1, 2, 3)
WATCHED = (0, 10, 20, 40, 80, 150)  # steps at which gradients are measured
WINDOWS = 512  # of the validation split, for losses position by position
FEW = 64  # of them, for all else inside the model

# ---------------------------------------------------------------------------------------------------------------------
# tools


def attend(q, k, v, factor: float = 1.0, causal: bool = True, keep: Callable | None = None):
    """model.attend with scores that are `factor` times as large, or without the mask; keep gets the weights (B, H, T, T)."""
    scores = factor / math.sqrt(q.size(-1)) * (q @ k.mT).float()
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    weights = scores.softmax(-1)
    if keep:
        keep(weights)
    return weights.type_as(v) @ v


@contextmanager
def attending(**changes):
    """Models attend with these arguments of `attend`."""
    before, model_module.attend = model_module.attend, partial(attend, **changes)
    try:
        yield
    finally:
        model_module.attend = before


def trained(
    config: Config,
    steps: int | None = None,
    watch: Callable[[int, GPT], None] = lambda step, model: None,
) -> GPT:
    """A model after so many steps of a run, or after all; watch(step, model) is called before each."""
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    run = Run(config, dataset, DEVICE, pick_dtype(config.dtype, DEVICE)[0])
    batches = Batches(dataset.train, config)
    for step in range(steps or config.max_steps):
        watch(step, run.model)
        optimizer_step(
            run.model, run.optimizers, run.scaler, batches(step), step, run.dtype, config
        )
    return run.model.eval()


def windows(tokens: np.ndarray, length: int, count: int) -> torch.Tensor:
    """Evenly spaced ones, (count, length + 1)."""
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(int)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))


def token_losses(logits, ids):
    """Nats of each token but the first of ids (B, T + 1), by logits (B, T, V): (B, T)."""
    return F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")


def rms(x) -> float:
    return x.float().square().mean().sqrt().item()


def short_loss(model: GPT) -> float:
    return mean_loss(model, load_dataset(BASE.dataset).val, torch.float32, BASE.eval_tokens)


# ---------------------------------------------------------------------------------------------------------------------
# what is measured on a trained checkpoint


@torch.no_grad()
def look_into(model: GPT, tokens: np.ndarray) -> dict:
    """The checkpoint's losses by position, its heads, its residual stream, and what it loses without the scale."""
    parts = windows(tokens, model.config.block_size, WINDOWS).split(FEW)
    positions = torch.cat([token_losses(model(part[:, :-1]), part) for part in parts]).mean(0)
    ids, heads = windows(tokens, model.config.block_size, FEW), []
    with attending(keep=lambda weights: heads.append(weights.mean(0))):
        loss = token_losses(model(ids[:, :-1]), ids).mean().item()
    result = {
        "loss": loss,
        "positions": positions.tolist(),
        "heads": by_distance(torch.stack(heads)),
    }
    with attending(factor=math.sqrt(model.config.head_dim)):
        result["loss_unscaled"] = token_losses(model(ids[:, :-1]), ids).mean().item()
    return result | {"stream": read_stream(model, ids), "mask": change_a_token(model, ids)}


def by_distance(heads) -> list:
    """Mean weights (layers, H, T, T) as (layers, H, T / 2): of each distance back, over the positions of the second half,
    all of which have so many before them."""
    T = heads.size(-1)
    found = [
        heads.diagonal(-distance, dim1=2, dim2=3)[..., T // 2 - distance :].mean(-1)
        for distance in range(T // 2)
    ]
    return torch.stack(found, dim=-1).tolist()


def read_stream(model: GPT, ids) -> list[dict]:
    """After the embedding and after each block: how large the stream is, what the sublayers added, and the loss if the
    head read it there."""
    rows, added = [], {}

    def watch(name: str):
        return lambda module, inputs, output: added.update({name: rms(output)})

    def read(module, inputs, output=None):
        x = inputs[0] if output is None else output
        loss = token_losses(model.head(model.final_norm(x)), ids).mean().item()
        rows.append({"size": rms(x), "loss": loss, **added})
        added.clear()

    hooks = [model.blocks[0].register_forward_pre_hook(read)]
    for block in model.blocks:
        hooks += [block.attn.register_forward_hook(watch("attention")), block.mlp.register_forward_hook(watch("mlp")),
                  block.register_forward_hook(read)]  # fmt: skip
    model(ids[:, :-1])
    for hook in hooks:
        hook.remove()
    return rows


def change_a_token(model: GPT, ids) -> dict:
    """How far logits before and after a token in the middle move when it becomes another one."""
    changed, middle = ids[:, :-1].clone(), model.config.block_size // 2
    changed[:, middle] = (changed[:, middle] + 1) % model.config.vocab_size
    moved = (model(changed) - model(ids[:, :-1])).abs()
    return {"before": moved[:, :middle].max().item(), "from": moved[:, middle:].mean().item()}


def scores_by_width() -> list[dict]:
    """Scores of random queries and keys whose channels have variance 1: their deviation, and the largest softmax weight
    among 128 keys, with and without the division by sqrt(D)."""
    generator, rows = torch.Generator().manual_seed(0), []
    for D in (16, 64, 256, 1024):
        q, k = (torch.randn(1000, count, D, generator=generator) for count in (1, 128))
        scores = (q @ k.mT)[:, 0]
        row = {"head_dim": D, "deviation": scores.std().item()}
        for name, divisor in (("plain", 1.0), ("scaled", math.sqrt(D))):
            row[name] = (scores / divisor).softmax(-1).amax(-1).mean().item()
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# what is measured on short runs


def gradients(seed: int) -> dict[str, list]:
    """Gradient norms of each block's matrices before some steps of a learning rate that is too high, by norm position."""
    ids = windows(load_dataset(BASE.dataset).train, BASE.block_size, 16)
    found = {}
    for place in ("pre", "post"):
        rows = found[place] = []

        def watch(step: int, model: GPT, rows=rows):
            if step in WATCHED:
                loss = token_losses(model(ids[:, :-1]), ids).mean()
                loss.backward()
                norms = [
                    math.hypot(*(p.grad.norm().item() for p in block.parameters()))
                    for block in model.blocks
                ]
                rows.append({"step": step, "loss": loss.item(), "norms": norms})
                model.zero_grad(set_to_none=True)

        trained(
            replace(BASE, norm_position=place, learning_rate=TOO_HIGH, seed=seed),
            WATCHED[-1] + 1,
            watch,
        )
    return found


def scaling_of_scores(seed: int) -> dict[str, float]:
    """Losses of runs whose scores are divided by sqrt(D), and of runs without, none with QK-norm."""
    config = replace(BASE, qk_norm=False, seed=seed)
    scaled = short_loss(trained(config))
    with attending(factor=math.sqrt(BASE.head_dim)):
        return {"scaled": scaled, "plain": short_loss(trained(config))}


def without_mask(seed: int) -> dict[str, float]:
    """The loss of a model that was trained to see what comes, while it sees it, and once it does not."""
    with attending(causal=False):
        model = trained(replace(BASE, seed=seed))
        seen = short_loss(model)
    return {"seen": seen, "hidden": short_loss(model)}


def norm_times(rounds: int = 5, steps: int = 30) -> dict[str, list[float]]:
    """Milliseconds of a step with each norm, in turn; the first of the steps do not count."""
    times = {"rmsnorm": [], "layernorm": []}
    for _ in range(rounds):
        for norm, found in times.items():
            ticks = []
            trained(
                replace(BASE, norm_type=norm),
                steps,
                lambda step, model, ticks=ticks: ticks.append(time.perf_counter()),
            )
            found.append(1000 * statistics.median(np.diff(ticks[5:])))
    return times


def weight_decay(seed: int) -> dict[str, float]:
    """Root mean square of the matrices' elements after runs with weight decay and without."""
    models = {
        name: trained(replace(BASE, weight_decay=value, seed=seed))
        for name, value in (("with", 0.1), ("without", 0.0))
    }
    return {
        name: rms(torch.cat([p.flatten() for p in model.parameter_groups()["matrices"]]))
        for name, model in models.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# what is kept


def describe(path: str, folder: Path) -> dict:
    """What the run of a checkpoint was, and how well it went; keeps its metrics in the folder. Raises UserError."""
    state = checkpoint.load(path)
    model, _ = checkpoint.build(state, DEVICE)
    config, dataset = make_config(saved_settings(state)), load_dataset(state["config"]["dataset"])
    if dataset.fingerprint != state["dataset_fingerprint"]:
        raise UserError(f"data/{dataset.name} is not the text that {path} was trained on")
    metrics = Path(path).with_name(f"{config.run_name}_metrics.jsonl")
    loss = mean_loss(model, dataset.val, pick_dtype(config.dtype, DEVICE)[0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / metrics.name).write_bytes(metrics.read_bytes())
    return {
        "machine": machine(DEVICE), "config": state["config"], "parameters": count_parameters(model.config),
        "step": state["step"], "seconds": read_metrics(metrics)[-1]["seconds"], "loss": loss,
        "bits_per_byte": dataset.bits_per_byte(loss), "source": dataset.meta["source"],
        "train": dataset.meta["train"], "val": dataset.meta["val"],
    }  # fmt: skip


def tokenizers() -> list[dict]:
    """Tokens and bytes of one text, cut in the ways that the study of tokenizers compares."""
    rows = []
    for arm, settings in STUDIES["tokenizer"].arms.items():
        if is_prepared(settings["dataset"]):
            dataset = load_dataset(settings["dataset"])
            rows.append(
                {
                    "tokenizer": arm,
                    "vocabulary": dataset.tokenizer.vocab_size,
                    **dataset.meta["val"],
                }
            )
    return rows


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.questions", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints",
        nargs="*",
        default=["out/capstone_best.pt"],
        help="(default: out/capstone_best.pt)",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    folder = args.results / "trained"
    runs = [describe(path, folder) for path in args.checkpoints]
    (folder / "runs.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    if not is_prepared(BASE.dataset):
        prepare(BASE.dataset)
    model, _ = checkpoint.build(checkpoint.load(args.checkpoints[0]), DEVICE)
    tokens = load_dataset(runs[0]["config"]["dataset"]).val
    measured = {"machine": machine(DEVICE), "checkpoint": look_into(model, tokens), "scores": scores_by_width(),
                "tokenizers": tokenizers(), "norm_times": norm_times()}  # fmt: skip
    comparisons = [
        (measure, seed)
        for measure in (gradients, scaling_of_scores, without_mask, weight_decay)
        for seed in SEEDS
    ]
    for measure, seed in tqdm(comparisons, unit="comparison"):
        measured.setdefault(measure.__name__, []).append(measure(seed))
    path = args.results / "questions" / "measured.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured) + "\n", encoding="utf-8")
    print(f"{path}; python -m experiments.report puts it into REPORT.md")


if __name__ == "__main__":
    raise SystemExit(main())
