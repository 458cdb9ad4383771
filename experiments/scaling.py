"""How does the loss fall with parameters and with text, and does what small models say of it hold for larger ones?

python -m experiments.scaling              100 minutes on 2 cores that are shared; broken off, it goes on where it was
python -m experiments.scaling --redraw     table and figures from the runs that are kept

It looks for the best learning rate of a few sizes and fits a rule to them; trains five sizes on budgets of text that are
read less than once; fits L(N, D) = E + A / N^alpha + B / D^beta; and lays that law beside a larger model and a longer
budget that it has not seen. Last it trains every size on a megabyte of text, read many times over. It leaves runs.jsonl,
laws.json, table.md and figures in experiments/results/scaling/.
"""

import itertools
import json
import math
import os
import statistics
from collections import defaultdict
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from common.cli import Parser, command
from common.dataset import is_prepared, load_dataset
from config import Config
from experiments.ablate import next_rate
from experiments.runs import in_own_folder, markdown, read_rows, run_all, write_rows
from model import GPTConfig, count_parameters
from plot import COLORS
from prepare import prepare

RESULTS = Path("experiments/results/scaling")
LONG, SHORT = (
    "python_byte",
    "shakespeare_char",
)  # text that is read less than once, and text that is read many times
BASE = Config(
    run_name="run", block_size=128, batch_size=8, min_lr=0.0, eval_tokens=20_000, sample_interval=0, save_interval=0,
    compile=False, device="cpu",
)  # fmt: skip
SIZES = (
    (2, 32),
    (2, 64),
    (4, 64),
    (6, 96),
    (8, 128),
    (10, 160),
)  # layers, and width in heads of 32; the last held out
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)  # tokens; the last held out
HELD_OUT = (
    (SIZES[2], BUDGETS[-1]),
    (SIZES[3], BUDGETS[-1]),
    (SIZES[-1], BUDGETS[-3]),
    (SIZES[-1], BUDGETS[-1]),
)
RATES, RATE_SIZES, RATE_BUDGET = (2e-3, 4e-3, 8e-3), (SIZES[0], SIZES[2], SIZES[4]), 1_000_000
EPOCHS = 6  # of the short text
STARTS = 8  # of the fit's descent
REPEATS = 200  # of the fit, with runs drawn anew
FITS = {  # whether the embedding counts among the parameters, and the first of the budgets that is fitted
    "without embedding": (False, 0), "with embedding": (True, 0), "without the shortest budget": (False, 1),
}  # fmt: skip
MAIN = next(iter(FITS))

# ---------------------------------------------------------------------------------------------------------------------
# the law


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token, of N parameters and D tokens (Hoffmann et al., 2022,
    arXiv:2203.15556)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best_parameters(self, operations):
        """The N for which a model trained with 6 N D operations reaches the lowest loss."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1 / (self.alpha + self.beta)) * (operations / 6) ** (
            self.beta / (self.alpha + self.beta)
        )


def fit(N, D, L, starts: list[np.ndarray] | None = None) -> Law:
    """The law that is nearest to losses L of N parameters and D tokens, each (n,), from the best of the starts."""
    logs = [torch.tensor(np.log(values), dtype=torch.float64) for values in (N, D, L)]
    _, (e, a, b, alpha, beta) = min(
        descend(start, *logs) for start in starts or find_starts(N, D, L)
    )
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def descend(
    start: np.ndarray, log_N, log_D, log_L, delta: float = 1e-3
) -> tuple[float, list[float]]:
    """L-BFGS from (log E, log A, log B, alpha, beta): the error at the end, and where that is.

    The error is the Huber loss of the difference of logarithms, which a run gone wrong does not bend.
    """
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def error():
        optimizer.zero_grad()
        e, a, b, alpha, beta = x
        predicted = torch.logsumexp(
            torch.stack((e.expand_as(log_L), a - alpha * log_N, b - beta * log_D)), dim=0
        )
        value = F.huber_loss(predicted, log_L, delta=delta, reduction="sum") / delta
        value.backward()
        return value

    optimizer.step(error)
    return error().item(), x.tolist()


def find_starts(N, D, L) -> list[np.ndarray]:
    """The best of a grid of exponents, each with the E, A, B of least squares."""
    found = []
    for alpha, beta in itertools.product(np.arange(0.1, 1.3, 0.1), repeat=2):
        terms = np.stack((np.ones(len(L)), N**-alpha, D**-beta), axis=1)
        scales = np.maximum(np.linalg.lstsq(terms / L[:, None], np.ones(len(L)))[0], 1e-3)
        error = np.abs(np.log(terms @ scales / L)).sum()
        found.append((error, *np.log(scales), alpha, beta))
    return [np.array(start) for _, *start in sorted(found)[:STARTS]]


def bootstrap(N, D, L, law: Law) -> list[Law]:
    """Laws of as many runs drawn from these with replacement."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(L), size=len(L)) for _ in range(REPEATS))
    start = np.array([*np.log([law.E, law.A, law.B]), law.alpha, law.beta])
    return [fit(N[draw], D[draw], L[draw], [start]) for draw in draws]


