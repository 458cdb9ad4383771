"""Curves of runs from their metrics files: loss, learning rate, gradient norm.

python plot.py out/*_metrics.jsonl [--x tokens] [--out curves.png]
"""

import gc
from pathlib import Path

import numpy as np

from cli import Parser, UserError, command
from metrics import read_metrics

PANELS = {"train/loss": "loss (nats per token)", "train/lr": "learning rate", "train/grad_norm": "gradient norm"}
AXES = {"step": "step", "tokens": "tokens trained on", "seconds": "seconds of training"}
# Okabe and Ito's palette, which the colour-blind can tell apart
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


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


def curves(paths: list[str | Path], x: str = "step"):
    """A matplotlib Figure of the runs of these metrics files, over one another; raw, and smoothed. Raises UserError."""
    from matplotlib.figure import Figure  # here: it takes longer to load than most of what train.py starts with

    figure = Figure(figsize=(8, 8))
    margins = {"left": 0.1, "right": 0.98, "bottom": 0.06, "top": 0.98, "hspace": 0.08}
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1), gridspec_kw=margins)
    for i, path in enumerate(paths):
        rows, color = read_metrics(path), COLORS[i % len(COLORS)]
        if not rows:
            raise UserError(f"{path} is empty: the run has measured nothing yet")
        name = Path(path).name.removesuffix("_metrics.jsonl")
        for axis, key in zip(axes, PANELS):
            places, values = series(rows, key, x)
            if key == "train/lr":
                axis.plot(places, values, color=color)
            else:
                axis.plot(places, values, color=color, alpha=0.25, linewidth=0.7)
                axis.plot(places, smooth(values), color=color, linewidth=1.2, label=f"{name}: training")
        axes[0].plot(*series(rows, "val/loss", x), color=color, marker="o", markersize=4, label=f"{name}: validation")
    for axis, label in zip(axes, PANELS.values()):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    for text in axes[0].legend().get_texts():
        text.set_parse_math(False)  # a run's name may have dollars in it
    axes[-1].set_xlabel(AXES[x])
    return figure


def draw(paths: list[str | Path], out: str | Path, x: str = "step") -> None:
    """Draws the runs of these metrics files as a PNG, or what the name of `out` ends in. Raises UserError."""
    try:
        curves(paths, x).savefig(out, dpi=110, format=Path(out).suffix[1:] or "png")
    except ValueError as error:  # an ending that is no format of figures
        raise UserError(f"can't draw into {out}: {str(error).splitlines()[0]}", status=2) from None
    gc.collect()  # figures are full of reference cycles: else 5 MB of pixels each would wait for Python to look


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="plot.py", description=__doc__.splitlines()[0])
    parser.add_argument("metrics", nargs="+", help="metrics files of runs, such as out/*_metrics.jsonl")
    parser.add_argument("--x", choices=AXES, default="step", help="what the curves are drawn over (default: step)")
    parser.add_argument("--out", default="out/curves.png", help="figure to write (default: %(default)s)")
    args = parser.parse_args(argv)
    draw(args.metrics, args.out, args.x)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
