"""Puts what was measured into REPORT.md, and draws its figures.

python -m experiments.report     after experiments.questions, experiments.ablate, experiments.recipe, experiments.scaling

In REPORT.md a number, a table or a text that was measured stands between two comments, <!--name--> and <!---->. Only what
is between them is written anew: whoever ran the studies on a machine of their own gets their numbers in the same places,
and the prose is theirs to change.
"""

import difflib
import json
import math
import re
import statistics
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.cli import Parser, command
from common.errors import UserError
from common.files import read_text
from common.metrics import read_metrics
from config import Config
from experiments import ablate, recipe, scaling
from experiments.questions import RESULTS
from experiments.runs import interval, markdown, plus_minus, read_rows
from plot import COLORS, draw

MARK = re.compile(r"<!--(\S.*?)-->(.*?)<!---->", re.DOTALL)
PATHS = (
    "out_dir",
    "resume",
    "wandb_mode",
    "wandb_project",
    "init_from",
    "vocab_size",
)  # not settings that teach

# ---------------------------------------------------------------------------------------------------------------------
# values, by the names that REPORT.md has for them


def of_the_runs(folder: Path) -> dict[str, str]:
    """What was trained: the checkpoints that experiments.questions was given; the first is the one it looked into."""
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    first, bits, lines = (
        runs[0],
        {},
        [["run", "text", "parameters", "trained on", "training", "loss", "bits per byte"]],
    )
    for run in runs:
        config = Config(**run["config"])
        tokens = run["step"] * config.tokens_per_step
        lines.append([
            config.run_name, f"{config.dataset}, {run['train']['tokens']:,} tokens", f"{run['parameters']:,}",
            f"{tokens:,} tokens, {tokens / run['train']['tokens']:.2g} epochs", f"{run['seconds']:.0f} s",
            f"{run['loss']:.4f}", f"{run['bits_per_byte']:.4f}",
        ])  # fmt: skip
        bits[f"{config.run_name} bits per byte"] = f"{run['bits_per_byte']:.2f}"
    config, default = Config(**first["config"]), Config()
    chosen = {
        field.name: getattr(config, field.name)
        for field in fields(Config)
        if field.name not in PATHS
    }
    settings = [
        f"{name}={value}" for name, value in chosen.items() if value != getattr(default, name)
    ]
    rows = read_metrics(folder / f"{config.run_name}_metrics.jsonl")
    samples = [row for row in rows if "sample" in row] or [{"step": 0, "sample": "(none yet)"}]
    norms = [row["train/grad_norm"] for row in rows if "train/grad_norm" in row]
    values = {
        "machine": first["machine"], "runs": markdown(lines), "settings": fenced(textwrap.fill("  ".join(settings), 100)),
        "parameters": f"{first['parameters']:,}", "loss": f"{first['loss']:.3f}", "seconds": f"{first['seconds']:.0f}",
        "clipped": f"{100 * np.mean(np.array(norms) > config.grad_clip):.1f}%", "largest norm": f"{max(norms):.1f}",
        "warmup": f"{config.warmup_steps}", "epochs": f"{first['step'] * config.tokens_per_step / first['train']['tokens']:.1f}",
    }  # fmt: skip
    values |= bits
    once = first["train"]["tokens"] // config.tokens_per_step  # the steps of the first epoch
    evaluated = [row["step"] for row in rows if "val/loss" in row]
    unread = max((step for step in evaluated if 0 < step <= once), default=evaluated[-1])
    values |= {
        "gap at first": f"{gap(rows, unread):.2f}",
        "gap at last": f"{gap(rows, evaluated[-1]):.2f}",
    }
    for name, row in (("early", samples[0]), ("late", samples[-1])):
        values |= {
            f"{name} step": f"{row['step']:,}",
            f"{name} sample": fenced(row["sample"][:300]),
        }
    return values


def gap(rows: list[dict], step: int, steps: int = 40) -> float:
    """How much higher the validation loss is at a step than the training loss over the steps before it."""
    trained = [
        row["train/loss"]
        for row in rows
        if "train/loss" in row and step - steps <= row["step"] < step
    ]
    return next(
        row["val/loss"] for row in rows if row["step"] == step and "val/loss" in row
    ) - statistics.mean(trained)


