"""Which choices matter? A study trains several arms with the same seeds and compares them in pairs.

python -m experiments.ablate norms                     or another study; --help lists them
python -m experiments.ablate norms --redraw            tables and figures from the kept runs
python -m experiments.ablate norms --steps 50 --seeds 2 --results out/trial     small, elsewhere

Most studies first search for each arm's best learning rate, with a seed that is used for nothing
else, and then train the arm at that rate with all the other seeds. An interrupted study resumes
where it stopped. It leaves runs.jsonl, table.md and a figure in experiments/results/<study>/.
"""

import math
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from common.arguments import read_file
from common.cli import Parser, command
from common.dataset import load_dataset
from common.device import pick_device
from config import Config, make_config
from experiments.runs import (
    RESULTS,
    STUDENT_T,
    in_run_folder,
    interval,
    markdown,
    plus_minus,
    read_rows,
    run_all,
    write_rows,
)
from model import count_parameters
from plot import COLORS
from prepare import prepare_missing

SEARCH_SEED = 0  # used only to search for learning rates
MAX_RATES = 8  # learning rates tried per arm; the search widens while the best is at an edge
PAIR_DEVIATION = 0.010  # nats: standard deviation of paired differences, from the study "recipe"
TOLERANCE = 0.5  # nats above the arm's best loss; at higher losses a rate counts as too high

# The 10M model of configs/shakespeare_char.py, and for a CPU one of the same depth and a quarter of
# its width. Not compiled: short runs of many models would compile for longer than that saves.
GPU = Config(
    dataset="shakespeare_char",
    run_name="run",
    dropout=0.2,
    min_lr=0.0,
    max_steps=2000,
    warmup_steps=100,
    eval_tokens=20_000,
    sample_interval=0,
    save_interval=0,
    compile=False,
)
CPU = replace(
    GPU,
    d_model=96,
    n_heads=3,
    block_size=128,
    dropout=0.0,
    batch_size=8,
    max_steps=600,
    warmup_steps=50,
)


def shipped() -> Config:
    """What configs/shakespeare_char.py trains on a CPU, for one epoch (500 steps)."""
    values, on_cpu = read_file("configs/shakespeare_char.py")
    run = {"run_name": "run", "max_steps": 500, "sample_interval": 0, "save_interval": 0}
    return make_config(values | on_cpu | run)


# -------------------------------------------------------------------------------------------------
# the studies


@dataclass(frozen=True)
class Times:
    """In an arm: the base's value of a setting times a factor."""

    factor: float


@dataclass(frozen=True)
class Study:
    """Arms by name: the settings that differ from the base. All are compared with the first arm."""

    question: str
    arms: dict[str, dict]
    seeds: int = 5
    base: str = "small"  # "small": CPU or GPU, above; "shipped": shipped()
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)  # learning rates; none: each arm's own
    search: bool = True  # search from these rates; False: train at every one with all seeds
    equal_operations: bool = False  # arms with larger models get fewer steps
    timed: bool = False  # compare training times as well

    @property
    def first(self) -> str:
        return next(iter(self.arms))

    @property
    def unit(self) -> str:
        """The loss to compare, by its name in a result; nats of different tokens don't compare."""
        by_dataset = any("dataset" in settings for settings in self.arms.values())
        return "bits_per_byte" if by_dataset else "final"


def shape(layers: int, width: float) -> dict:
    """Settings for `layers` layers, `width` times as wide as the base, with heads of its size."""
    return {"n_layers": layers, "d_model": Times(width), "n_heads": Times(width)}


SHORT = {"max_steps": Times(1 / 2)}
POST = SHORT | {"norm_position": "post"}
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3}

