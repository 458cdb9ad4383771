"""Draws curves of runs from their metrics files: loss, learning rate, gradient norm.

python plot.py out/*_metrics.jsonl [--x tokens] [--out curves.png]
"""

import gc
import io
import re
import warnings
from pathlib import Path

import numpy as np

from common.cli import Parser, command
from common.errors import UserError, one_line
from common.files import expand, write_bytes
from common.metrics import read_metrics

PANELS = {
    "train/loss": "loss (nats per token)",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
}
AXES = {"step": "step", "tokens": "training tokens", "seconds": "seconds of training"}
# Okabe and Ito's palette, which color-blind people can tell apart
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", ":", "-."]  # for more runs than colors
VALIDATION = {"marker": "o", "markersize": 4, "linewidth": 0.7}


def series(rows: list[dict], key: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """The x and y values of a curve, from the rows that have both."""
    points = [(row[x], row[key]) for row in rows if key in row and x in row]
    xs, ys = np.array(points, dtype=float).reshape(-1, 2).T
    return xs, ys


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over the nearest 2% of the points, to show the trend in the noise; fewer near the ends.

    Centered on each point: a mean over the points before it would lie above a falling loss. Only
    the last values have no points after them: the very last is a mean over the last 1%.
    """
    total = np.cumsum(np.insert(values, 0, 0.0))
    centers = np.arange(len(values))
    reach = np.minimum(len(values) // 100, centers // 4)
    starts, ends = centers - reach, np.minimum(centers + reach + 1, len(values))
    return (total[ends] - total[starts]) / (ends - starts)


def sentence(name: str, rows: list[dict]) -> str:
    """What a run's curves show, as their title; nothing before its first evaluation."""
    _, losses = series(rows, "train/loss")
    evaluated, val_losses = series(rows, "val/loss")
    _, whole_losses = series(rows, "val/whole_loss")
    if not len(losses) or not evaluated.any():  # step 0 is before training
        return ""
    steps = max(row["step"] + ("train/loss" in row) for row in rows)
    best = whole_losses[-1] if len(whole_losses) else val_losses.min()
    return (
        f"{name}: validation loss {best:.3f} at best,"
        f" training loss {smooth(losses)[-1]:.3f} after {steps:,} steps"
    )


def run_names(paths: list[Path]) -> list[str]:
    """The names of the runs, with the folder if two runs have the same name."""
    names = [re.sub(r"_metrics(\.prev)?\.jsonl$", r"\1", path.name) for path in paths]
    names = [
        str(path.parent / name) if names.count(name) > 1 else name
        for path, name in zip(paths, names)
    ]
    return [name.encode("utf-8", "replace").decode() for name in names]  # fonts need valid UTF-8


def curves(runs: dict[str, list[dict]], x: str = "step"):
    """A matplotlib Figure of runs, rows of metrics by the run's name, raw and smoothed."""
    from matplotlib.figure import Figure  # here, because it slows the start of train.py
    from matplotlib.lines import Line2D

    # one panel for the loss, and one for anything else that any run has measured
    measured = {key for rows in runs.values() for row in rows for key in row}
    keys = [key for key in PANELS if key == "train/loss" or key in measured]
    figure = Figure(figsize=(8, 2 + 2 * len(keys)), layout="none")
    axes = figure.subplots(
        len(keys), 1, sharex=True, squeeze=False, height_ratios=(2, 1, 1)[: len(keys)]
    )[:, 0]
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.06, top=0.95, hspace=0.08)

    for i, rows in enumerate(runs.values()):
        color, line = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        for axis, key in zip(axes, keys):
            xs, ys = series(rows, key, x)
            if key == "train/lr":
                axis.plot(xs, ys, color=color, linestyle=line)
            else:
                axis.plot(xs, ys, color=color, alpha=0.25, linewidth=0.7)
                axis.plot(xs, smooth(ys), color=color, linestyle=line, linewidth=1.2, label=f"{i}")
        xs, ys = series(rows, "val/loss", x)
        if len(xs) and 0 in series(rows, "val/loss")[0]:  # step 0 is only a dot, without a line
            xs, ys = np.insert(xs, 1, np.nan), np.insert(ys, 1, np.nan)
        axes[0].plot(xs, ys, color=color, **VALIDATION)

    for axis, key in zip(axes, keys):
        axis.set_ylabel(PANELS[key])
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel(AXES[x])
    handles, _ = axes[0].get_legend_handles_labels()
    color = COLORS[0] if len(runs) == 1 else "gray"
    handles.append(Line2D([], [], color=color, label="validation", **VALIDATION))
    columns = 1 + len(runs) // 6
    legend = axes[0].legend(handles=handles, loc="upper right", ncols=columns, fontsize="small")
    names = [*runs] if len(runs) > 1 else ["training"]
    for text, label in zip(legend.get_texts(), names):
        text.set_text(label)  # matplotlib leaves out labels that begin with _
        text.set_parse_math(False)  # a run's name may contain dollar signs
    if len(runs) == 1:
        text = sentence(*next(iter(runs.items())))
        size = min(11, 880 / max(1, len(text)))  # a long name must fit too
        title = figure.suptitle(text, x=0.1, ha="left", fontsize=size, fontweight="bold")
        title.set_parse_math(False)
    return figure


def load_runs(paths: list[str | Path]) -> dict[str, list[dict]]:
    """The rows of metrics files by the name of their run. Raises UserError."""
    paths = [Path(path) for path in paths]
    runs = {}
    for name, path in zip(run_names(paths), paths):
        runs[name] = read_metrics(path)
        if not runs[name]:
            raise UserError(f"{path} is empty: the run has no metrics yet")
    return runs


def draw(runs: dict[str, list[dict]], out: str | Path, x: str = "step") -> None:
    """Draws the curves of runs into `out`, a PNG unless its name says otherwise.

    Raises UserError.
    """
    figure, out, content = curves(runs, x), Path(out), io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # in the name of a run
            figure.savefig(content, dpi=110, format=out.suffix[1:] or "png")
    except (ValueError, RuntimeError) as error:  # not a format for figures, or it needs TeX
        raise UserError(f"can't draw into {out}: {one_line(error)}", status=2) from None
    write_bytes(out, content.getvalue())
    del figure
    gc.collect()  # figures have reference cycles: 5 MB would stay until the next collection


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="plot.py", description=__doc__)
    parser.add_argument("metrics", nargs="+", help="metrics files, such as out/*_metrics.jsonl")
    parser.add_argument("--x", choices=AXES, default="step", help="x axis (default: %(default)s)")
    parser.add_argument("--out", default="out/curves.png", help="figure (default: %(default)s)")
    args = parser.parse_args(argv)
    draw(load_runs(expand(args.metrics)), args.out, args.x)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