def of_the_studies(folder: Path) -> dict[str, str]:
    """Of each study its table, and for each arm its loss and how that differs from the first arm's."""
    values = {}
    for name, study in ablate.STUDIES.items():
        rows = read_rows(folder / name / "runs.jsonl")
        values[f"{name} table"] = ablate.compared(study, rows)
        values[f"{name} rates"] = ablate.by_rate(study, rows)
        for arm in study.arms:
            runs = ablate.chosen(study, rows, arm)
            values[f"{name} n"] = f"{len(runs)}"
            values[f"{name}: {arm}"] = (
                f"{statistics.mean(ablate.loss(row, study.unit) for row in runs):.3f}"
            )
            values[f"{name}: {arm}, seconds"] = f"{ablate.training_time(runs):.1f}"
            if arm != ablate.first(study):
                found = ablate.difference(study, rows, arm)
                values[f"{name}: {arm}, difference"] = plus_minus(*found) if found else "diverged"
            for rate in ablate.rates_of(rows, arm):
                values[f"{name}: {arm} at {rate:g}"] = (
                    f"{statistics.mean(ablate.losses_at(study, rows, arm, rate)):.3f}"
                )
    return values


def of_the_recipe(folder: Path) -> dict[str, str]:
    rows = read_rows(folder / "runs.jsonl")
    lines = [line.strip("| ").split(" | ") for line in recipe.table(rows).splitlines()[3:]]
    return {"recipe table": recipe.table(rows)} | {
        f"recipe: {arm}": difference for arm, _, difference in lines
    }


def of_the_scaling(folder: Path) -> dict[str, str]:
    rows, laws = read_rows(folder / "runs.jsonl"), scaling.read_laws(folder / "laws.json")
    points = scaling.predictions(rows, laws)
    measured = np.array([statistics.mean(point["losses"]) for point in points])
    low, high = np.percentile([point["drawn"] for point in points], [2.5, 97.5], axis=1)
    sizes = [row["parameters"] for row in rows]
    main, drawn = laws[scaling.MAIN]
    values = {
        "rate table": scaling.rate_table(rows), "law table": scaling.law_table(laws),
        "held out table": scaling.held_out_table(rows, laws), "frontier table": scaling.frontier_table(laws),
        "short text table": scaling.short_text_table(rows),
        "rate exponent": f"{scaling.rate_rule(rows)[1]:.2f}".replace("-", "−"),
        "scaling seeds": f"{len({row['seed'] for row in rows if row['part'] == 'fit'})}",
        "smallest": f"{min(sizes):,}", "largest": f"{max(sizes):,}",
        "held out inside": f"{((low < measured) & (measured < high)).sum()} of {len(points)}",
        "growth": f"{growth(main):.2f} ({scaling.spread(list(map(growth, drawn)), 2)})",
        "tenfold": f"{10 ** growth(main):.1f}",
    }  # fmt: skip
    best = {row["parameters"]: row["best"] for row in rows if row["part"] == "short text"}
    longest = {
        point["parameters"]: loss
        for point, loss in zip(points, measured)
        if point["tokens"] == points[-1]["tokens"]
    }
    middle, largest = sorted(longest)[-2:]
    values |= {f"short text {place}": f"{loss:.3f}" for place, loss in enumerate(best.values(), 1)}
    values |= {f"size {place}": f"{parameters:,}" for place, parameters in enumerate(best, 1)}
    values |= {"gain on short text": f"{best[middle] - best[largest]:.3f}",
               "gain on long text": f"{longest[middle] - longest[largest]:.3f}"}  # fmt: skip
    for name, (law, _) in laws.items():
        missed = np.abs([point["predicted"][name] for point in points] - measured)
        values |= {f"alpha {name}": f"{law.alpha:.2f}", f"largest miss {name}": f"{missed.max():.3f}",
                   f"miss of the largest {name}": f"{missed[-1]:.3f}"}  # fmt: skip
        for operations in (1e13, 1e14, 1e15):
            N = law.best_parameters(operations)
            values[f"ratio {name} at {operations:.0e}"] = f"{operations / 6 / N**2:.0f}"
            values[f"loss {name} at {operations:.0e}"] = f"{law(N, operations / 6 / N):.2f}"
    return values


def growth(law: scaling.Law) -> float:
    """The power of the operations that the best number of parameters grows with."""
    return law.beta / (law.alpha + law.beta)


