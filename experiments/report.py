"""Puts tables, figures, samples and headline numbers of whatever was measured into a report.

python -m experiments.report --results DIR    after experiments.ablate, .scaling or .questions

The first run creates the report from experiments/outline.md. Each measured value is enclosed in a
pair of comments, <!--name--> and <!---->. Later runs update only these values, so you can edit the
rest by hand.
"""

import difflib
import os
import re
import statistics
import urllib.parse
from dataclasses import fields
from functools import partial
from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from common.cli import Parser, command
from common.errors import UserError
from common.files import read_text, write_bytes
from common.metrics import read_metrics
from config import Config
from experiments import ablate, figures, questions, scaling
from experiments.runs import add_results, interval, markdown, plus_minus, read_json, read_rows
from model import flops_per_token

OUTLINE = Path(__file__).with_name("outline.md")
Values = dict[str, str | Figure]  # texts by name; figures by the name of their file

# -------------------------------------------------------------------------------------------------
# the values of each part


def config_of(run: dict) -> Config:
    """The settings of a measured run, without those that no longer exist."""
    known = {field.name for field in fields(Config)}
    return Config(**{name: value for name, value in run["config"].items() if name in known})


def trained_values(folder: Path) -> Values:
    """What was trained: the checkpoints measured by experiments.questions. The first one leads."""
    runs, lines, memorized = read_json(folder / "runs.json"), [], []
    for run in runs:
        config, corpus = config_of(run), run["train"]["tokens"]
        tokens = run["step"] * config.tokens_per_step
        epochs = tokens / corpus
        line = {
            "run": config.run_name,
            "text": f"{config.dataset}, {corpus:,} tokens",
            "parameters": f"{run['parameters']:,}",
            "trained on": f"{tokens:,} tokens, {epochs:{'.0f' if epochs >= 10 else '.2g'}} epochs",
            "training": duration(run["seconds"]),
            "loss": f"{run['loss']:.4f}",
            "bits per byte": f"{run['bits_per_byte']:.4f}",
        }
        lines.append(line)
        if measured := run.get("memorized"):
            line = {
                "run": config.run_name,
                "loss on training text": f"{measured['train_loss']:.3f}",
                "on validation text": f"{measured['val_loss']:.3f}",
                "longest repetition in a sample": f"{measured['median']:g} characters",
                "in a passage of validation text": f"{measured['validation_median']:g}",
            }
            memorized.append(line)

    # the first run in detail
    run, config = runs[0], config_of(runs[0])
    rows = read_metrics(folder / f"{config.run_name}_metrics.jsonl")
    if "sample" in rows[-1]:
        rows[-1]["step"] = run["step"]  # a finished run ends with a sample of its best model
    samples = [
        f"After {row['step']:,} steps:\n\n{code_block(row['sample'].strip())}"
        for row in rows
        if "sample" in row
    ] or ["(no sample)"]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    gaps = []  # of each evaluation, to the training loss of up to 50 steps before
    for row in rows:
        before = [losses[step] for step in range(row["step"] - 50, row["step"]) if step in losses]
        if "val/loss" in row and before:
            gaps.append(row["val/loss"] - statistics.mean(before))
    norms = np.array([row["train/grad_norm"] for row in rows if "train/grad_norm" in row])
    flops = flops_per_token(config) * config.tokens_per_step * run["step"]
    return {
        "runs": markdown(lines),
        "memorized": markdown(memorized) if memorized else "(no run read its text more than once)",
        "parameters": f"{run['parameters']:,}",
        "training": duration(run["seconds"]),
        "FLOPs": f"{flops:.1e}".replace("+", ""),
        "loss": f"{run['loss']:.3f}",
        "early gap": f"{gaps[0]:.2f}" if gaps else "(not evaluated)",
        "late gap": f"{gaps[-1]:.2f}" if gaps else "(not evaluated)",
        "largest gradient": f"{norms.max():.1f}",
        "clipped": f"{(norms > (config.grad_clip or np.inf)).mean():.1%}",
        "early sample": samples[0],
        "late sample": samples[-1],
        "curves.png": figures.run_curves(config.run_name, rows, config.grad_clip),
    }


