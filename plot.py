"""Curves of runs from their metrics files: loss, learning rate, gradient norm.

python plot.py out/*_metrics.jsonl [--x tokens] [--out curves.png]
"""

import gc
from pathlib import Path

import numpy as np

from common.cli import Parser, command
from common.errors import UserError
from common.metrics import read_metrics

PANELS = {
    "train/loss": "loss (nats per token)",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
}
AXES = {"step": "step", "tokens": "tokens trained on", "seconds": "seconds of training"}
# Okabe and Ito's palette, which the colour-blind can tell apart
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", ":", "-."]  # where there are more runs than colours

VALIDATION = {"marker": "o", "markersize": 4, "linewidth": 0.7}


def series(rows: list[dict], key: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Places on the x axis and values, of the rows that have both."""
    found = [(row[x], row[key]) for row in rows if key in row and x in row]
    return tuple(np.array(found).T) if found else (np.empty(0), np.empty(0))


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over the last 2% of the points, less near the beginning, so that a curve can be seen in its noise."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(1, len(values) // 50), ends * 3 // 4)
    return (total[ends] - total[starts]) / (ends - starts)


def names(paths: list[Path]) -> list[str]:
    """What tells the runs of these metrics files apart: their names, with the folder where two have the same."""
    found = [path.name.removesuffix("_metrics.jsonl") for path in paths]
    return [
        str(path.parent / name) if found.count(name) > 1 else name
        for path, name in zip(paths, found)
    ]


def curves(paths: list[str | Path], x: str = "step"):
    """A matplotlib Figure of the runs of these metrics files, over one another; raw, and smoothed. Raises UserError."""
    from matplotlib.figure import (
        Figure,  # here: it takes longer to load than most of what train.py starts with
    )
    from matplotlib.lines import Line2D

    paths = list(map(Path, paths))
    runs = {path: read_metrics(path) for path in paths}
    for path, rows in runs.items():
        if not rows:
            raise UserError(f"{path} is empty: the run has measured nothing yet")
    keys = [
        key
        for key in PANELS
        if key == "train/loss" or any(key in row for rows in runs.values() for row in rows)
    ]
    figure = Figure(figsize=(8, 4 + 2 * (len(keys) - 1)))
    margins = {"left": 0.1, "right": 0.98, "bottom": 0.06, "top": 0.98, "hspace": 0.08}
    ratios = (2, 1, 1)[: len(keys)]
    axes = figure.subplots(
        len(keys), 1, sharex=True, height_ratios=ratios, gridspec_kw=margins, squeeze=False
    )[:, 0]
    for i, (path, name) in enumerate(zip(paths, names(paths))):
        color, style = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        for axis, key in zip(axes, keys):
            places, values = series(runs[path], key, x)
            if key == "train/lr":
                axis.plot(places, values, color=color, linestyle=style)
            else:
                axis.plot(places, values, color=color, alpha=0.25, linewidth=0.7)
                axis.plot(
                    places, smooth(values), color=color, linewidth=1.2, linestyle=style, label=name
                )
        axes[0].plot(*series(runs[path], "val/loss", x), color=color, **VALIDATION)
    for axis, key in zip(axes, keys):
        axis.set_ylabel(PANELS[key])
        axis.grid(alpha=0.3)
    handles = [
        *axes[0].get_legend_handles_labels()[0],
        Line2D([], [], color="gray", label="validation", **VALIDATION),
    ]
    legend = axes[0].legend(
        handles=handles, loc="upper right", ncols=1 + len(paths) // 6, fontsize="small"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run's name may have dollars in it
    axes[-1].set_xlabel(AXES[x])
    return figure


def draw(paths: list[str | Path], out: str | Path, x: str = "step") -> None:
    """Draws the runs of these metrics files as a PNG, or what the name of `out` ends in. Raises UserError."""
    figure, out = curves(paths, x), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(out, dpi=110, format=out.suffix[1:] or "png")
    except ValueError as error:  # an ending that is no format of figures
        raise UserError(f"can't draw into {out}: {str(error).splitlines()[0]}", status=2) from None
    del figure
    gc.collect()  # figures are full of reference cycles: else 5 MB of pixels each would wait for Python to look


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="plot.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "metrics", nargs="+", help="metrics files of runs, such as out/*_metrics.jsonl"
    )
    parser.add_argument(
        "--x", choices=AXES, default="step", help="what the curves are drawn over (default: step)"
    )
    parser.add_argument(
        "--out", default="out/curves.png", help="figure to write (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    draw(args.metrics, args.out, args.x)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
