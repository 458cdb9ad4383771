"""How does the loss fall with parameters and text, and do small models predict larger ones?

python -m experiments.scaling              100 minutes on 2 shared cores
python -m experiments.scaling --redraw     table and figures from the kept runs

Searches for the best learning rate of a few sizes and fits a rule to them; trains five sizes on
budgets of text that are read less than once; fits L(N, D) = E + A / N^alpha + B / D^beta; and
compares that law with a larger model and a longer budget held out from the fit. Finally trains
every size on one megabyte of text, for several epochs. An interrupted analysis resumes where it
stopped. It leaves runs.jsonl, laws.json, table.md and figures in experiments/results/scaling/.
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
from common.dataset import load_dataset
from config import Config
from experiments.ablate import next_rate
from experiments.runs import RESULTS, in_run_folder, markdown, read_rows, run_all, write_rows
from model import GPTConfig, count_parameters
from plot import COLORS
from prepare import prepare_missing

LONG = "python_byte"  # text that is read less than once
SHORT = "shakespeare_char"  # text that is read several times
BASE = Config(
    run_name="run",
    block_size=128,
    batch_size=8,
    min_lr=0.0,
    eval_tokens=20_000,
    sample_interval=0,
    save_interval=0,
    compile=False,
    device="cpu",
)
HEAD_DIM = 32
VOCAB_SIZE = 256  # of the long text, bytes
SIZES = ((2, 32), (2, 64), (4, 64), (6, 96), (8, 128), (10, 160))  # layers, width; last held out
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)  # tokens; last held out
HELD_OUT = (
    (SIZES[2], BUDGETS[-1]),
    (SIZES[3], BUDGETS[-1]),
    (SIZES[-1], BUDGETS[-3]),
    (SIZES[-1], BUDGETS[-1]),
)
RATES = (2e-3, 4e-3, 8e-3)  # where the search for learning rates begins
RATE_SIZES = (SIZES[0], SIZES[2], SIZES[4])
RATE_BUDGET = 1_000_000
EPOCHS = 6  # of the short text
STARTS = 8  # starting points of a fit
REPEATS = 200  # fits to resampled runs


@dataclass(frozen=True)
class FitOptions:
    count_embedding: bool = False  # among the parameters
    min_tokens: int = 0  # fit runs of at least this budget


FITS = {
    "without embedding": FitOptions(),
    "with embedding": FitOptions(count_embedding=True),
    "without the shortest budget": FitOptions(min_tokens=BUDGETS[1]),
}
MAIN = "without embedding"

# -------------------------------------------------------------------------------------------------
# the law


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token, of N parameters and D tokens.

    From Hoffmann et al., 2022, arXiv:2203.15556.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best_parameters(self, operations):
        """The N at which a model trained with 6 N D operations reaches the lowest loss."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        exponent = 1 / (self.alpha + self.beta)
        return ratio**exponent * (operations / 6) ** self.growth

    def best_ratio(self, operations):
        """Tokens per parameter at best_parameters."""
        return operations / 6 / self.best_parameters(operations) ** 2

    def best_loss(self, operations):
        N = self.best_parameters(operations)
        return self(N, operations / 6 / N)

    @property
    def growth(self) -> float:
        """The exponent of best_parameters."""
        return self.beta / (self.alpha + self.beta)


def fit(N, D, L, starts: list[np.ndarray] | None = None) -> Law:
    """The law closest to losses L of N parameters and D tokens, each (n,), from the best start."""
    logs = [torch.tensor(np.log(values), dtype=torch.float64) for values in (N, D, L)]
    descents = [descend(start, *logs) for start in starts or find_starts(N, D, L)]
    _, (e, a, b, alpha, beta) = min(descents)
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def descend(
    start: np.ndarray, log_N, log_D, log_L, delta: float = 1e-3
) -> tuple[float, list[float]]:
    """L-BFGS on (log E, log A, log B, alpha, beta). Returns the final error and the final values.

    The error is the Huber loss of log L, which limits the influence of single bad runs.
    """
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 500, "line_search_fn": "strong_wolfe", "tolerance_change": 1e-12}
    optimizer = torch.optim.LBFGS([x], **options)

    def error():
        optimizer.zero_grad()
        e, a, b, alpha, beta = x
        terms = torch.stack((e.expand_as(log_L), a - alpha * log_N, b - beta * log_D))
        predicted = torch.logsumexp(terms, dim=0)
        value = F.huber_loss(predicted, log_L, delta=delta, reduction="sum") / delta
        value.backward()
        return value

    optimizer.step(error)
    return error().item(), x.tolist()


