"""Curves of runs from their metrics files: loss, learning rate, gradient norm.

python plot.py out/*_metrics.jsonl [--out FILE.png]
"""

import json
from pathlib import Path


def draw(paths: list[Path], out: Path) -> None:
    """Draws the runs over one another into a PNG."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for path in paths:
        lines=[json.loads(l) for l in open(path)]
        for a,key in zip(axes,("train/loss","train/lr","train/grad_norm")):
            a.plot([l["step"] for l in lines if key in l],[l[key] for l in lines if key in l],label=key)
        axes[0].plot([l["step"] for l in lines if "val/loss" in l],[l["val/loss"] for l in lines if "val/loss" in l])
    figure.savefig(out, dpi=100)
