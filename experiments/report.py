"""Puts tables, samples and headline numbers into REPORT.md, and draws its figures.

python -m experiments.report    after experiments.questions, .ablate (every study) and .scaling

In REPORT.md such a value is between two comments, <!--name--> and <!---->. Only these values are
replaced; everything else is prose to be edited by hand.
"""

import difflib
import re
import statistics
from pathlib import Path

import numpy as np

from common.cli import Parser, command
from common.errors import UserError
from common.files import read_text
from common.metrics import read_metrics
from config import Config
from experiments import ablate, questions, scaling
from experiments.runs import RESULTS, interval, markdown, plus_minus, read_rows

MARK = re.compile(r"<!--(\S.*?)-->(.*?)<!---->", re.DOTALL)


def run_values(results: Path) -> dict[str, str]:
    """What was trained: the checkpoints measured by experiments.questions. The first one leads."""
    lines = []
    for run in questions.read_runs(results):
        config, corpus = Config(**run["config"]), run["train"]["tokens"]
        tokens = run["step"] * config.tokens_per_step
        line = {
            "run": config.run_name,
            "text": f"{config.dataset}, {corpus:,} tokens",
            "parameters": f"{run['parameters']:,}",
            "trained on": f"{tokens:,} tokens, {tokens / corpus:.2g} epochs",
            "training": f"{run['seconds']:.0f} s",
            "loss": f"{run['loss']:.4f}",
            "bits per byte": f"{run['bits_per_byte']:.4f}",
        }
        lines.append(line)
    first = questions.read_runs(results)[0]
    metrics = results / "trained" / f"{first['config']['run_name']}_metrics.jsonl"
    samples = [row["sample"] for row in read_metrics(metrics) if "sample" in row] or ["(none)"]
    return {
        "machine": first["machine"],
        "runs": markdown(lines),
        "loss": f"{first['loss']:.3f}",
        "seconds": f"{first['seconds']:.0f}",
        "early sample": f"```text\n{samples[0][:300].strip()}\n```",
        "late sample": f"```text\n{samples[-1][:300].strip()}\n```",
    }


def study_values(results: Path) -> dict[str, str]:
    """Of each study its tables, each arm's difference from the first, and losses at each rate."""
    values = {}
    for name, study in ablate.STUDIES.items():
        rows = read_rows(results / name / "runs.jsonl")
        if not study.rates:
            values[f"{name} table"] = ablate.change_table(study, rows)
        else:
            values[f"{name} table"] = ablate.comparison_table(study, rows)
            values[f"{name} rates"] = ablate.rate_table(study, rows)
        for arm in study.arms:
            if pair := ablate.difference(study, rows, arm):
                values[f"{name}: {arm}"] = plus_minus(*pair)
            for rate in ablate.rates_of(rows, arm):
                mean = statistics.mean(ablate.losses_at(study, rows, arm, rate))
                values[f"{name}: {arm} at {rate:g}"] = f"{mean:.3f}"
    return values


def scaling_values(results: Path) -> dict[str, str]:
    rows = read_rows(results / "scaling" / "runs.jsonl")
    laws = scaling.read_laws(results / "scaling" / "laws.json")
    law, resampled = laws[scaling.MAIN]

    points = scaling.predictions(rows, laws)
    measured = np.array([statistics.mean(point["losses"]) for point in points])
    bootstrap = [point["bootstrap"] for point in points]
    low, high = np.percentile(bootstrap, [2.5, 97.5], axis=1)
    inside = (low < measured) & (measured < high)
    growth = scaling.middle_95([other.growth for other in resampled], 2)
    values = {
        "rate exponent": f"{scaling.rate_rule(rows)[1]:.2f}".replace("-", "−"),
        "held out inside": f"{inside.sum()} of {len(points)}",
        "growth": f"{law.growth:.2f} ({growth})",
    }
    for name in laws:
        predicted = np.array([point["predicted"][name] for point in points])
        values[f"largest miss {name}"] = f"{np.abs(predicted - measured).max():.3f}"

    # what the largest size gains over the one that is about a fifth of it, on each text
    short = {row["parameters"]: row["best"] for row in rows if row["part"] == "short text"}
    budget = max(point["tokens"] for point in points)
    long = {
        point["parameters"]: loss
        for point, loss in zip(points, measured)
        if point["tokens"] == budget
    }
    smaller, largest = sorted(long)[-2:]
    values["gain on short text"] = f"{short[smaller] - short[largest]:.3f}"
    values["gain on long text"] = f"{long[smaller] - long[largest]:.3f}"
    return values | scaling.report_tables(rows, laws)


def question_values(results: Path) -> dict[str, str]:
    measured = questions.read_measured(results)
    inside, scores = measured["checkpoint"], measured["scaling_of_scores"]
    near = np.array(inside["heads"])[..., :8].sum(-1)
    seen, hidden = (
        interval([row[key] for row in measured["without_mask"]]) for key in ("seen", "hidden")
    )
    return {
        "loss unscaled": f"{inside['loss_unscaled']:.3f}",
        "scaling of scores": plus_minus(
            *interval([row["plain"] - row["scaled"] for row in scores])
        ),
        "without mask, seen": "{:.3f} ± {:.3f}".format(*seen),
        "without mask, hidden": "{:.3f} ± {:.3f}".format(*hidden),
        "near": f"{100 * near.mean():.0f}%",
        **questions.report_tables(measured),
    }


def all_values(results: Path) -> dict[str, str]:
    """Everything that REPORT.md can contain, by name. Raises UserError if a study is missing."""
    values = {}
    try:
        for part in (run_values, study_values, scaling_values, question_values):
            values |= part(results)
    except OSError as error:
        raise UserError(
            f"can't read {error.filename}: run the programs in experiments/ first"
        ) from None
    return values


def fill(text: str, values: dict[str, str]) -> str:
    """The text with new values between its marks. Raises UserError if a name is unknown."""

    def replacement(match: re.Match) -> str:
        name = match[1]
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"REPORT.md uses the unknown value {name!r}{hint}")
        newline = "\n" if "\n" in values[name] else ""
        return f"<!--{name}-->{newline}{values[name]}{newline}<!---->"

    return MARK.sub(replacement, text)


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
    text = fill(read_text(args.report), all_values(args.results))
    for name in ablate.STUDIES:
        ablate.redraw(name, args.results)
    scaling.redraw(args.results)
    questions.redraw(args.results)
    args.report.write_text(text, encoding="utf-8")
    print(f"{args.report}: {len(MARK.findall(text))} measured values")


if __name__ == "__main__":
    raise SystemExit(main())