STUDIES = {
    "norms": Study(
        "Does it matter which norm is used, and where?",
        {
            "rmsnorm, pre": {"norm_type": "rmsnorm", "norm_position": "pre"},
            "rmsnorm, post": {"norm_type": "rmsnorm", "norm_position": "post"},
            "layernorm, pre": {"norm_type": "layernorm", "norm_position": "pre"},
            "layernorm, post": {"norm_type": "layernorm", "norm_position": "post"},
            "none": {"norm_type": "none"},
            "none, no QK-norm": {"norm_type": "none", "qk_norm": False},
        },
    ),
    "stability": Study(
        "At which learning rate does training break, and what prevents that?",
        {
            "pre-norm": SHORT,
            "pre-norm, no warmup": SHORT | {"warmup_steps": 0},
            "pre-norm, no clipping": SHORT | {"grad_clip": 0.0},
            "pre-norm, no QK-norm": SHORT | {"qk_norm": False},
            "pre-norm, no weight decay": SHORT | {"weight_decay": 0.0},
            "post-norm": POST,
            "post-norm, no warmup": POST | {"warmup_steps": 0},
            "post-norm, no clipping": POST | {"grad_clip": 0.0},
            "post-norm, no QK-norm": POST | {"qk_norm": False},
            "post-norm, no weight decay": POST | {"weight_decay": 0.0},
        },
        seeds=3,
        rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1),
        search=False,
    ),
    "positions": Study(
        "How should positions be encoded?",
        {
            "rope": {"pos_type": "rope"},
            "learned": {"pos_type": "learned"},
            "none": {"pos_type": "none"},
        },
    ),
    "mlp": Study(
        "Which nonlinearity, at equal parameters?",
        {
            "swiglu": {"mlp_type": "swiglu"},
            "gelu": {"mlp_type": "gelu"},
            "relu2": {"mlp_type": "relu2"},
        },
    ),
    "shape": Study(
        "Deep or wide, at equal operations?",
        {
            "6 layers": {},
            "1 layer, 7/3 as wide": shape(1, 7 / 3),
            "3 layers, 4/3 as wide": shape(3, 4 / 3),
            "14 layers, 2/3 as wide": shape(14, 2 / 3),
        },
        equal_operations=True,
        timed=True,
    ),
    "tokenizer": Study(
        "Characters, bytes or BPE, at equal operations?",
        {
            "byte": {"dataset": "python_byte"},
            "char": {"dataset": "python_char"},
            "bpe": {"dataset": "python_bpe", "d_model": Times(1 / 2), "batch_size": Times(1 / 4)},
        },
        seeds=3,
        equal_operations=True,
    ),
    "optimizer": Study(
        "AdamW or Muon, at equal steps and at equal time?",
        {
            "adamw": {},
            "muon": {"optimizer": "muon"},
            "muon, 0.86 of the steps": {"optimizer": "muon", "max_steps": Times(0.86)},
        },
        timed=True,
    ),
    "recipe": Study(
        "Which settings of configs/shakespeare_char.py matter on a CPU?",
        {
            "as shipped": {},
            "learning rate 3e-3": {"learning_rate": 3e-3},
            "learning rate 1.2e-2": {"learning_rate": 1.2e-2},
            "cosine to a tenth, not to zero": {"min_lr": 6e-4},
            "no warmup": {"warmup_steps": 0},
            "no weight decay": {"weight_decay": 0.0},
            "weight decay 0.3": {"weight_decay": 0.3},
            "no clipping": {"grad_clip": 0.0},
            "dropout 0.1": {"dropout": 0.1},
            "average of the weights, 0.99": {"ema_decay": 0.99},
            "random windows": {"batch_order": "random"},
            "8 sequences a step, twice the steps": {"batch_size": 8, "max_steps": Times(2)},
            "32 sequences a step, half the steps": {"batch_size": 32, "max_steps": Times(1 / 2)},
            "32 blocks of 64": {"block_size": 64, "batch_size": 32},
            "8 blocks of 256": {"block_size": 256, "batch_size": 8},
            "2 heads of 64": {"n_heads": 2},
            "no QK-norm": {"qk_norm": False},
            "LayerNorm": {"norm_type": "layernorm"},
            "learned positions": {"pos_type": "learned"},
            "GELU": {"mlp_type": "gelu"},
            "relu2": {"mlp_type": "relu2"},
            "untied output head": {"tie_embeddings": False},
            "AdamW, 4e-3": ADAMW,
            "AdamW, 2e-3": ADAMW | {"learning_rate": 2e-3},
            "AdamW, 8e-3": ADAMW | {"learning_rate": 8e-3},
            "AdamW, 4e-3, beta2 0.99": ADAMW | {"beta2": 0.99},
            "AdamW, 4e-3, cosine to a tenth": ADAMW | {"min_lr": 4e-4},
            "AdamW, 4e-3, average of the weights, 0.99": ADAMW | {"ema_decay": 0.99},
        },
        seeds=3,
        base="shipped",
        rates=(),
        search=False,
    ),
}

# -------------------------------------------------------------------------------------------------
# running a study


