"""Which choices matter? Every arm of a study at a learning rate of its own, with the same seeds, compared in pairs.

python -m experiments.ablate norms                     or stability, positions, mlp, tokenizer, optimizer
python -m experiments.ablate norms --redraw            table and figures from the runs that are kept
python -m experiments.ablate norms --steps 50 --seeds 2 --results /tmp/norms     smaller, elsewhere

A study first tries each arm at each learning rate with one seed, and then trains it with the others at its best one.
Broken off, it goes on where it was. It leaves runs.jsonl, table.md and figures in experiments/results/<study>/.
"""

import math
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from cli import Parser, command
from config import Config
from dataset import is_prepared
from experiments.runs import STUDENT, interval, read_rows, run_all, write_rows
from plot import COLORS
from prepare import prepare

RESULTS = Path("experiments/results")
SPREAD = 0.008  # standard deviation of the difference of two runs of one seed, nats: what experiments.recipe found
BASE = Config(
    dataset="shakespeare_char", run_name="run", n_layers=4, n_heads=4, d_model=128, block_size=128, batch_size=16,
    min_lr=0.0, warmup_steps=40, max_steps=400, eval_interval=100, sample_interval=0,
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Arms by name, each a few settings that differ from BASE; the first is what the others are compared with."""

    question: str
    arms: dict[str, dict]
    rates: tuple[float, ...]  # learning rates
    seeds: int
    steps: int = BASE.max_steps
    every_rate: bool = False  # all seeds at every learning rate: then the learning rate is what is asked about
    unit: str = "final"  # of a run's result: the loss that is compared


BYTES = {"dataset": "python_byte"}
STUDIES = {
    "norms": Study(
        "Does it matter which norm there is, and where?",
        {f"{kind}, {place}": {"norm_type": kind, "norm_position": place}
         for kind in ("rmsnorm", "layernorm", "none") for place in ("pre", "post")},
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3), seeds=5,
    ),
    "stability": Study(
        "At which learning rate does it break, and what keeps it from breaking?",
        {f"{place}-LN{what}": {"norm_position": place} | settings
         for place in ("pre", "post")
         for what, settings in {
             "": {}, ", no warmup": {"warmup_steps": 0}, ", no clipping": {"grad_clip": 0.0},
             ", no QK-norm": {"qk_norm": False}, ", no weight decay": {"weight_decay": 0.0}}.items()},
        rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), seeds=2, steps=250, every_rate=True,
    ),
    "positions": Study(
        "How should a token know where it stands?",
        {kind: {"pos_type": kind} for kind in ("rope", "learned", "none")},
        rates=(1e-3, 2e-3, 4e-3, 8e-3), seeds=5,
    ),
    "mlp": Study(
        "Which nonlinearity, at equal parameters?",
        {kind: {"mlp_type": kind, "d_ff": width} for kind, width in (("swiglu", 352), ("gelu", 528), ("relu2", 528))},
        rates=(1e-3, 2e-3, 4e-3, 8e-3), seeds=5,
    ),
    "tokenizer": Study(
        "Characters, bytes or BPE, at equal operations?",
        {"byte": BYTES, "char": {"dataset": "python_char"},
         "bpe": {"dataset": "python_bpe", "d_model": 64, "batch_size": 4}},
        rates=(1e-3, 2e-3, 4e-3, 8e-3), seeds=3, steps=300, unit="bits_per_byte",
    ),
    "optimizer": Study(
        "AdamW or Muon, at equal steps and at equal time?",
        {"adamw": {}, "muon": {"optimizer": "muon"}, "muon, 0.87 of the steps": {"optimizer": "muon", "max_steps": 350}},
        rates=(1e-3, 2e-3, 4e-3, 8e-3), seeds=5,
    ),
}  # fmt: skip


def config_of(name: str, arm: str, rate: float, seed: int, steps: int, device: str) -> Config:
    """The run of an arm; fewer steps than the study's shorten its warmup as well."""
    study = STUDIES[name]
    settings = {"max_steps": study.steps, "warmup_steps": BASE.warmup_steps} | study.arms[arm]
    settings |= {key: settings[key] * steps // study.steps for key in ("max_steps", "warmup_steps")}
    folder = f"out/ablate/{name}/{steps}_steps/{arm}/{rate:g}/{seed}".replace(", ", "-").replace(" ", "_")
    return replace(BASE, **settings, learning_rate=rate, seed=seed, eval_interval=max(1, settings["max_steps"] // 4),
                   device=device, out_dir=folder)  # fmt: skip


def make(name: str, seeds: int, steps: int, device: str, parallel: int) -> list[dict]:
    """Every run of a study, with its arm and its learning rate."""
    study = STUDIES[name]

    def results(points: list[tuple[str, float, int]]) -> dict[tuple, dict]:
        return run_all({point: config_of(name, *point, steps, device) for point in points}, parallel)

    tried = range(1, seeds + 1) if study.every_rate else (1,)
    points = [(arm, rate, seed) for arm in study.arms for rate in study.rates for seed in tried]
    found = results(points)
    if not study.every_rate:
        for arm in study.arms:
            best = min(study.rates, key=lambda rate: loss(found[arm, rate, 1], study.unit))
            points += [(arm, best, seed) for seed in range(2, seeds + 1)]
        found = results(points)
    return [{"arm": arm, "learning_rate": rate, **result} for (arm, rate, _), result in found.items()]


def loss(result: dict, unit: str) -> float:
    return math.inf if result["diverged"] is not None else result[unit]


# ---------------------------------------------------------------------------------------------------------------------
# what a study leaves


def chosen(rows: list[dict], arm: str) -> list[dict]:
    """An arm's runs at the learning rate that has most of them: its best one."""
    rates = [row["learning_rate"] for row in rows if row["arm"] == arm]
    return [row for row in rows if row["arm"] == arm and row["learning_rate"] == statistics.mode(rates)]


def compared(study: Study, rows: list[dict]) -> str:
    """Markdown: each arm at its best learning rate, beside the first one."""
    reference = {row["seed"]: loss(row, study.unit) for row in chosen(rows, next(iter(study.arms)))}
    what = "bits per byte" if study.unit == "bits_per_byte" else "final loss"
    lines = [
        f"| arm | learning rate | n | diverged | {what} | best loss | difference | 95% interval |",
        "|---" * 8 + "|",
    ]
    for arm in study.arms:
        runs = chosen(rows, arm)
        fine = [row for row in runs if row["diverged"] is None]
        line = f"| {arm} | {runs[0]['learning_rate']:g} | {len(runs)} | {len(runs) - len(fine)} |"
        if len(fine) < 2:
            lines.append(line + " | | | |")
            continue
        losses, best = ([row[key] for row in fine] for key in (study.unit, "best"))
        line += f" {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f} | {statistics.mean(best):.4f} |"
        pairs = [row[study.unit] - reference[row["seed"]] for row in fine if math.isfinite(reference[row["seed"]])]
        mean, half = interval(pairs) if len(pairs) > 1 else (math.nan, math.nan)
        first = arm == next(iter(study.arms))
        lines.append(line + (" | |" if first else f" {mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} |"))
    return "\n".join(lines)


def by_rate(study: Study, rows: list[dict]) -> str:
    """Markdown: each arm at each learning rate, and how many of its runs diverged there."""
    lines = ["| arm | " + " | ".join(f"{rate:g}" for rate in study.rates) + " |", "|---" * (1 + len(study.rates)) + "|"]
    for arm in study.arms:
        cells = []
        for rate in study.rates:
            runs = [row for row in rows if row["arm"] == arm and row["learning_rate"] == rate]
            fine = [row[study.unit] for row in runs if row["diverged"] is None]
            lost = f"{len(runs) - len(fine)} of {len(runs)} diverged" if len(fine) < len(runs) else ""
            cells.append(", ".join(filter(None, (f"{statistics.mean(fine):.3f}" if fine else "", lost))))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(name: str, rows: list[dict]) -> str:
    study = STUDIES[name]
    rates = f"At each learning rate, mean over the seeds that were tried there:\n\n{by_rate(study, rows)}"
    return rates if study.every_rate else f"{compared(study, rows)}\n\n{rates}"


def arms_figure(study: Study, rows: list[dict]) -> Figure:
    """Each seed of each arm at its best learning rate as a dot, and the mean as a line."""
    figure = Figure(figsize=(8, 0.6 + 0.5 * len(study.arms)), layout="constrained")
    axis = figure.subplots()
    for place, (arm, color) in enumerate(zip(study.arms, COLORS)):
        losses = [loss(row, study.unit) for row in chosen(rows, arm) if row["diverged"] is None]
        axis.plot(losses, [place] * len(losses), "o", color=color, alpha=0.6)
        if losses:
            axis.plot([statistics.mean(losses)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
    axis.set_yticks(range(len(study.arms)), list(study.arms))
    axis.invert_yaxis()
    axis.set_xlabel("bits per byte" if study.unit == "bits_per_byte" else "final validation loss [nats per token]")
    axis.grid(alpha=0.3, axis="x")
    return figure


def rates_figure(study: Study, rows: list[dict]) -> Figure:
    """Final loss against learning rate, a line for each arm; at the upper edge, crosses for runs that diverged."""
    groups = sorted({arm.split(", ")[0] for arm in study.arms}) if study.every_rate else [""]
    figure = Figure(figsize=(5 + 4 * len(groups), 5), layout="constrained")
    fine = [loss(row, study.unit) for row in rows if row["diverged"] is None]
    top = min(max(fine), 1.6 * min(fine))
    for group, axis in zip(groups, figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]):
        for arm, color in zip([arm for arm in study.arms if arm.startswith(group)], COLORS):
            means = []
            for rate in study.rates:
                runs = [loss(row, study.unit) for row in rows if row["arm"] == arm and row["learning_rate"] == rate]
                shown = [min(value, top) for value in runs]
                axis.plot([rate] * len(runs), shown, "o", color=color, alpha=0.4, markersize=4)
                axis.plot([rate] * sum(map(math.isinf, runs)), [top] * sum(map(math.isinf, runs)), "x", color=color)
                means.append(statistics.mean(shown))
            axis.plot(study.rates, means, color=color, label=arm)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    figure.axes[0].set_ylabel(
        "bits per byte" if study.unit == "bits_per_byte" else "final validation loss [nats per token]"
    )
    return figure


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.ablate", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, help="runs of each arm at its best learning rate")
    parser.add_argument("--steps", type=int, help="steps of a run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    parser.add_argument("--redraw", action="store_true", help="train nothing: table and figures from runs.jsonl")
    args = parser.parse_args(argv)
    study, folder = STUDIES[args.study], args.results / args.study
    seeds, runs = args.seeds or study.seeds, folder / "runs.jsonl"
    if not args.redraw:
        for dataset in {arm.get("dataset", BASE.dataset) for arm in study.arms.values()}:
            if not is_prepared(dataset):
                prepare(dataset)
        seen = STUDENT[max(2, seeds)] * SPREAD / math.sqrt(seeds)
        print(f"{study.question} With {seeds} seeds a difference of about {seen:.3f} nats can be told from chance.")
        rows = make(args.study, seeds, args.steps or study.steps, args.device, args.parallel)
        write_rows(runs, rows)
    rows = read_rows(runs)
    (folder / "table.md").write_text(table(args.study, rows) + "\n", encoding="utf-8")
    rates_figure(study, rows).savefig(folder / "learning_rates.png", dpi=110)
    if not study.every_rate:
        arms_figure(study, rows).savefig(folder / "arms.png", dpi=110)
    print(table(args.study, rows))


if __name__ == "__main__":
    raise SystemExit(main())