# ---------------------------------------------------------------------------------------------------------------------
# the runs


def count(size: tuple[int, int], vocab_size: int) -> tuple[int, int]:
    """Parameters of a size's blocks and final norm, and of its embedding."""
    layers, width = size
    model = GPTConfig(vocab_size=vocab_size, n_layers=layers, d_model=width, n_heads=width // 32)
    embedding = vocab_size * width
    return count_parameters(model) - embedding, embedding


def config_of(dataset: str, size: tuple[int, int], tokens: int, rate: float, seed: int) -> Config:
    """A run whose cosine ends with its tokens, and whose warmup takes a tenth of them; on the short text it ends early
    where the loss rises."""
    layers, width = size
    steps = tokens // BASE.tokens_per_step
    evaluations, patience = (2 * EPOCHS, 3) if dataset == SHORT else (4, None)
    config = replace(
        BASE, dataset=dataset, n_layers=layers, d_model=width, n_heads=width // 32, max_steps=steps,
        warmup_steps=steps // 10, eval_interval=max(1, steps // evaluations), patience=patience, learning_rate=rate,
        seed=seed,
    )  # fmt: skip
    return in_own_folder(config, "out/scaling")


def best_rate(losses: dict[float, float]) -> float:
    """The lowest point of the parabola, over the logarithm of the rate, through the best rate and its neighbours."""
    rates = sorted(losses)
    middle = min(max(rates.index(min(losses, key=losses.get)), 1), len(rates) - 2)
    near = rates[middle - 1 : middle + 2]
    a, b, _ = np.polyfit(np.log(near), [losses[rate] for rate in near], 2)
    return math.exp(-b / (2 * a))


def swept(rows: list[dict]) -> dict[int, dict[float, float]]:
    """The losses of the search for learning rates, by the parameters of the blocks and the rate."""
    losses = defaultdict(dict)
    for row in rows:
        if row["part"] == "rates":
            losses[row["parameters"]][row["learning_rate"]] = (
                math.inf if row["final"] is None else row["final"]
            )
    return losses


def rate_rule(rows: list[dict]) -> tuple[float, float]:
    """c and p of the rule: learning rate = c * (parameters of the blocks)^p."""
    best = {parameters: best_rate(losses) for parameters, losses in swept(rows).items()}
    p, log_c = np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)
    return math.exp(log_c), p


