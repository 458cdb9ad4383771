"""Which choices matter? Every arm of a study at a learning rate of its own, with the same seeds, compared in pairs.

python -m experiments.ablate norms                     or stability, positions, mlp, shape, tokenizer, optimizer
python -m experiments.ablate norms --redraw            table and figures from the runs that are kept
python -m experiments.ablate norms --steps 50 --seeds 2 --results /tmp/norms     smaller, elsewhere

A study first looks for each arm's best learning rate, with a seed that is used for nothing else, and then trains the arm
there with every other seed. Broken off, it goes on where it was. It leaves runs.jsonl, table.md and figures in
experiments/results/<study>/.
"""

import math
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from common.cli import Parser, command
from common.dataset import is_prepared, load_dataset
from common.device import pick_device
from config import Config
from experiments.runs import (
    STUDENT,
    in_own_folder,
    interval,
    markdown,
    read_rows,
    run_all,
    write_rows,
)
from model import count_parameters
from plot import COLORS
from prepare import prepare

RESULTS = Path("experiments/results")
SEARCH_SEED = 0  # of the runs that look for a learning rate
MOST_RATES = (
    8  # at which one arm is tried; it takes more than the first ones where the best lies at an edge
)
SPREAD = 0.010  # standard deviation of the difference of two runs of one seed, nats: what experiments.recipe found
FACTORS = {
    "depth": "n_layers",
    "width": "d_model",
    "heads": "n_heads",
    "batch": "batch_size",
}  # of settings, by name
TOLERANCE = (
    0.5  # nats above the arm's best loss at which a learning rate counts as too high to train
)

# The 10M model of configs/shakespeare_char.py, and for a CPU one of the same depth and a quarter of its width. Not
# compiled: many short runs of different models would wait for their compilation longer than it saves.
GPU = Config(
    dataset="shakespeare_char", run_name="run", dropout=0.2, min_lr=0.0, max_steps=2000, warmup_steps=100,
    eval_tokens=20_000, sample_interval=0, save_interval=0, compile=False,
)  # fmt: skip
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


@dataclass(frozen=True)
class Study:
    """Arms by name, each a few settings that differ from the base; the first is what the others are compared with.

    More may stand among an arm's settings, factors of the base's: "depth" of n_layers, "width" of d_model, "heads" of
    n_heads, "batch" of batch_size, and "length" of max_steps.
    """

    question: str
    arms: dict[str, dict]
    seeds: int
    rates: tuple[float, ...] = (
        2e-3,
        4e-3,
        8e-3,
    )  # learning rates: where to look first, in equal ratios
    length: float = 1.0  # factor of the base's max_steps, for all arms
    every_rate: bool = (
        False  # all seeds at these learning rates, and no others: then they are what is asked about
    )
    equal_operations: bool = False  # an arm whose model is larger gets fewer steps
    unit: str = "final"  # of a run's result: the loss that is compared
    timed: bool = False  # whether the time of training is compared as well


STUDIES = {
    "norms": Study(
        "Does it matter which norm there is, and where?",
        {f"{kind}, {place}": {"norm_type": kind, "norm_position": place}
         for kind in ("rmsnorm", "layernorm") for place in ("pre", "post")}
        | {"none": {"norm_type": "none"}, "none, no QK-norm": {"norm_type": "none", "qk_norm": False}},
        seeds=5,
    ),
    "stability": Study(
        "At which learning rate does it break, and what keeps it from breaking?",
        {f"{place}-norm{what}": {"norm_position": place} | settings
         for place in ("pre", "post")
         for what, settings in {
             "": {}, ", no warmup": {"warmup_steps": 0}, ", no clipping": {"grad_clip": 0.0},
             ", no QK-norm": {"qk_norm": False}, ", no weight decay": {"weight_decay": 0.0}}.items()},
        seeds=3, rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1), length=0.5, every_rate=True,
    ),
    "positions": Study(
        "How should a token know where it stands?",
        {kind: {"pos_type": kind} for kind in ("rope", "learned", "none")},
        seeds=5,
    ),
    "mlp": Study(
        "Which nonlinearity, at equal parameters?",
        {kind: {"mlp_type": kind} for kind in ("swiglu", "gelu", "relu2")},
        seeds=5,
    ),
    "shape": Study(
        "Deep or wide, at equal operations?",
        {"6 layers": {}, "1 layer, 7/3 as wide": {"depth": 1 / 6, "width": 7 / 3, "heads": 7 / 3},
         "3 layers, 4/3 as wide": {"depth": 1 / 2, "width": 4 / 3, "heads": 4 / 3},
         "14 layers, 2/3 as wide": {"depth": 7 / 3, "width": 2 / 3, "heads": 2 / 3}},
        seeds=5, equal_operations=True, timed=True,
    ),
    "tokenizer": Study(
        "Characters, bytes or BPE, at equal operations?",
        {"byte": {"dataset": "python_byte"}, "char": {"dataset": "python_char"},
         "bpe": {"dataset": "python_bpe", "width": 1 / 2, "batch": 1 / 4}},
        seeds=3, equal_operations=True, unit="bits_per_byte",
    ),
    "optimizer": Study(
        "AdamW or Muon, at equal steps and at equal time?",
        {"adamw": {}, "muon": {"optimizer": "muon"}, "muon, 0.86 of the steps": {"optimizer": "muon", "length": 0.86}},
        seeds=5, timed=True,
    ),
}  # fmt: skip
UNITS = {"final": "final validation loss [nats per token]", "bits_per_byte": "bits per byte"}


