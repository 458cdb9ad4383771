"""The figures of a report, drawn from results alone; their titles are computed from them too."""

import math
import statistics

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments import ablate, questions, scaling
from experiments.ablate import Study
from plot import COLORS, curves

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "figure.labelsize": 9,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
}
BLUE, ORANGE, *_ = COLORS
GRAY = "#999999"
LOSS = "final validation loss (nats per token)"
DISTANCES = 16  # tokens back that the figure of the heads shows
NEAR = 8  # of them, how many count as near


def title(figure: Figure, sentence: str) -> Figure:
    figure.suptitle(sentence, x=0.01, ha="left")
    return figure


def ordered(count: int) -> np.ndarray:
    """Colors of ordered values, from light to dark."""
    return colormaps["viridis_r"](np.linspace(0.15, 1, count))


def log_axis(axis, label: str, ticks, names: list[str]) -> None:
    """An x axis on a log scale with these ticks."""
    axis.set_xscale("log")
    axis.set_xticks(ticks, names)
    axis.minorticks_off()
    axis.set_xlabel(label)


def short(number: float) -> str:
    """A count in two digits, such as 27k or 1.6M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{1 if number < 9.95 * size else 0}f}{unit}"
    return f"{number:g}"


def label_ends(axis, x: float, ends: list[tuple[float, str, object]], gap: float) -> None:
    """Names lines to the right of their ends (y, name, color) at x; the names are `gap` apart."""
    lowest = -math.inf
    for y, name, color in sorted(ends, key=lambda end: end[0]):
        lowest = max(y, lowest + gap)
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(name, (x, lowest), color=color, annotation_clip=False, **place)


# -------------------------------------------------------------------------------------------------
# ablations


def forest(studies: dict[str, tuple[Study, list[dict]]]) -> Figure:
    """Each arm's difference from the first one of its study, with its 95% interval.

    studies: definition and rows, by name.
    """
    groups = []  # of each study a heading, and its arms with their differences
    for name, (study, rows) in studies.items():
        unit = " (bits per byte)" if study.unit == "bits_per_byte" else ""
        group = [(f"{name}{unit}, against {study.first}", None)]
        for arm in ablate.arms_of(study, rows)[1:]:
            pair = ablate.difference(study, rows, arm)
            group.append((arm, pair or ablate.why_not_compared(study, rows, arm)))
        groups.append(group)
    pairs = [pair for group in groups for _, pair in group if isinstance(pair, tuple)]
    seen = sum(ablate.counts(*pair) for pair in pairs)

    # one column, or two of about equal length
    def lines(column: list) -> int:
        return sum(len(group) + 1 for group in column)

    half = min(range(len(groups)), key=lambda n: max(lines(groups[:n]), lines(groups[n:])))
    columns = [groups[:half], groups[half:]] if half and lines(groups) > 20 else [groups]
    height = max(map(lines, columns))
    figure = Figure(figsize=(2 + 4.5 * len(columns), 1 + 0.19 * height))
    panels = figure.subplots(1, len(columns), sharex=True, squeeze=False)[0]
    for axis, column in zip(panels, columns):
        draw_differences(axis, column)
        axis.set_ylim(height - 1.5, -0.7)
        axis.margins(x=0.2)  # room for the numbers
    figure.supxlabel(
        "difference in loss (nats per token) over pairs of runs with equal seeds, and its 95%"
        f" interval\nblue: better, orange: worse, gray: below {ablate.THRESHOLD:g}, or the interval"
        " includes zero"
    )
    return title(figure, f"{seen} of {len(pairs)} changes have an effect that counts")


def draw_differences(axis, groups: list[list[tuple]]) -> None:
    """A line for each arm, from the top; headings are bold, differences that count are colored.

    groups: headings (name, None), and arms (name, difference or why there is none).
    """
    names, y = {}, 0
    for group in groups:
        for name, pair in group:
            names[y] = name
            if isinstance(pair, tuple):
                mean, half = pair
                color = GRAY
                if ablate.counts(mean, half):
                    color, end, align = ORANGE, mean + half, "left"
                    if mean < 0:
                        color, end, align = BLUE, mean - half, "right"
                    text = f" {mean:+.2f} ".replace("-", "−")
                    axis.text(end, y, text, color=color, ha=align, va="center", fontsize=8)
                axis.errorbar(mean, y, xerr=half, fmt="o", color=color, markersize=4)
            elif pair:
                axis.text(0, y, f" {pair}", color=ORANGE, va="center", fontsize=8)
            y += 1
        y += 1
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(list(names), list(names.values()))
    headings = {group[0][0] for group in groups}
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in headings else "normal")
    axis.tick_params(left=False)
    axis.spines["left"].set_visible(False)
    axis.grid(False, axis="y")


def learning_rates(study: Study, rows: list[dict]) -> Figure:
    """Final loss against learning rate: every run as a dot, and the mean of each arm as a line.

    Arms whose names begin alike, up to the first comma, share a panel, each a little to the right
    of the one before, because some coincide. Runs that diverged are at the top.
    """
    groups = {}  # arms by the beginning of their names
    for arm in ablate.arms_of(study, rows):
        groups.setdefault(arm.split(", ")[0], []).append(arm)
    figure = Figure(figsize=(9, 4.2))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    finite = [ablate.loss(study, row) for row in rows if row["diverged"] is None]
    top = min(max(finite), 2 * min(finite)) + 0.05 * min(finite)
    rates = ablate.rates_of(rows)
    limits = {}
    for (group, arms), axis in zip(groups.items(), panels):
        limits[group] = ablate.highest_rate(study, rows, arms[0]) or "none"
        for i, (arm, color) in enumerate(zip(arms, COLORS)):
            shift, means = 1.08 ** (i - len(arms) // 2), []
            for rate in rates:
                losses = [min(value, top) for value in ablate.losses_at(study, rows, arm, rate)]
                means.append(statistics.mean(losses))
                dots = {"color": color, "alpha": 0.5, "markersize": 4}
                axis.plot([rate * shift] * len(losses), losses, "o", **dots)
            name = arm.removeprefix(group).removeprefix(", ") or "unchanged"
            axis.plot([rate * shift for rate in rates], means, color=color, label=name)
        lost = [row for row in rows if row["arm"] in arms and row["diverged"] is not None]
        axis.plot([row["learning_rate"] for row in lost], [top] * len(lost), "kx", markersize=9)
        axis.legend()
        axis.set_title(group)
        log_axis(axis, "learning rate", rates, [f"{rate:g}" for rate in rates])
    panels[0].set_ylabel(LOSS)
    sentence = ", ".join(f"{limit} ({group})" for group, limit in limits.items())
    return title(figure, f"Highest learning rate at which the unchanged model trains: {sentence}")


# -------------------------------------------------------------------------------------------------
# scaling


def law(rows: list[dict], laws: scaling.Laws) -> Figure:
    """Loss against tokens, fitted and held out; and the best number of tokens per parameter."""
    main, resampled = laws[scaling.MAIN]
    figure = Figure(figsize=(11, 4.4))
    loss, best = figure.subplots(1, 2)

    # loss against tokens: a line for each size, dashed where its size or budget was not fitted
    N, D, L = scaling.arrays(rows, "fit")
    held_N, held_D, held_L = scaling.arrays(rows, "held out")
    sizes, budgets = np.union1d(N, held_N), np.union1d(D, held_D)
    x, ends = np.union1d(np.geomspace(budgets[0], budgets[-1], 50), budgets), []
    for size, color in zip(sizes, ordered(len(sizes))):
        fitted, held, limit = size == N, size == held_N, D.max() if size in N else 0
        loss.plot(D[fitted], L[fitted], "o", color=color, markersize=4)
        loss.plot(held_D[held], held_L[held], "o", color=color, markersize=8, fillstyle="none")
        plot_solid_then_dashed(loss, x, main(size, x), limit, color=color, linewidth=1)
        ends.append((main(size, budgets[-1]), short(size), color))
    label_ends(loss, budgets[-1], ends, gap=0.05)
    points = scaling.predictions(rows, laws)
    misses = [
        abs(statistics.mean(point["losses"]) - point["predicted"][scaling.MAIN]) for point in points
    ]
    loss.set_title(f"Held-out runs (rings): their means are missed by up to {max(misses):.3f}")
    log_axis(loss, "tokens trained on", budgets, [short(tokens) for tokens in budgets])
    loss.set_xlim(right=1.9 * budgets[-1])  # room for the labels
    loss.set_ylabel(LOSS)
    corner = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
    loss.annotate("a line for each\nnumber of parameters", (1, 1), **corner)

    # tokens per parameter against FLOPs
    most = (6 * N * D).max()
    flops = np.geomspace(1e11, 1e16, 51)
    ratios = [other.best_ratio(flops) for other in resampled]
    low, high = np.percentile(ratios, [2.5, 97.5], axis=0)
    best.fill_between(flops, low, high, color=GRAY, alpha=0.25, linewidth=0)
    ratio = main.best_ratio(flops)
    plot_solid_then_dashed(best, flops, ratio, most, color=BLUE, linewidth=2)
    best.axhline(20, color="black", linestyle=":")
    best.text(flops[0], 22, "Chinchilla: 20", va="bottom")
    inside, outside = (
        f"{main.best_ratio(at):.0f}"
        f" ({scaling.middle_95([other.best_ratio(at) for other in resampled], 0)})"
        for at in (1e13, 1e15)
    )
    best.set_title(
        f"Best tokens per parameter: {inside} at 1e13 FLOPs,\nextrapolated {outside} at 1e15"
    )
    best.set_xscale("log")
    best.set_yscale("log")
    best.set_xlabel("FLOPs")
    best.set_ylabel("tokens per parameter")
    return figure


def plot_solid_then_dashed(axis, x, y, limit: float, **style) -> None:
    """A line, solid up to x = limit and dashed beyond it."""
    axis.plot(x[x <= limit], y[x <= limit], "-", **style)
    axis.plot(x[x >= limit], y[x >= limit], "--", **style)


def short_text(rows: list[dict]) -> Figure:
    """The best loss of each size on a short text."""
    runs = [row for row in rows if row["part"] == "short text"]
    sizes, losses = [row["parameters"] for row in runs], [row["best"] for row in runs]
    figure = Figure(figsize=(7, 3.4))
    axis = figure.subplots()
    axis.plot(sizes, losses, "o-", color=BLUE)
    for row in runs:
        point, place = (row["parameters"], row["best"]), {"textcoords": "offset points"}
        axis.annotate(f"{row['best']:.3f}", point, (0, 8), ha="center", **place)
        epochs = row["val_steps"][np.argmin(row["val_losses"])] / row["steps"] * row["epochs"]
        if row["diverged"] is None and epochs < row["epochs"] - 0.1:
            text = f"best after {epochs:.0f} epochs"
            axis.annotate(text, point, (12, -16), ha="right", color=ORANGE, **place)
    axis.margins(0.1, 0.2)
    log_axis(axis, "parameters without embedding", sizes, [short(size) for size in sizes])
    axis.set_ylabel("best validation loss\n(nats per token)")
    factor, fall = sizes[-1] / sizes[0], f"from {losses[0]:.2f} to {losses[-1]:.2f}"
    return title(
        figure, f"On a short text, {factor:.0f} times the parameters change the loss {fall}"
    )


# -------------------------------------------------------------------------------------------------
# inside a model


def near(heads: np.ndarray) -> np.ndarray:
    """The fraction of each head's attention (layers, heads) that stays near."""
    return heads[..., :NEAR].sum(-1)