def make(seeds: int, parallel: int) -> list[dict]:
    """Every run of the analysis, with its part in it, its size and its tokens."""
    rows = []

    def run(part: str, dataset: str, points: list[tuple]) -> None:
        """Makes the runs of (size, tokens, learning rate, seed), the long ones first so that no core waits at the end."""
        vocab_size = load_dataset(dataset).tokenizer.vocab_size
        long_first = sorted(points, key=lambda point: -count(point[0], vocab_size)[0] * point[1])
        results = run_all({point: config_of(dataset, *point) for point in long_first}, parallel)
        for point in points:
            size, tokens, rate, _ = point
            parameters, embedding = count(size, vocab_size)
            rows.append({"part": part, "size": "x".join(map(str, size)), "parameters": parameters,
                         "embedding": embedding, "tokens": tokens, "learning_rate": rate, **results[point]})  # fmt: skip

    points = [(size, RATE_BUDGET, rate, 0) for rate in RATES for size in RATE_SIZES]
    while points:
        run("rates", LONG, points)
        losses = swept(rows)
        wanted = {
            size: next_rate(losses[count(size, 256)[0]], RATES[1] / RATES[0]) for size in RATE_SIZES
        }
        points = [(size, RATE_BUDGET, rate, 0) for size, rate in wanted.items() if rate is not None]
    c, p = rate_rule(rows)
    rates = {size: float(f"{c * count(size, 256)[0] ** p:.2g}") for size in SIZES}
    tried = range(1, seeds + 1)
    run(
        "fit",
        LONG,
        [
            (size, tokens, rates[size], seed)
            for seed in tried
            for tokens in BUDGETS[:-1]
            for size in SIZES[:-1]
        ],
    )
    run(
        "held out",
        LONG,
        [(size, tokens, rates[size], seed) for seed in tried for size, tokens in HELD_OUT],
    )
    run(
        "short text",
        SHORT,
        [(size, EPOCHS * len(load_dataset(SHORT).train), rates[size], 1) for size in SIZES],
    )
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# what the analysis leaves


def arrays(
    rows: list[dict], part: str, embedding: bool = False, first: int = 0
) -> tuple[np.ndarray, ...]:
    """Parameters, tokens and final losses of the runs of a part, from a budget on, that did not diverge."""
    rows = [
        row
        for row in rows
        if row["part"] == part and row["final"] is not None and row["tokens"] >= BUDGETS[first]
    ]
    found = [
        (row["parameters"] + embedding * row["embedding"], row["tokens"], row["final"])
        for row in rows
    ]
    return tuple(np.array(found, dtype=float).T)


def spread(values: list[float], digits: int) -> str:
    """The middle 95% of them."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.{digits}f} to {high:.{digits}f}"


Laws = dict[
    str, tuple[Law, list[Law]]
]  # by the fit's name: the law of its runs, and those of runs drawn from them


def fit_laws(rows: list[dict]) -> Laws:
    laws = {}
    for name, chosen in FITS.items():
        points = arrays(rows, "fit", *chosen)
        law = fit(*points)
        laws[name] = law, bootstrap(*points, law)
    return laws


def write_laws(path: Path, laws: Laws) -> None:
    """E, A, B, alpha, beta of each law, those of the bootstrap last."""
    lists = {
        name: [astuple(each) for each in (law, *others)] for name, (law, others) in laws.items()
    }
    path.write_text(json.dumps(lists) + "\n", encoding="utf-8")


def read_laws(path: Path) -> Laws:
    lists = json.loads(path.read_text(encoding="utf-8"))
    found = {name: [Law(*values) for values in laws] for name, laws in lists.items()}
    return {name: (law, others) for name, (law, *others) in found.items()}


def law_table(laws: Laws) -> str:
    lines = [["fit", "E", "alpha", "beta", "A", "B"]]
    for name, (law, others) in laws.items():
        cells = [f"{getattr(law, value):.3f} ({spread([getattr(other, value) for other in others], 3)})"
                 for value in ("E", "alpha", "beta")]  # fmt: skip
        lines.append([name, *cells, f"{law.A:.3g}", f"{law.B:.3g}"])
    return markdown(lines)


def predictions(rows: list[dict], laws: Laws) -> list[dict]:
    """Of each point that the laws have not seen: parameters, tokens, losses, what every law predicts, and what the first
    law's bootstrap does."""
    points = defaultdict(list)
    for row in rows:
        if row["part"] == "held out":
            points[row["parameters"], row["embedding"], row["tokens"]].append(row["final"])
    return [
        {"parameters": N, "tokens": D, "losses": losses, "drawn": [law(N, D) for law in laws[MAIN][1]],
         "predicted": {name: law(N + FITS[name][0] * embedding, D) for name, (law, _) in laws.items()}}
        for (N, embedding, D), losses in points.items()
    ]  # fmt: skip