def arm_config(study: Study, base: Config, arm: str) -> Config:
    """The base with an arm's settings. If they change the number of steps, warmup scales too."""
    settings = {
        name: round(value.factor * getattr(base, name)) if isinstance(value, Times) else value
        for name, value in study.arms[arm].items()
    }
    length = settings.pop("max_steps", base.max_steps) / base.max_steps
    config = replace(base, **settings)
    if study.equal_operations and arm != study.first:
        operations = operations_per_step(arm_config(study, base, study.first))
        length *= operations / operations_per_step(config)
    steps = max(1, round(length * base.max_steps))
    warmup = round(length * config.warmup_steps)
    return replace(config, max_steps=steps, warmup_steps=warmup, eval_interval=max(1, steps // 4))


def operations_per_step(config: Config) -> int:
    """The operations of a training step up to a constant factor."""
    vocab_size = load_dataset(config.dataset).tokenizer.vocab_size
    return count_parameters(replace(config, vocab_size=vocab_size)) * config.tokens_per_step


def run_study(study: Study, base: Config, seeds: int, parallel: int) -> list[dict]:
    """The result of every run, with its arm and learning rate; trains only what is missing."""
    arms = {arm: arm_config(study, base, arm) for arm in study.arms}

    def run(points: list[tuple[str, float, int]], later: int = 0) -> dict[tuple, dict]:
        configs = {}
        for arm, rate, seed in points:
            config = replace(arms[arm], learning_rate=rate, seed=seed)
            configs[arm, rate, seed] = in_run_folder(config, "out/ablate")
        return run_all(configs, parallel, later)

    if study.search:
        points = [(arm, rate, SEARCH_SEED) for rate in study.rates for arm in arms]
        best = {}
        while len(best) < len(arms):
            results = run(points, later=seeds * len(arms))
            for arm in arms:
                losses = {
                    rate: loss(study, result)
                    for (other, rate, _), result in results.items()
                    if other == arm
                }
                rate = next_rate(losses)
                if rate is None:
                    best[arm] = min(losses, key=losses.get)
                else:
                    points.append((arm, rate, SEARCH_SEED))
        points += [(arm, best[arm], seed) for seed in range(1, seeds + 1) for arm in arms]
    else:
        points = [
            (arm, rate, seed)
            for arm, config in arms.items()
            for rate in study.rates or [config.learning_rate]
            for seed in range(1, seeds + 1)
        ]
    return [
        {"arm": arm, "learning_rate": rate, **result}
        for (arm, rate, _), result in run(points).items()
    ]


def next_rate(losses: dict[float, float]) -> float | None:
    """The learning rate to try after these, which are in equal ratios, or None if that is enough.

    Goes beyond the edge at which the best rate lies, until the best lies between worse ones.
    """
    rates = sorted(losses)
    ratio = rates[1] / rates[0]
    best = min(losses, key=losses.get)
    if rates[0] < best < rates[-1] or len(rates) >= MAX_RATES:
        return None
    return rates[0] / ratio if best == rates[0] else rates[-1] * ratio


# -------------------------------------------------------------------------------------------------
# results of a study


def loss(study: Study, result: dict) -> float:
    """The loss that the study compares; infinite if the run diverged."""
    return math.inf if result["diverged"] is not None else result[study.unit]


def rates_of(rows: list[dict], arm: str | None = None) -> list[float]:
    return sorted({row["learning_rate"] for row in rows if arm in (None, row["arm"])})


def losses_at(study: Study, rows: list[dict], arm: str, rate: float) -> list[float]:
    """The loss of every run of an arm at a learning rate."""
    return [loss(study, row) for row in rows if (row["arm"], row["learning_rate"]) == (arm, rate)]


def best_runs(study: Study, rows: list[dict], arm: str) -> list[dict]:
    """An arm's runs at its best learning rate, except the one of the search."""
    runs = [row for row in rows if row["arm"] == arm and row["seed"] != SEARCH_SEED]
    best = min(rates_of(runs), key=lambda rate: sum(losses_at(study, runs, arm, rate)))
    return [row for row in runs if row["learning_rate"] == best]


def difference(study: Study, rows: list[dict], arm: str) -> tuple[float, float] | None:
    """How much higher an arm's loss is than the first arm's, paired by seed, and half its interval.

    None for the first arm itself, or with fewer than two pairs.
    """
    reference = {row["seed"]: loss(study, row) for row in best_runs(study, rows, study.first)}
    pairs = [
        loss(study, row) - reference.get(row["seed"], math.inf)
        for row in best_runs(study, rows, arm)
    ]
    pairs = [pair for pair in pairs if math.isfinite(pair)]
    return interval(pairs) if arm != study.first and len(pairs) > 1 else None


def training_time(runs: list[dict]) -> float:
    """The median, in seconds."""
    return statistics.median(row["milliseconds_per_step"] * row["steps"] / 1000 for row in runs)


def comparison_table(study: Study, rows: list[dict]) -> str:
    """Each arm at its best learning rate, compared with the first arm."""
    what = "bits per byte" if study.unit == "bits_per_byte" else "loss"
    lines = []
    for arm in study.arms:
        runs = best_runs(study, rows, arm)
        kept = [row for row in runs if row["diverged"] is None]
        line = {
            "arm": arm,
            "learning rate": f"{runs[0]['learning_rate']:g}",
            "n": f"{len(runs)}",
            "diverged": f"{len(runs) - len(kept)}",
            f"final {what}": "",
            f"best {what}": "",
            "difference": "",
            "95% interval": "",
        }
        if len(kept) > 1:
            final = [row[study.unit] for row in kept]
            best = statistics.mean(row["best"] * row[study.unit] / row["final"] for row in kept)
            line[f"final {what}"] = f"{statistics.mean(final):.4f} ± {statistics.stdev(final):.4f}"
            line[f"best {what}"] = f"{best:.4f}"
        if pair := difference(study, rows, arm):
            mean, half = pair
            line["difference"] = f"{mean:+.4f}"
            line["95% interval"] = f"{mean - half:+.4f} to {mean + half:+.4f}"
        if study.timed:
            line["training [s]"] = f"{training_time(runs):.1f}"
        lines.append(line)
    return markdown(lines)


def rate_table(study: Study, rows: list[dict]) -> str:
    """Each arm's mean loss at each learning rate, and the highest rate at which it trains."""
    lines = []
    for arm in study.arms:
        line, means = {"arm": arm} | {f"{rate:g}": "" for rate in rates_of(rows)}, {}
        for rate in rates_of(rows, arm):
            losses = losses_at(study, rows, arm, rate)
            finite = [value for value in losses if math.isfinite(value)]
            means[rate] = statistics.mean(losses)
            parts = [f"{statistics.mean(finite):.3f}"] if finite else []
            if len(finite) < len(losses):
                parts.append(f"{len(losses) - len(finite)} of {len(losses)} diverged")
            line[f"{rate:g}"] = ", ".join(parts)
        limit = min(means.values()) + TOLERANCE
        line["trains up to"] = f"{max(rate for rate in means if means[rate] <= limit):g}"
        lines.append(line)
    return markdown(lines)


def change_table(study: Study, rows: list[dict]) -> str:
    """Of a study that compares no learning rates: each arm's loss and difference from the first."""
    lines = []
    for arm in study.arms:
        losses = [loss(study, row) for row in best_runs(study, rows, arm)]
        diverged = losses.count(math.inf)
        pair = difference(study, rows, arm)
        mean = f"diverged in {diverged} of {len(losses)} runs"
        lines.append(
            {
                "change": arm,
                "validation loss": mean if diverged else f"{statistics.mean(losses):.3f}",
                "difference": plus_minus(*pair) if pair and not diverged else "",
            }
        )
    return markdown(lines)


def tables(study: Study, rows: list[dict]) -> str:
    """All of table.md."""
    if not study.rates:
        return change_table(study, rows)
    timed = " Training time is the median of runs that shared the machine." if study.timed else ""
    return (
        f"Each arm at its best learning rate: mean and standard deviation over n seeds, and the"
        f" difference from {study.first}, paired by seed, with its 95% interval.{timed}\n\n"
        f"{comparison_table(study, rows)}\n\n"
        f"The mean loss at each learning rate over the seeds tried there, and the highest rate"
        f" at which the arm trains: its mean is at most {TOLERANCE} above the arm's best.\n\n"
        f"{rate_table(study, rows)}"
    )


# -------------------------------------------------------------------------------------------------
# figures

UNITS = {"final": "final validation loss [nats per token]", "bits_per_byte": "bits per byte"}


def arms_figure(study: Study, rows: list[dict]) -> Figure:
    """Each seed of each arm at its best learning rate as a dot, and the mean as a line."""
    figure = Figure(figsize=(8, 1 + 0.45 * len(study.arms)), layout="constrained")
    axis = figure.subplots()
    for height, arm in enumerate(study.arms):
        losses = [loss(study, row) for row in best_runs(study, rows, arm)]
        losses = [value for value in losses if math.isfinite(value)]
        color = COLORS[height % len(COLORS)]
        axis.plot(losses, [height] * len(losses), "o", color=color, alpha=0.6)
        if losses:
            mean = statistics.mean(losses)
            axis.plot([mean, mean], [height - 0.3, height + 0.3], color=color, linewidth=2)
    axis.set_yticks(range(len(study.arms)), list(study.arms))
    axis.invert_yaxis()
    axis.set_xlabel(UNITS[study.unit])
    axis.grid(alpha=0.3, axis="x")
    return figure


def rates_figure(study: Study, rows: list[dict]) -> Figure:
    """Final loss against learning rate: every run as a dot, and the mean of each arm as a line.

    Arms whose names begin alike, up to the first comma, share a panel. Runs that diverged are at
    the top.
    """
    groups = list(dict.fromkeys(arm.split(", ")[0] for arm in study.arms))
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    finite = [loss(study, row) for row in rows if row["diverged"] is None]
    top = min(max(finite), 2 * min(finite)) + 0.05 * min(finite)
    rates = rates_of(rows)
    for group, axis in zip(groups, panels):
        arms = [arm for arm in study.arms if arm.split(", ")[0] == group]
        for arm, color in zip(arms, COLORS):
            means = []
            for rate in rates:
                losses = [min(value, top) for value in losses_at(study, rows, arm, rate)]
                means.append(statistics.mean(losses))
                axis.plot([rate] * len(losses), losses, "o", color=color, alpha=0.4, markersize=4)
            label = arm.removeprefix(group).removeprefix(", ") or "unchanged"
            axis.plot(rates, means, color=color, label=label)
        lost = [
            row["learning_rate"]
            for row in rows
            if row["arm"] in arms and row["diverged"] is not None
        ]
        if lost:
            axis.plot(lost, [top] * len(lost), "x", color="black", markersize=9, label="diverged")
        axis.set_xscale("log")
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_title(group)
        axis.grid(alpha=0.3)
    panels[0].set_ylabel(UNITS[study.unit])
    entries = {}
    for axis in panels:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries[label] = handle
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 9}
    figure.legend(entries.values(), entries, **place)
    return figure


def redraw(name: str, results: Path) -> None:
    """Writes a study's table and its figure from runs.jsonl."""
    study, folder = STUDIES[name], results / name
    rows = read_rows(folder / "runs.jsonl")
    (folder / "table.md").write_text(tables(study, rows) + "\n", encoding="utf-8")
    if study.search:
        arms_figure(study, rows).savefig(folder / "arms.png", dpi=110)
    elif study.rates:
        rates_figure(study, rows).savefig(folder / "learning_rates.png", dpi=110)


# -------------------------------------------------------------------------------------------------
# the command


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.ablate", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    counts = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--seeds", **counts, choices=range(2, 11), help="runs of each arm at its best rate, 2 to 10"
    )
    parser.add_argument("--steps", **counts, help="steps of the study's base")
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, mps; on a GPU most studies train 10M parameters",
    )
    parser.add_argument(
        "--parallel", **counts, help="runs at a time (default: one for each core of a CPU)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="only tables and figures, from runs.jsonl"
    )
    args = parser.parse_args(argv)
    if any(value is not None and value < 1 for value in (args.steps, args.parallel)):
        parser.error("--steps and --parallel must be at least 1")
    study, folder = STUDIES[args.study], args.results / args.study
    if not args.redraw:
        device, _ = pick_device(args.device)
        small = CPU if device.type == "cpu" else GPU
        base = replace(small if study.base == "small" else shipped(), device=str(device))
        if args.steps:
            warmup = base.warmup_steps * args.steps // base.max_steps
            base = replace(base, max_steps=args.steps, warmup_steps=warmup)
        for settings in study.arms.values():
            prepare_missing(settings.get("dataset", base.dataset))
        seeds = args.seeds or study.seeds
        smallest = STUDENT_T[seeds - 2] * PAIR_DEVIATION / math.sqrt(seeds)
        print(study.question)
        print(f"With {seeds} seeds, differences above about {smallest:.3f} nats are significant.")
        parallel = args.parallel or (os.cpu_count() if device.type == "cpu" else 1)
        write_rows(folder / "runs.jsonl", run_study(study, base, seeds, parallel))
    redraw(args.study, args.results)
    print((folder / "table.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    raise SystemExit(main())