def attention(heads: np.ndarray) -> Figure:
    """How much each head (layers, heads, distance) attends to the token at each distance back."""
    share, shown = near(heads), heads[..., :DISTANCES]
    layers, count, distances = shown.shape
    figure = Figure(figsize=(10, 1.3 + 0.25 * count))
    panels = figure.subplots(1, layers, sharey=True, squeeze=False)[0]
    for layer, axis in enumerate(panels):
        image = axis.imshow(shown[layer], aspect="auto", cmap="Blues", vmin=0, vmax=0.5)
        axis.set_title(f"block {layer + 1}")
        axis.set_xticks(range(0, distances, 5))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.grid(False)
    layer, widest = np.unravel_index(share.argmin(), share.shape)
    frame = {"fill": False, "edgecolor": ORANGE, "linewidth": 1.5, "clip_on": False}
    panels[layer].add_patch(Rectangle((-0.5, widest - 0.5), distances, 1, **frame))
    panels[0].set_yticks(range(count), [f"head {head + 1}" for head in range(count)])
    figure.supxlabel("tokens back (0: the token itself)")
    figure.colorbar(image, ax=panels, label="fraction of the attention", extend="max")
    reach = min(NEAR, heads.shape[-1])
    return title(
        figure,
        f"{share.mean():.0%} of the attention goes to the last {reach} tokens; the widest head"
        f" (framed) gives them {share.min():.0%}",
    )