def held_out_table(rows: list[dict], laws: Laws) -> str:
    lines = [
        ["parameters", "tokens", "n", "measured", "predicted", "95% interval", *list(laws)[1:]]
    ]
    for point in predictions(rows, laws):
        first, *others = (f"{loss:.4f}" for loss in point["predicted"].values())
        lines.append([
            f"{point['parameters']:,}", f"{point['tokens']:,}", f"{len(point['losses'])}",
            f"{statistics.mean(point['losses']):.4f}", first, spread(point["drawn"], 4), *others,
        ])  # fmt: skip
    return markdown(lines)


def rate_table(rows: list[dict]) -> str:
    c, p = rate_rule(rows)
    lines = [["parameters of the blocks", "best learning rate", "by the rule"]]
    for parameters, losses in sorted(swept(rows).items()):
        lines.append([f"{parameters:,}", f"{best_rate(losses):.2g}", f"{c * parameters**p:.2g}"])
    return markdown(lines)


def frontier_table(laws: Laws) -> str:
    """The best use of as many operations as our budgets stand for, and of ten and a hundred times as many."""
    columns = ["operations", "best parameters", "tokens", "predicted loss"]
    lines = [[*columns, *(f"tokens per parameter, {name}" for name in laws)]]
    law = laws[MAIN][0]
    for operations in np.logspace(11, 16, 6):
        N = law.best_parameters(operations)
        ratios = (
            operations / 6 / other.best_parameters(operations) ** 2 for other, _ in laws.values()
        )
        lines.append([f"{operations:.0e}", f"{N:,.0f}", f"{operations / 6 / N:,.0f}", f"{law(N, operations / 6 / N):.3f}",
                      *(f"{ratio:.1f}" for ratio in ratios)])  # fmt: skip
    return markdown(lines)


def steps_per_epoch(row: dict) -> float:
    """Of a run on the short text."""
    return row["tokens"] / EPOCHS / BASE.tokens_per_step


def short_text_table(rows: list[dict]) -> str:
    lines = [["parameters", "learning rate", "best loss", "after epochs", "loss at the end"]]
    for row in rows:
        if row["part"] == "short text":
            step = row["val_steps"][row["val_losses"].index(min(row["val_losses"]))]
            final = "diverged" if row["final"] is None else f"{row['final']:.4f}"
            lines.append([f"{row['parameters']:,}", f"{row['learning_rate']:g}", f"{row['best']:.4f}",
                          f"{step / steps_per_epoch(row):.1f}", final])  # fmt: skip
    return markdown(lines)


def table(rows: list[dict], laws: Laws) -> str:
    parts = {
        "Best learning rates, and the rule that all other runs follow": rate_table(rows),
        "The law, with 95% intervals over runs drawn with replacement": law_table(laws),
        "Runs that the laws have not seen, with what the first law predicts, its interval, and what the others do": held_out_table(
            rows, laws
        ),
        "The best use of a number of operations, by the first law": frontier_table(laws),
        f"One megabyte, read {EPOCHS} times at most": short_text_table(rows),
    }
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts.items())