def over_seeds(rows: list[dict], name: str) -> str:
    """The mean, and half of its 95% interval."""
    mean, half = interval([row[name] for row in rows])
    return f"{mean:.3f} ± {half:.3f}"


def of_the_questions(folder: Path) -> dict[str, str]:
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    inside, positions = measured["checkpoint"], np.array(measured["checkpoint"]["positions"])
    heads = np.array(inside["heads"])  # (layers, heads, distance)
    near = heads[..., :8].sum(-1)
    first, last = inside["stream"][0], inside["stream"][-1]
    decay = [1 - row["with"] / row["without"] for row in measured["weight_decay"]]
    values = {
        "loss on windows": f"{inside['loss']:.3f}", "loss unscaled": f"{inside['loss_unscaled']:.3f}",
        "moved before": f"{inside['mask']['before']:g}", "moved from": f"{inside['mask']['from']:.2f}",
        "heads": f"{near.size}", "heads on the one before": f"{(heads.argmax(-1) == 1).sum()}",
        "near": f"{100 * near.mean():.0f}%", "nearest": f"{100 * near.max():.0f}%", "farthest": f"{100 * near.min():.0f}%",
        "read at once": f"{first['loss']:.1f}", "stream growth": f"{last['size'] / first['size']:.0f}",
        "scores table": scores_table(measured["scores"]), "stream table": stream_table(inside["stream"]),
        "loss by position": positions_table(positions), "gradients table": gradients_table(measured["gradients"]),
        "tokens table": tokens_table(measured["tokenizers"]), "decayed": f"{100 * statistics.mean(decay):.0f}%",
    }  # fmt: skip
    for name in ("scaling_of_scores", "without_mask"):
        values |= {f"{name}: {key}": over_seeds(measured[name], key) for key in measured[name][0]}
    for norm, times in measured["norm_times"].items():
        values[f"{norm} step"] = f"{statistics.median(times):.1f}"
    apart = [row["plain"] - row["scaled"] for row in measured["scaling_of_scores"]]
    return values | {"scaling_of_scores: difference": plus_minus(*interval(apart))}


def scores_table(rows: list[dict]) -> str:
    lines = [
        [
            "channels of a head",
            "deviation of the scores",
            "largest weight of 128 keys",
            "the same, scores / √D",
        ]
    ]
    lines += [
        [
            f"{row['head_dim']}",
            f"{row['deviation']:.1f}",
            f"{row['plain']:.2f}",
            f"{row['scaled']:.2f}",
        ]
        for row in rows
    ]
    return markdown(lines)


def stream_table(rows: list[dict]) -> str:
    lines = [
        [
            "read after",
            "size (RMS)",
            "added by attention",
            "added by the MLP",
            "loss of the head there",
        ]
    ]
    for layer, row in enumerate(rows):
        added = [f"{row[name]:.2f}" if name in row else "" for name in ("attention", "mlp")]
        lines.append(
            [
                f"block {layer}" if layer else "the embedding",
                f"{row['size']:.2f}",
                *added,
                f"{row['loss']:.3f}",
            ]
        )
    return markdown(lines)


def positions_table(losses: np.ndarray) -> str:
    """Mean loss of the predictions that stand on so many tokens."""
    edges = [2**power for power in range(int(math.log2(len(losses))) + 1)]
    lines = [
        ["tokens to go by", *(f"{low} to {2 * low - 1}" if low > 1 else "1" for low in edges[:-1])]
    ]
    lines.append(["loss", *(f"{losses[low - 1 : 2 * low - 1].mean():.2f}" for low in edges[:-1])])
    return markdown(lines)


def gradients_table(seeds: list[dict]) -> str:
    """Medians over the seeds."""
    lines = [
        [
            "step",
            *(
                f"{place}-norm: {what}"
                for place in ("pre", "post")
                for what in ("loss", "first block", "last block")
            ),
        ]
    ]
    for i, row in enumerate(seeds[0]["pre"]):
        cells = [f"{row['step']}"]
        for place in ("pre", "post"):
            found = [
                (seed[place][i]["loss"], seed[place][i]["norms"][0], seed[place][i]["norms"][-1])
                for seed in seeds
            ]
            cells += [
                f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
                for value in np.median(found, axis=0)
            ]
        lines.append(cells)
    return markdown(lines)