def gradients(seeds: list[dict]) -> Figure:
    """Gradient norm of each block at some steps, pre- and post-norm; medians over the seeds."""
    figure = Figure(figsize=(9, 3.8))
    panels, first = figure.subplots(1, 2, sharey=True), {}
    for axis, position in zip(panels, ("pre", "post")):
        steps = [measurement["step"] for measurement in seeds[0][position]]
        for i, (step, color) in enumerate(zip(steps, ordered(len(steps)))):
            norms = np.median([seed[position][i]["norms"] for seed in seeds], axis=0)
            blocks = range(1, len(norms) + 1)
            axis.plot(blocks, norms, "o-", color=color, markersize=4, label=f"{step}")
        first[position] = f"{norms[0]:.1g} ({position}-norm)"
        axis.set_title(f"{position}-norm")
        axis.set_yscale("log")
        axis.set_xticks(blocks)
        axis.set_xlabel("block")
    panels[0].set_ylabel("gradient norm of the block")
    panels[1].legend(title="step", loc="center left", bbox_to_anchor=(1, 0.5))
    return title(
        figure,
        f"The first block's gradient after {steps[-1]} steps at a rate of"
        f" {questions.TOO_HIGH:g}: {', '.join(first.values())}",
    )


def run_curves(name: str, rows: list[dict], grad_clip: float) -> Figure:
    """The curves of one run, with the threshold of clipping."""
    figure = curves({name: rows})
    if grad_clip:
        axis = figure.axes[-1]
        axis.axhline(grad_clip, color="black", linestyle=":")
        last = max(row["step"] for row in rows)
        axis.text(last, grad_clip, "clipped above ", ha="right", va="bottom")
    return figure