def code_block(text: str) -> str:
    """The text as a block of code in Markdown, whatever backticks it has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def duration(seconds: float) -> str:
    """Such as 143 s, 12 min or 5.2 h."""
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def question_values(folder: Path) -> Values:
    measured = read_json(folder / "measured.json")
    inside, heads = measured["checkpoint"], np.array(measured["checkpoint"]["heads"])
    near, scores = figures.near(heads), measured["scores"]
    unscaled = {
        norm: [row[f"plain{norm}"] - row[f"scaled{norm}"] for row in measured["scaling_of_scores"]]
        for norm in ("", ", QK-norm")
    }
    shrunk = statistics.mean(row["with"] / row["without"] for row in measured["weight_decay"])
    seen, hidden = (
        interval([row[key] for row in measured["without_mask"]]) for key in ("seen", "hidden")
    )
    return {
        "loss": f"{inside['loss']:.3f}",
        "loss unscaled": f"{inside['loss_unscaled']:.3f}",
        "largest weights": (
            f"{scores[0]['plain']:.2f} with {scores[0]['head_dim']} channels and"
            f" {scores[-1]['plain']:.2f} with {scores[-1]['head_dim']:,}; of divided scores,"
            f" {scores[-1]['scaled']:.2f}"
        ),
        "scaling of scores": plus_minus(*interval(unscaled[", QK-norm"])),
        "scaling of scores, no QK-norm": plus_minus(*interval(unscaled[""])),
        "moved": f"{inside['mask']['from']:.2f}",
        "rmsnorm": f"{statistics.median(measured['norm_times']['rmsnorm']):.1f} ms",
        "layernorm": f"{statistics.median(measured['norm_times']['layernorm']):.1f} ms",
        "weight decay": f"{1 - shrunk:.0%}",
        "without mask, seen": "{:.3f} ± {:.3f}".format(*seen),
        "without mask, hidden": "{:.3f} ± {:.3f}".format(*hidden),
        "to the one before": f"{(heads.argmax(-1) == 1).sum()} of {near.size}",
        "near": f"{near.mean():.0%}",
        "nearest": f"{near.max():.0%}",
        "widest": f"{near.min():.0%}",
        "heads.png": figures.attention(heads),
        "gradients.png": figures.gradients(measured["gradients"]),
        **questions.report_tables(measured),
    }


def scaling_values(folder: Path) -> Values:
    rows, laws = read_rows(folder / "runs.jsonl"), scaling.read_laws(folder / "laws.json")
    law, _ = laws[scaling.MAIN]

    points = scaling.predictions(rows, laws)
    measured = np.array([statistics.mean(point["losses"]) for point in points])
    low, high = np.percentile([point["bootstrap"] for point in points], [2.5, 97.5], axis=1)
    misses = {
        name: max(np.abs([point["predicted"][name] for point in points] - measured))
        for name in laws
    }

    # what the largest size gains over the one that is about a fifth of it, on each text
    short = {row["parameters"]: row["best"] for row in rows if row["part"] == "short text"}
    budget = max(point["tokens"] for point in points)
    long = {
        point["parameters"]: loss
        for point, loss in zip(points, measured)
        if point["tokens"] == budget
    }

    def gain(losses: dict[int, float]) -> str:
        sizes = (scaling.SIZES[3], scaling.SIZES[-1])
        counts = [scaling.parameter_counts(size, scaling.VOCAB_SIZE)[0] for size in sizes]
        smaller, largest = map(losses.get, counts)
        return f"{smaller - largest:.3f}" if smaller and largest else "(a run diverged)"

    def growth(name: str) -> str:
        law, resampled = laws[name]
        return f"{law.growth:.2f} ({scaling.middle_95([other.growth for other in resampled], 2)})"

    def tenfold(name: str) -> str:
        law, _ = laws[name]
        return f"{law.best_loss(1e14):.2f} to {law.best_loss(1e15):.2f}"

    return {
        "rate exponent": f"{scaling.rate_rule(rows)[1]:.2f}".replace("-", "−"),
        "inside": f"{((low < measured) & (measured < high)).sum()} of {len(points)}",
        "growth": growth(scaling.MAIN),
        "growth without the shortest budget": growth("without the shortest budget"),
        "tenfold compute": tenfold(scaling.MAIN),
        "tenfold size": f"{10**law.growth:.1f} times",
        "tenfold compute without the shortest budget": tenfold("without the shortest budget"),
        "gain on short text": gain(short),
        "gain on long text": gain(long),
        "law.png": figures.law(rows, laws),
        "short_text.png": figures.short_text(rows),
        "tables": scaling.tables(rows, laws),
        **{f"largest miss {name}": f"{miss:.3f}" for name, miss in misses.items()},
        **scaling.report_tables(rows, laws),
    }


def study_values(name: str, folder: Path) -> Values:
    """A study's table, each arm's difference from the first, and mean losses at each rate."""
    study, rows = ablate.STUDIES[name], read_rows(folder / "runs.jsonl")
    values = {"tables": ablate.tables(study, rows)}
    if not study.rates:
        values["early and late"] = ablate.early_and_late_table(study, rows)
    if study.unit == "bits_per_byte":
        values["vocabularies"] = ablate.vocabulary_table(study, rows)
    for arm in ablate.arms_of(study, rows):
        if arm != study.first:
            pair = ablate.difference(study, rows, arm)
            why_not = f"({ablate.why_not_compared(study, rows, arm)})"
            values[arm] = plus_minus(*pair) if pair else why_not
        for rate in ablate.rates_of(rows, arm):
            mean = statistics.mean(ablate.losses_at(study, rows, arm, rate))
            values[f"{arm} at {rate:g}"] = f"{mean:.3f}"
    if study.rates and not study.search and any(row["diverged"] is None for row in rows):
        values["learning_rates.png"] = figures.learning_rates(study, rows)
    return values


def all_studies(results: Path) -> Values:
    """All studies in one figure, and their tables."""
    studies = {
        name: (study, read_rows(results / name / "runs.jsonl"))
        for name, study in ablate.STUDIES.items()
        if (results / name).is_dir()
    }
    tables = [
        f"**{name}: {study.question}**\n\n{ablate.comparison_table(study, rows)}"
        for name, (study, rows) in studies.items()
    ]
    arms = sum(len(ablate.arms_of(study, rows)) - 1 for study, rows in studies.values())
    return {
        "tables": "\n\n".join(tables),
        "comparisons": f"{arms}",
        "forest.png": figures.forest(studies),
    }


# a part is a folder of the results: the program that makes it, and what gives its values
QUESTIONS = "questions out/capstone_best.pt"
PARTS = {
    **{name: (f"ablate {name}", partial(study_values, name)) for name in ablate.STUDIES},
    "scaling": ("scaling", scaling_values),
    "trained": (QUESTIONS, trained_values),
    "questions": (QUESTIONS, question_values),
}


NAMES = "|".join([*PARTS, "studies"])
MARK = re.compile(rf"<!--((?:{NAMES}): [^>\n]+)-->(.*?)<!---->", re.DOTALL)


def all_values(results: Path) -> Values:
    """All that a report can contain, by name: "<part>: <value>". Raises UserError.

    Parts without a folder have no values.
    """
    values, found = {}, [part for part in PARTS if (results / part).is_dir()]
    if not found:
        programs = "experiments.ablate, experiments.scaling or experiments.questions"
        raise UserError(f"there are no results in {results}: run {programs} first")
    for part in found:
        program, values_of = PARTS[part]
        try:
            of_part = values_of(results / part)
        except FileNotFoundError as error:
            message = f"there is no {error.filename}: run python -m experiments.{program}"
            raise UserError(message) from None
        except KeyError as error:
            message = f"{results / part} is incomplete, or from an older version: no {error}"
            raise UserError(f"{message}: run python -m experiments.{program}") from None
        values |= {f"{part}: {name}": value for name, value in of_part.items()}
    if ablate.STUDIES.keys() & found:
        values |= {f"studies: {name}": value for name, value in all_studies(results).items()}
    return values


def not_measured(part: str) -> str:
    program = "ablate norms" if part == "studies" else PARTS[part][0]
    return f"*not measured yet: `python -m experiments.{program}`*"


# -------------------------------------------------------------------------------------------------
# the report


def place_of(name: str) -> str:
    """Where in the folder of results the figure of this name is."""
    return name.removeprefix("studies: ").replace(": ", "/")


def title_of(figure: Figure) -> str:
    """The title of a figure, or those of its panels."""
    return figure.get_suptitle() or ". ".join(axis.get_title("left") for axis in figure.axes)


def all_tables(values: Values) -> str:
    """tables.md: the tables of all parts."""
    tables = {part: values.get(f"{part}: tables") for part in PARTS}
    return "\n".join(f"# {part}\n\n{text}\n" for part, text in tables.items() if text)


def fill(text: str, values: dict[str, str]) -> str:
    """The text with new values between its marks. Raises UserError if a name is unknown, or a mark
    has no end.

    Values of a part that was not measured say how to measure it. If a mark starts a line, its value
    goes on separate lines, because Markdown treats the rest of such a line as HTML.
    """
    measured = {name.split(": ")[0] for name in values}
    marks = re.findall(rf"<!--(?:(?:{NAMES}): [^>\n]+)?-->", text)
    for mark, end in zip_longest(marks[::2], marks[1::2]):
        if mark == "<!---->" or end != "<!---->":
            where = "no <!----> after it"
            if mark == "<!---->":
                where = f"no mark before it (the parts are {', '.join([*PARTS, 'studies'])})"
            raise UserError(f"the report can't be updated: {mark} has {where}")

    def replacement(match: re.Match) -> str:
        name = match[1]
        part = name.split(": ")[0]
        if name in values:
            value = values[name]
        elif part in {*PARTS, "studies"} - measured:
            value = not_measured(part)
        else:
            near = difflib.get_close_matches(name, values, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"the report uses the unknown value {name!r}{hint}")
        newline = "\n" if text[: match.start()].endswith("\n") else ""
        return f"<!--{name}-->{newline}{value}{newline}<!---->"

    return MARK.sub(replacement, text)


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.report", description=__doc__)
    add_results(parser)
    parser.add_argument(
        "--report", type=Path, help="Markdown file (default: REPORT.md in the folder of results)"
    )
    args = parser.parse_args(argv)
    report = args.report or args.results / "REPORT.md"
    text = read_text(report if report.exists() else OUTLINE)
    with matplotlib.rc_context(figures.STYLE):
        values = all_values(args.results)
        fill(text, dict.fromkeys(values, ""))  # before anything is written: are all names known?
        for name, value in values.items():
            if isinstance(value, Figure):
                path = args.results / place_of(name)
                value.savefig(path)
                link = Path(os.path.relpath(path, report.parent)).as_posix()
                values[name] = f"![{title_of(value)}]({urllib.parse.quote(link)})"
    text = fill(text, values)
    write_bytes(report, text.encode())
    write_bytes(args.results / "tables.md", all_tables(values).encode())
    count = sum(name in values for name, _ in MARK.findall(text))
    print(f"wrote {report}: {count} measured values")
    missing = [PARTS[part][0] for part in PARTS if not (args.results / part).is_dir()]
    if missing:
        print("not measured yet:", *dict.fromkeys(missing), sep="\n  python -m experiments.")


if __name__ == "__main__":
    raise SystemExit(main())