def tokens_table(rows: list[dict]) -> str:
    lines = [["tokenizer", "vocabulary", "bytes per token"]]
    lines += [
        [row["tokenizer"], f"{row['vocabulary']:,}", f"{row['bytes'] / row['tokens']:.2f}"]
        for row in rows
    ]
    return markdown(lines)


def values(results: Path) -> dict[str, str]:
    """All that REPORT.md can name. Raises UserError where something was not measured yet."""
    parts = {"trained": of_the_runs, "questions": of_the_questions, "recipe": of_the_recipe, "scaling": of_the_scaling,
             "": of_the_studies}  # fmt: skip
    found = {}
    try:
        for name, part in parts.items():
            new = part(results / name)
            assert not found.keys() & new.keys(), found.keys() & new.keys()
            found |= new
        return found
    except OSError as error:
        raise UserError(
            f"can't read {error.filename}: the programs in experiments/ make it"
        ) from None


def fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def fill(text: str, found: dict[str, str]) -> str:
    """The text with the values between its marks. Raises UserError where one is not known."""

    def put(match: re.Match) -> str:
        name, old = match.groups()
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            raise UserError(
                f"REPORT.md asks for {name!r}, which nobody measures{f'; near is {near[0]!r}' if near else ''}"
            )
        line = "\n" if "\n" in found[name] else ""
        return f"<!--{name}-->{line}{found[name]}{line}<!---->"

    return MARK.sub(put, text)


# ---------------------------------------------------------------------------------------------------------------------
# figures


def heads_figure(heads: np.ndarray) -> Figure:
    """How much each head (layers, heads, distance) attends to the token at each distance back."""
    layers, count, distances = heads.shape
    figure = Figure(figsize=(8, 0.6 + 0.22 * layers * count), layout="constrained")
    axis = figure.subplots()
    shown = min(32, distances)
    image = axis.imshow(
        heads.reshape(-1, distances)[:, :shown], aspect="auto", cmap="viridis", vmin=0, vmax=0.5
    )
    for layer in range(1, layers):
        axis.axhline(layer * count - 0.5, color="white", linewidth=1.5)
    axis.set_yticks(
        [layer * count + (count - 1) / 2 for layer in range(layers)],
        [f"block {layer + 1}" for layer in range(layers)],
    )
    axis.set_xlabel("tokens back (0: itself)")
    figure.colorbar(image, label="share of the attention", extend="max")
    return figure


def gradients_figure(seeds: list[dict]) -> Figure:
    """Gradient norm of each block before some steps, pre- and post-norm side by side; the median over the seeds."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axis, place in zip(figure.subplots(1, 2, sharey=True), ("pre", "post")):
        for i, color in zip(range(len(seeds[0][place])), COLORS):
            norms = np.median([seed[place][i]["norms"] for seed in seeds], axis=0)
            axis.plot(
                range(1, len(norms) + 1),
                norms,
                "o-",
                color=color,
                markersize=4,
                label=f"step {seeds[0][place][i]['step']}",
            )
        axis.set_yscale("log")
        axis.set_title(f"{place}-norm")
        axis.set_xlabel("block")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("gradient norm of the block")
    figure.axes[1].legend(frameon=False, fontsize=9)
    return figure


def redraw(results: Path) -> None:
    """Every figure that REPORT.md shows, and the tables beside them."""
    for name, study in ablate.STUDIES.items():
        ablate.redraw(study, results / name)
    scaling.redraw(results / "scaling")
    first = json.loads((results / "trained" / "runs.json").read_text(encoding="utf-8"))[0][
        "config"
    ]["run_name"]
    draw([results / "trained" / f"{first}_metrics.jsonl"], results / "trained" / "curves.png")
    measured = json.loads((results / "questions" / "measured.json").read_text(encoding="utf-8"))
    heads_figure(np.array(measured["checkpoint"]["heads"])).savefig(
        results / "questions" / "heads.png", dpi=110
    )
    gradients_figure(measured["gradients"]).savefig(
        results / "questions" / "gradients.png", dpi=110
    )


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--report", type=Path, default=Path("REPORT.md"), help="file (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    text = fill(read_text(args.report), values(args.results))
    redraw(args.results)
    args.report.write_text(text, encoding="utf-8")
    print(f"{args.report}: {len(MARK.findall(text))} measured values")


if __name__ == "__main__":
    raise SystemExit(main())