def law_figure(rows: list[dict], laws: Laws) -> Figure:
    """Loss against parameters, tokens and operations, measured and by the law, and the best tokens per parameter.

    Rings are runs that the law has not seen, and dashes go past those that it has.
    """
    law, drawn = laws[MAIN]
    figure = Figure(figsize=(10, 8), layout="constrained")
    (by_size, by_tokens), (by_operations, best) = figure.subplots(2, 2)
    N, D, L = arrays(rows, "fit")
    N2, D2, L2 = arrays(rows, "held out")
    sizes, budgets = np.unique(np.concatenate((N, N2))), np.unique(np.concatenate((D, D2)))
    for axis, x, x2, others, along in (
        (by_size, N, N2, budgets, (D, D2)),
        (by_tokens, D, D2, sizes, (N, N2)),
    ):
        for value, color in zip(others, COLORS):
            label = f"{value:,.0f} {'tokens' if axis is by_size else 'parameters'}"
            axis.plot(
                x[along[0] == value],
                L[along[0] == value],
                "o",
                color=color,
                markersize=4,
                label=label,
            )
            axis.plot(
                x2[along[1] == value],
                L2[along[1] == value],
                "o",
                color=color,
                markersize=7,
                fillstyle="none",
            )
            line = np.union1d(np.geomspace(x.min(), x2.max(), 50), x.max())
            losses = law(line, value) if axis is by_size else law(value, line)
            for inside, style in ((line <= x.max(), "-"), (line >= x.max(), "--")):
                axis.plot(line[inside], losses[inside], style, color=color, linewidth=0.8)
    for value, color in zip(sizes, COLORS):
        for x, y, d, marker in (
            (N, L, D, {"markersize": 4}),
            (N2, L2, D2, {"markersize": 7, "fillstyle": "none"}),
        ):
            by_operations.plot(6 * (x * d)[x == value], y[x == value], "o", color=color, **marker)
    most = 6 * (N * D).max()
    operations = np.union1d(np.geomspace(6 * (N * D).min(), 100 * (N2 * D2).max(), 50), most)
    losses = law(law.best_parameters(operations), operations / 6 / law.best_parameters(operations))
    for chosen, style in ((operations <= most, "-"), (operations >= most, "--")):
        by_operations.plot(operations[chosen], losses[chosen], style, color="black")
        for (name, (each, _)), color in zip(laws.items(), ("black", *COLORS)):
            ratios = (operations / 6 / each.best_parameters(operations) ** 2)[chosen]
            best.plot(
                operations[chosen], ratios, style, color=color, label=name if style == "-" else None
            )
    low, high = np.percentile(
        [operations / 6 / each.best_parameters(operations) ** 2 for each in drawn], [2.5, 97.5], 0
    )
    best.fill_between(operations, low, high, color="gray", alpha=0.2, linewidth=0)
    best.axhline(20, color="gray", linestyle=":")
    best.text(operations[0], 22, "Chinchilla: 20", color="gray")
    labels = ("parameters of the blocks", "tokens trained on", "operations", "operations")
    for axis, label in zip(figure.axes, labels):
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("final validation loss [nats per token]")
        axis.grid(alpha=0.3)
    by_tokens.set_xticks(budgets, [f"{tokens / 1e6:g}M" for tokens in budgets])
    by_tokens.minorticks_off()
    best.set_yscale("log")
    best.set_ylabel("best tokens per parameter")
    by_size.legend(frameon=False, fontsize=8)
    by_tokens.legend(frameon=False, fontsize=8)
    best.legend(frameon=False, fontsize=8)
    return figure


def short_text_figure(rows: list[dict]) -> Figure:
    """Validation loss over epochs, a line for each size: where more parameters stop helping."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for row, color in zip([row for row in rows if row["part"] == "short text"], COLORS):
        epochs, losses = (
            np.array(row["val_steps"][1:]) / steps_per_epoch(row),
            row["val_losses"][1:],
        )
        axis.plot(
            epochs,
            losses,
            "o-",
            color=color,
            markersize=3,
            label=f"{row['parameters']:,} parameters",
        )
    axis.set_xlabel("epochs")
    axis.set_ylabel("validation loss [nats per token]")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    return figure


def redraw(folder: Path) -> None:
    """Table and figures from the runs and the laws that are kept."""
    rows, laws = read_rows(folder / "runs.jsonl"), read_laws(folder / "laws.json")
    (folder / "table.md").write_text(table(rows, laws) + "\n", encoding="utf-8")
    law_figure(rows, laws).savefig(folder / "law.png", dpi=110)
    short_text_figure(rows).savefig(folder / "short_text.png", dpi=110)


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.scaling", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=2, help="of the runs on long text (default: %(default)s)"
    )
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="train nothing: table and figures from runs.jsonl"
    )
    args = parser.parse_args(argv)
    if min(args.seeds, args.parallel) < 1:
        parser.error("--seeds and --parallel must be at least 1")
    if not args.redraw:
        for dataset in (LONG, SHORT):
            if not is_prepared(dataset):
                prepare(dataset)
        write_rows(args.results / "runs.jsonl", make(args.seeds, args.parallel))
    write_laws(args.results / "laws.json", fit_laws(read_rows(args.results / "runs.jsonl")))
    redraw(args.results)
    print((args.results / "table.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    raise SystemExit(main())