def find_starts(N, D, L) -> list[np.ndarray]:
    """The best of a grid of exponents, each with E, A and B from least squares."""
    starts = []
    for alpha, beta in itertools.product(np.arange(0.1, 1.3, 0.1), repeat=2):
        terms = np.stack((np.ones(len(L)), N**-alpha, D**-beta), axis=1)
        scales = np.maximum(np.linalg.lstsq(terms / L[:, None], np.ones(len(L)))[0], 1e-3)
        error = np.abs(np.log(terms @ scales / L)).sum()
        starts.append((error, *np.log(scales), alpha, beta))
    return [np.array(start) for _, *start in sorted(starts)[:STARTS]]


def bootstrap(N, D, L, law: Law) -> list[Law]:
    """Laws fitted to as many runs, drawn from these with replacement."""
    rng = np.random.default_rng(0)
    start = np.array([*np.log([law.E, law.A, law.B]), law.alpha, law.beta])
    laws = []
    for _ in range(REPEATS):
        draw = rng.integers(len(L), size=len(L))
        laws.append(fit(N[draw], D[draw], L[draw], [start]))
    return laws


# -------------------------------------------------------------------------------------------------
# the runs


def parameter_counts(size: tuple[int, int], vocab_size: int) -> tuple[int, int]:
    """The parameters of a size without its embedding, and those of the embedding."""
    layers, width = size
    model = GPTConfig(
        vocab_size=vocab_size, n_layers=layers, d_model=width, n_heads=width // HEAD_DIM
    )
    embedding = vocab_size * width
    return count_parameters(model) - embedding, embedding


def size_config(dataset: str, size: tuple[int, int], tokens: int, rate: float, seed: int) -> Config:
    """A run whose cosine ends after `tokens`, a tenth of them warmup; on SHORT it stops early."""
    layers, width = size
    steps = tokens // BASE.tokens_per_step
    evaluations, patience = (2 * EPOCHS, 3) if dataset == SHORT else (4, None)
    config = replace(
        BASE,
        dataset=dataset,
        n_layers=layers,
        d_model=width,
        n_heads=width // HEAD_DIM,
        max_steps=steps,
        warmup_steps=steps // 10,
        eval_interval=max(1, steps // evaluations),
        patience=patience,
        learning_rate=rate,
        seed=seed,
    )
    return in_run_folder(config, "out/scaling")


def best_rate(losses: dict[float, float]) -> float:
    """The minimum of the parabola, over log rate, through the best rate and its neighbors."""
    rates = sorted(losses)
    middle = min(max(rates.index(min(losses, key=losses.get)), 1), len(rates) - 2)
    near = rates[middle - 1 : middle + 2]
    a, b, _ = np.polyfit(np.log(near), [losses[rate] for rate in near], 2)
    return math.exp(-b / (2 * a))


def rate_losses(rows: list[dict]) -> dict[int, dict[float, float]]:
    """The losses of the search for learning rates, by parameters and rate; infinite if diverged."""
    losses = defaultdict(dict)
    for row in rows:
        if row["part"] == "rates":
            loss = math.inf if row["final"] is None else row["final"]
            losses[row["parameters"]][row["learning_rate"]] = loss
    return losses


def rate_rule(rows: list[dict]) -> tuple[float, float]:
    """c and p of the rule: learning rate = c * parameters^p."""
    best = {parameters: best_rate(losses) for parameters, losses in rate_losses(rows).items()}
    p, log_c = np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)
    return math.exp(log_c), p