def config_of(study: Study, base: Config, arm: str, rate: float, seed: int) -> Config:
    """The run of an arm; fewer steps shorten its warmup as well."""
    settings = dict(study.arms[arm])
    length = settings.pop("length", 1)
    for factor, name in FACTORS.items():
        settings[name] = round(settings.pop(factor, 1) * getattr(base, name))
    config = replace(base, **settings, learning_rate=rate, seed=seed)
    length *= study.length
    if study.equal_operations:
        length *= operations(replace(base, **study.arms[first(study)])) / operations(config)
    steps = max(1, round(length * base.max_steps))
    config = replace(config, max_steps=steps, warmup_steps=round(length * config.warmup_steps),
                     eval_interval=max(1, steps // 4))  # fmt: skip
    return in_own_folder(config, "out/ablate")


def operations(config: Config) -> int:
    """What a step costs, but for a constant factor."""
    vocab_size = load_dataset(config.dataset).tokenizer.vocab_size
    return count_parameters(replace(config, vocab_size=vocab_size)) * config.tokens_per_step


def make(study: Study, base: Config, seeds: int, parallel: int) -> list[dict]:
    """Every run of a study, with its arm and its learning rate."""

    def results(points: list[tuple[str, float, int]], later: int = 0) -> dict[tuple, dict]:
        return run_all({point: config_of(study, base, *point) for point in points}, parallel, later)

    tried = range(1, seeds + 1) if study.every_rate else [SEARCH_SEED]
    points = [(arm, rate, seed) for seed in tried for rate in study.rates for arm in study.arms]
    if not study.every_rate:
        best, ratio = {}, study.rates[1] / study.rates[0]
        while len(best) < len(study.arms):
            found = results(points, later=seeds * len(study.arms))
            for arm in study.arms:
                losses = {
                    rate: loss(result, study.unit)
                    for (a, rate, _), result in found.items()
                    if a == arm
                }
                if (rate := next_rate(losses, ratio)) is None:
                    best[arm] = min(losses, key=losses.get)
                else:
                    points.append((arm, rate, SEARCH_SEED))
        points += [(arm, best[arm], seed) for seed in range(1, seeds + 1) for arm in study.arms]
    return [
        {"arm": arm, "learning_rate": rate, **result}
        for (arm, rate, _), result in results(points).items()
    ]


def next_rate(losses: dict[float, float], ratio: float) -> float | None:
    """The learning rate to try after these: past the edge where the best lies; None once it lies between worse ones."""
    best, low, high = min(losses, key=losses.get), min(losses), max(losses)
    if low < best < high or len(losses) >= MOST_RATES:
        return None
    return low / ratio if best == low else high * ratio


def loss(result: dict, unit: str) -> float:
    return math.inf if result["diverged"] is not None else result[unit]


# ---------------------------------------------------------------------------------------------------------------------
# what a study leaves


def first(study: Study) -> str:
    return next(iter(study.arms))


def rates_of(rows: list[dict], arm: str | None = None) -> list[float]:
    return sorted({row["learning_rate"] for row in rows if arm in (None, row["arm"])})


def losses_at(study: Study, rows: list[dict], arm: str, rate: float) -> list[float]:
    """Of every run of an arm at a learning rate; infinite where it diverged."""
    return [
        loss(row, study.unit) for row in rows if (row["arm"], row["learning_rate"]) == (arm, rate)
    ]


def chosen(study: Study, rows: list[dict], arm: str) -> list[dict]:
    """An arm's runs at its best learning rate, without the one that looked for it."""
    rows = [row for row in rows if row["arm"] == arm and row["seed"] != SEARCH_SEED]
    best = min(rates_of(rows), key=lambda rate: sum(losses_at(study, rows, arm, rate)))
    return [row for row in rows if row["learning_rate"] == best]


def training_time(runs: list[dict]) -> float:
    """The median, in seconds."""
    return statistics.median(row["milliseconds_per_step"] * row["steps"] / 1000 for row in runs)


def difference(study: Study, rows: list[dict], arm: str) -> tuple[float, float] | None:
    """How much higher an arm's loss is than the first one's, in pairs of one seed, and half of its 95% interval."""
    own, reference = (
        {row["seed"]: loss(row, study.unit) for row in chosen(study, rows, a)}
        for a in (arm, first(study))
    )
    pairs = [
        own[seed] - reference[seed]
        for seed in own
        if math.isfinite(own[seed]) and math.isfinite(reference[seed])
    ]
    return interval(pairs) if len(pairs) > 1 else None


def compared(study: Study, rows: list[dict]) -> str:
    """Markdown: each arm at its best learning rate, beside the first one."""
    what = "bits per byte" if study.unit == "bits_per_byte" else "loss"
    columns = [
        "arm",
        "learning rate",
        "n",
        "diverged",
        f"final {what}",
        f"best {what}",
        "difference",
        "95% interval",
    ]
    lines = [columns + ["training [s]"] * study.timed]
    for arm in study.arms:
        runs = chosen(study, rows, arm)
        fine = [row for row in runs if row["diverged"] is None]
        cells = [
            arm,
            f"{runs[0]['learning_rate']:g}",
            f"{len(runs)}",
            f"{len(runs) - len(fine)}",
            *[""] * 4,
        ]
        if len(fine) > 1:
            final = [row[study.unit] for row in fine]
            best = [row["best"] * row[study.unit] / row["final"] for row in fine]
            cells[4:6] = (
                f"{statistics.mean(final):.4f} ± {statistics.stdev(final):.4f}",
                f"{statistics.mean(best):.4f}",
            )
        if arm != first(study) and (found := difference(study, rows, arm)):
            mean, half = found
            cells[6:] = f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}"
        if study.timed:
            cells.append(f"{training_time(runs):.1f}")
        lines.append(cells)
    return markdown(lines)


def by_rate(study: Study, rows: list[dict]) -> str:
    """Markdown: each arm at each learning rate, how many of its runs diverged there, and the highest at which it trains."""
    rates = rates_of(rows)
    lines = [["arm", *(f"{rate:g}" for rate in rates), "trains up to"]]
    for arm in study.arms:
        cells, means = [arm], {}
        for rate in rates:
            losses = losses_at(study, rows, arm, rate)
            fine = list(filter(math.isfinite, losses))
            if losses:
                means[rate] = statistics.mean(losses)
            lost = (
                f"{len(losses) - len(fine)} of {len(losses)} diverged"
                if len(fine) < len(losses)
                else ""
            )
            cells.append(
                ", ".join(filter(None, (f"{statistics.mean(fine):.3f}" if fine else "", lost)))
            )
        trains = max(
            rate for rate, mean in means.items() if mean <= min(means.values()) + TOLERANCE
        )
        lines.append([*cells, f"{trains:g}"])
    return markdown(lines)


def table(study: Study, rows: list[dict]) -> str:
    timed = " Training took the median time of runs side by side." * study.timed
    return (
        f"Each arm at its best learning rate: mean and standard deviation over n seeds, and the difference from "
        f"{first(study)} in pairs of one seed, with its 95% interval.{timed}\n\n{compared(study, rows)}\n\n"
        f"At each learning rate, the mean over the seeds that were tried there, and the highest rate with a mean within "
        f"{TOLERANCE} of the arm's best, up to which it trains:\n\n{by_rate(study, rows)}"
    )


def arms_figure(study: Study, rows: list[dict]) -> Figure:
    """Each seed of each arm at its best learning rate as a dot, and the mean as a line."""
    figure = Figure(figsize=(8, 1 + 0.45 * len(study.arms)), layout="constrained")
    axis = figure.subplots()
    for place, arm in enumerate(study.arms):
        losses = [
            loss(row, study.unit) for row in chosen(study, rows, arm) if row["diverged"] is None
        ]
        color = COLORS[place % len(COLORS)]
        axis.plot(losses, [place] * len(losses), "o", color=color, alpha=0.6)
        if losses:
            axis.plot(
                [statistics.mean(losses)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2
            )
    axis.set_yticks(range(len(study.arms)), list(study.arms))
    axis.invert_yaxis()
    axis.set_xlabel(UNITS[study.unit])
    axis.grid(alpha=0.3, axis="x")
    return figure


def rates_figure(study: Study, rows: list[dict]) -> Figure:
    """Final loss against learning rate: every run, and the mean of each arm as a line; runs that diverged at the top."""
    groups = (
        list(dict.fromkeys(arm.split(", ")[0] for arm in study.arms)) if study.every_rate else [""]
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    fine = [loss(row, study.unit) for row in rows if row["diverged"] is None]
    top = min(max(fine), 2 * min(fine)) + 0.05 * min(fine)
    for group, axis in zip(groups, figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]):
        for arm, color in zip([arm for arm in study.arms if arm.startswith(group)], COLORS):
            rates = rates_of(rows, arm)
            for rate in rates:
                losses = [min(value, top) for value in losses_at(study, rows, arm, rate)]
                axis.plot([rate] * len(losses), losses, "o", color=color, alpha=0.4, markersize=4)
            means = [
                statistics.mean(min(value, top) for value in losses_at(study, rows, arm, rate))
                for rate in rates
            ]
            label = arm.removeprefix(group).removeprefix(", ") or "all as in the base"
            axis.plot(rates, means, color=color, label=label)
        lost = [
            row["learning_rate"]
            for row in rows
            if row["arm"].startswith(group) and row["diverged"] is not None
        ]
        if lost:
            axis.plot(lost, [top] * len(lost), "x", color="black", markersize=9, label="diverged")
        axis.set_xscale("log")
        axis.set_xticks(rates_of(rows), [f"{rate:g}" for rate in rates_of(rows)])
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_title(group)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(UNITS[study.unit])
    entries = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def redraw(study: Study, folder: Path) -> None:
    """Table and figures from the runs that are kept."""
    rows = read_rows(folder / "runs.jsonl")
    (folder / "table.md").write_text(table(study, rows) + "\n", encoding="utf-8")
    rates_figure(study, rows).savefig(folder / "learning_rates.png", dpi=110)
    if not study.every_rate:
        arms_figure(study, rows).savefig(folder / "arms.png", dpi=110)


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.ablate", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    counts = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--seeds", **counts, choices=range(2, 11), help="runs of each arm at its best rate, 2 to 10"
    )
    parser.add_argument("--steps", **counts, help="steps of a run")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, mps; on a GPU the models have 10M parameters"
    )
    parser.add_argument("--parallel", **counts, help="runs at a time (on a CPU: one for each core)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="train nothing: table and figures from runs.jsonl"
    )
    args = parser.parse_args(argv)
    if any(value is not None and value < 1 for value in (args.steps, args.parallel)):
        parser.error("--steps and --parallel must be at least 1")
    study, folder = STUDIES[args.study], args.results / args.study
    if not args.redraw:
        device, _ = pick_device(args.device)
        base = replace(CPU if device.type == "cpu" else GPU, device=str(device))
        if args.steps:
            warmup = base.warmup_steps * args.steps // base.max_steps
            study, base = (
                replace(study, length=1.0),
                replace(base, max_steps=args.steps, warmup_steps=warmup),
            )
        for dataset in {arm.get("dataset", base.dataset) for arm in study.arms.values()}:
            if not is_prepared(dataset):
                prepare(dataset)
        seeds = args.seeds or study.seeds
        seen = STUDENT[seeds] * SPREAD / math.sqrt(seeds)
        print(
            f"{study.question} With {seeds} seeds a difference of about {seen:.3f} nats a token can be told from chance."
        )
        parallel = args.parallel or (os.cpu_count() if device.type == "cpu" else 1)
        write_rows(folder / "runs.jsonl", make(study, base, seeds, parallel))
    redraw(study, folder)
    print((folder / "table.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    raise SystemExit(main())