def run_analysis(seeds: int, parallel: int) -> list[dict]:
    """The result of every run, with its part, size and tokens; trains only what is missing."""
    rows = []

    def run(part: str, dataset: str, points: list[tuple]) -> None:
        """Adds the runs of points (size, tokens, learning rate, seed).

        Starts the longest first, so that no core is idle at the end.
        """
        vocab_size = load_dataset(dataset).tokenizer.vocab_size

        def cost(point: tuple) -> int:
            return parameter_counts(point[0], vocab_size)[0] * point[1]

        longest_first = sorted(points, key=cost, reverse=True)
        results = run_all(
            {point: size_config(dataset, *point) for point in longest_first}, parallel
        )
        for point in points:
            size, tokens, rate, _ = point
            parameters, embedding = parameter_counts(size, vocab_size)
            row = {
                "part": part,
                "size": "x".join(map(str, size)),
                "parameters": parameters,
                "embedding": embedding,
                "tokens": tokens,
                "learning_rate": rate,
            }
            rows.append(row | results[point])

    # search for learning rates
    blocks = {size: parameter_counts(size, VOCAB_SIZE)[0] for size in SIZES}  # no embedding
    points = [(size, RATE_BUDGET, rate, 0) for rate in RATES for size in RATE_SIZES]
    while points:
        run("rates", LONG, points)
        losses = rate_losses(rows)
        wanted = {size: next_rate(losses[blocks[size]]) for size in RATE_SIZES}
        points = [(size, RATE_BUDGET, rate, 0) for size, rate in wanted.items() if rate is not None]
    c, p = rate_rule(rows)
    rates = {size: float(f"{c * parameters**p:.2g}") for size, parameters in blocks.items()}

    # sizes x budgets x seeds
    grid = itertools.product(range(1, seeds + 1), BUDGETS[:-1], SIZES[:-1])
    run("fit", LONG, [(size, tokens, rates[size], seed) for seed, tokens, size in grid])
    held_out = itertools.product(range(1, seeds + 1), HELD_OUT)
    run("held out", LONG, [(size, tokens, rates[size], seed) for seed, (size, tokens) in held_out])

    # several epochs of a short text
    tokens = EPOCHS * len(load_dataset(SHORT).train)
    run("short text", SHORT, [(size, tokens, rates[size], 1) for size in SIZES])
    return rows


# -------------------------------------------------------------------------------------------------
# results


def arrays(rows: list[dict], part: str, options: FitOptions = FITS[MAIN]) -> tuple[np.ndarray, ...]:
    """Parameters, tokens and final losses of the runs of a part that did not diverge."""
    points = []
    for row in rows:
        if row["part"] == part and row["final"] is not None and row["tokens"] >= options.min_tokens:
            embedding = row["embedding"] if options.count_embedding else 0
            points.append((row["parameters"] + embedding, row["tokens"], row["final"]))
    return tuple(np.array(points, dtype=float).T)


def middle_95(values: list[float], digits: int) -> str:
    """The range of the middle 95% of the values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.{digits}f} to {high:.{digits}f}"


# by the name of the fit: the law of all its runs, and the laws of resampled runs
Laws = dict[str, tuple[Law, list[Law]]]


def fit_laws(rows: list[dict]) -> Laws:
    laws = {}
    for name, options in FITS.items():
        points = arrays(rows, "fit", options)
        law = fit(*points)
        laws[name] = law, bootstrap(*points, law)
    return laws


def write_laws(path: Path, laws: Laws) -> None:
    """Writes E, A, B, alpha, beta of each law, followed by those of the bootstrap."""
    lists = {
        name: [astuple(each) for each in (law, *others)] for name, (law, others) in laws.items()
    }
    path.write_text(json.dumps(lists) + "\n", encoding="utf-8")


def read_laws(path: Path) -> Laws:
    laws = {}
    for name, lists in json.loads(path.read_text(encoding="utf-8")).items():
        law, *others = (Law(*values) for values in lists)
        laws[name] = law, others
    return laws


def predictions(rows: list[dict], laws: Laws) -> list[dict]:
    """Of each held-out point: parameters, tokens, losses, and what the laws predict.

    "predicted" has each law's loss by its name, "bootstrap" those of the main law's bootstrap.
    """
    points = defaultdict(list)
    for row in rows:
        if row["part"] == "held out":
            points[row["parameters"], row["embedding"], row["tokens"]].append(row["final"])
    result = []
    for (parameters, embedding, tokens), losses in points.items():
        predicted = {}
        for name, (law, _) in laws.items():
            N = parameters + embedding if FITS[name].count_embedding else parameters
            predicted[name] = law(N, tokens)
        result.append(
            {
                "parameters": parameters,
                "tokens": tokens,
                "losses": losses,
                "predicted": predicted,
                "bootstrap": [law(parameters, tokens) for law in laws[MAIN][1]],
            }
        )
    return result


def rate_table(rows: list[dict]) -> str:
    c, p = rate_rule(rows)
    lines = [
        {
            "parameters without embedding": f"{parameters:,}",
            "best learning rate": f"{best_rate(losses):.2g}",
            "by the rule": f"{c * parameters**p:.2g}",
        }
        for parameters, losses in sorted(rate_losses(rows).items())
    ]
    return markdown(lines)


def law_table(laws: Laws) -> str:
    lines = []
    for name, (law, others) in laws.items():
        line = {"fit": name}
        for value in ("E", "alpha", "beta"):
            values = [getattr(other, value) for other in others]
            line[value] = f"{getattr(law, value):.3f} ({middle_95(values, 3)})"
        lines.append(line | {"A": f"{law.A:.3g}", "B": f"{law.B:.3g}"})
    return markdown(lines)


def held_out_table(rows: list[dict], laws: Laws) -> str:
    lines = []
    for point in predictions(rows, laws):
        predicted = {name: f"{loss:.4f}" for name, loss in point["predicted"].items()}
        line = {
            "parameters": f"{point['parameters']:,}",
            "tokens": f"{point['tokens']:,}",
            "n": f"{len(point['losses'])}",
            "measured": f"{statistics.mean(point['losses']):.4f}",
            "predicted": predicted.pop(MAIN),
            "95% interval": middle_95(point["bootstrap"], 4),
        }
        lines.append(line | predicted)
    return markdown(lines)


def frontier_table(laws: Laws) -> str:
    """The best use of about as many operations as our budgets, and of up to 100 times as many."""
    law, lines = laws[MAIN][0], []
    for operations in np.logspace(11, 16, 6):
        N = law.best_parameters(operations)
        line = {
            "operations": f"{operations:.0e}",
            "best parameters": f"{N:,.0f}",
            "tokens": f"{operations / 6 / N:,.0f}",
            "predicted loss": f"{law.best_loss(operations):.3f}",
        }
        for name, (other, _) in laws.items():
            line[f"tokens per parameter, {name}"] = f"{other.best_ratio(operations):.1f}"
        lines.append(line)
    return markdown(lines)


def steps_per_epoch(row: dict) -> float:
    """Of a run on the short text."""
    return row["tokens"] / EPOCHS / BASE.tokens_per_step


def short_text_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        if row["part"] == "short text":
            best_step = row["val_steps"][row["val_losses"].index(min(row["val_losses"]))]
            line = {
                "parameters": f"{row['parameters']:,}",
                "learning rate": f"{row['learning_rate']:g}",
                "best loss": f"{row['best']:.4f}",
                "after epochs": f"{best_step / steps_per_epoch(row):.1f}",
                "loss at the end": "diverged" if row["final"] is None else f"{row['final']:.4f}",
            }
            lines.append(line)
    return markdown(lines)


def report_tables(rows: list[dict], laws: Laws) -> dict[str, str]:
    """The tables of REPORT.md, by name."""
    return {
        "rate table": rate_table(rows),
        "law table": law_table(laws),
        "held out table": held_out_table(rows, laws),
        "frontier table": frontier_table(laws),
        "short text table": short_text_table(rows),
    }


TITLES = {
    "rate table": "Best learning rates, and the rule that all other runs follow",
    "law table": "The law, with 95% intervals from resampled runs",
    "held out table": "Held-out runs: the first law's prediction and interval, and the other laws'",
    "frontier table": "The best use of a number of operations, by the first law",
    "short text table": f"One megabyte, up to {EPOCHS} epochs",
}


def tables(rows: list[dict], laws: Laws) -> str:
    """All of table.md."""
    parts = [f"{TITLES[name]}:\n\n{text}" for name, text in report_tables(rows, laws).items()]
    return "\n\n".join(parts)


def law_figure(rows: list[dict], laws: Laws) -> Figure:
    """Loss against parameters, tokens and operations, and the best tokens per parameter.

    Rings are held-out runs. Lines are dashed beyond the largest fitted size, budget or cost.
    """
    law, resampled = laws[MAIN]
    figure = Figure(figsize=(10, 8), layout="constrained")
    (by_size, by_tokens), (by_operations, best) = figure.subplots(2, 2)
    dot, ring = {"markersize": 4}, {"markersize": 7, "fillstyle": "none"}
    N, D, L = arrays(rows, "fit")
    held_N, held_D, held_L = arrays(rows, "held out")
    sizes = np.unique(np.concatenate((N, held_N)))
    budgets = np.unique(np.concatenate((D, held_D)))

    # loss against size, a line for each budget; loss against budget, a line for each size
    for tokens, color in zip(budgets, COLORS):
        fitted, held = tokens == D, tokens == held_D
        by_size.plot(N[fitted], L[fitted], "o", color=color, label=f"{tokens:,.0f} tokens", **dot)
        by_size.plot(held_N[held], held_L[held], "o", color=color, **ring)
        x = np.union1d(np.geomspace(N.min(), held_N.max(), 50), N.max())
        plot_solid_then_dashed(by_size, x, law(x, tokens), N.max(), color=color, linewidth=0.8)
    for size, color in zip(sizes, COLORS):
        fitted, held = size == N, size == held_N
        label = f"{size:,.0f} parameters"
        by_tokens.plot(D[fitted], L[fitted], "o", color=color, label=label, **dot)
        by_tokens.plot(held_D[held], held_L[held], "o", color=color, **ring)
        x = np.union1d(np.geomspace(D.min(), held_D.max(), 50), D.max())
        plot_solid_then_dashed(by_tokens, x, law(size, x), D.max(), color=color, linewidth=0.8)
        cost, held_cost = 6 * N * D, 6 * held_N * held_D
        by_operations.plot(cost[fitted], L[fitted], "o", color=color, **dot)
        by_operations.plot(held_cost[held], held_L[held], "o", color=color, **ring)

    # the best use of operations
    most = cost.max()
    operations = np.union1d(np.geomspace(cost.min(), 100 * (held_N * held_D).max(), 50), most)
    losses = law.best_loss(operations)
    plot_solid_then_dashed(by_operations, operations, losses, most, color="black")
    for (name, (other, _)), color in zip(laws.items(), ("black", *COLORS)):
        ratios = other.best_ratio(operations)
        plot_solid_then_dashed(best, operations, ratios, most, color=color, label=name)
    ratios = [other.best_ratio(operations) for other in resampled]
    low, high = np.percentile(ratios, [2.5, 97.5], axis=0)
    best.fill_between(operations, low, high, color="gray", alpha=0.2, linewidth=0)
    best.axhline(20, color="gray", linestyle=":")
    best.text(operations[0], 22, "Chinchilla: 20", color="gray")

    labels = ("parameters without embedding", "tokens trained on", "operations", "operations")
    for axis, label in zip(figure.axes, labels):
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("final validation loss [nats per token]")
        axis.grid(alpha=0.3)
    by_tokens.set_xticks(budgets, [f"{tokens / 1e6:g}M" for tokens in budgets])
    by_tokens.minorticks_off()
    best.set_yscale("log")
    best.set_ylabel("best tokens per parameter")
    for axis in (by_size, by_tokens, best):
        axis.legend(frameon=False, fontsize=8)
    return figure


def plot_solid_then_dashed(axis, x, y, limit: float, label: str | None = None, **style) -> None:
    """A line, solid up to x = limit and dashed beyond it."""
    axis.plot(x[x <= limit], y[x <= limit], "-", label=label, **style)
    axis.plot(x[x >= limit], y[x >= limit], "--", **style)


def short_text_figure(rows: list[dict]) -> Figure:
    """Validation loss over epochs, a line for each size."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for row, color in zip([row for row in rows if row["part"] == "short text"], COLORS):
        epochs = np.array(row["val_steps"][1:]) / steps_per_epoch(row)
        label = f"{row['parameters']:,} parameters"
        axis.plot(epochs, row["val_losses"][1:], "o-", color=color, markersize=3, label=label)
    axis.set_xlabel("epochs")
    axis.set_ylabel("validation loss [nats per token]")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    return figure


def redraw(results: Path) -> None:
    """Writes the table and the figures from runs.jsonl and laws.json."""
    folder = results / "scaling"
    rows, laws = read_rows(folder / "runs.jsonl"), read_laws(folder / "laws.json")
    (folder / "table.md").write_text(tables(rows, laws) + "\n", encoding="utf-8")
    law_figure(rows, laws).savefig(folder / "law.png", dpi=110)
    short_text_figure(rows).savefig(folder / "short_text.png", dpi=110)


# -------------------------------------------------------------------------------------------------
# the command


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
        "--redraw", action="store_true", help="only table and figures, from runs.jsonl"
    )
    args = parser.parse_args(argv)
    if min(args.seeds, args.parallel) < 1:
        parser.error("--seeds and --parallel must be at least 1")
    folder = args.results / "scaling"
    if not args.redraw:
        for dataset in (LONG, SHORT):
            prepare_missing(dataset)
        write_rows(folder / "runs.jsonl", run_analysis(args.seeds, args.parallel))
    write_laws(folder / "laws.json", fit_laws(read_rows(folder / "runs.jsonl")))
    redraw(args.results)
    print((folder / "table.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    raise SystemExit(main())
