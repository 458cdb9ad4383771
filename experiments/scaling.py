"""How does the loss fall with parameters and text, and do small models predict larger ones?

python -m experiments.scaling                                       100 minutes on 2 shared cores
python -m experiments.scaling --steps 20 --results out/trial        a small one

Searches for the best learning rate of a few sizes and fits a rule to them; trains five sizes on
budgets of text that are read less than once; fits L(N, D) = E + A / N^alpha + B / D^beta; and
compares that law with a larger model and a longer budget held out from the fit. Finally trains
every size on one megabyte of text, for several epochs. An interrupted analysis resumes where it
stopped. It leaves runs.jsonl and laws.json in <results>/scaling/.
"""

import itertools
import math
import statistics
from collections import defaultdict
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.cli import Parser, command
from common.dataset import load_dataset
from common.errors import UserError
from config import Config
from experiments.ablate import next_rate
from experiments.runs import (
    SHORT_RUN,
    Trainer,
    add_options,
    cores,
    in_run_folder,
    markdown,
    read_json,
    write_json,
    write_rows,
)
from model import GPTConfig, count_parameters
from prepare import prepare_missing

LONG = "python_byte"  # text that is read less than once
SHORT = "shakespeare_char"  # text that is read several times
BASE = replace(SHORT_RUN, block_size=128, batch_size=8, device="cpu")
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
# --steps changes these, and all others in proportion
RATE_STEPS = RATE_BUDGET // BASE.tokens_per_step
EPOCHS = 6  # of the short text
SEEDS = 2  # of the runs on long text
STARTS = 8  # starting points of a fit
HUBER_DELTA = 1e-3  # of the log loss that is fitted
REPEATS = 200  # fits to resampled points


@dataclass(frozen=True)
class FitOptions:
    count_embedding: bool = False  # among the parameters
    shortest_budget: bool = True  # among the fitted runs


FITS = {
    "without embedding": FitOptions(),
    "with embedding": FitOptions(count_embedding=True),
    "without the shortest budget": FitOptions(shortest_budget=False),
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

    def best_parameters(self, flops):
        """The N at which a model trained with 6 N D FLOPs reaches the lowest loss."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        exponent = 1 / (self.alpha + self.beta)
        return ratio**exponent * (flops / 6) ** self.growth

    def best_ratio(self, flops):
        """Tokens per parameter at best_parameters."""
        return flops / 6 / self.best_parameters(flops) ** 2

    def best_loss(self, flops):
        N = self.best_parameters(flops)
        return self(N, flops / 6 / N)

    @property
    def growth(self) -> float:
        """The exponent of best_parameters."""
        return self.beta / (self.alpha + self.beta)


def fit(N, D, L, starts: list[np.ndarray] | None = None) -> Law:
    """The law closest to losses L of N parameters and D tokens, each (n,), from the best start."""
    logs = [torch.tensor(np.log(values), dtype=torch.float64) for values in (N, D, L)]
    descents = [descend(start, *logs) for start in starts or find_starts(N, D, L)]
    _, (e, a, b, alpha, beta) = min(descents)
    # few or short runs may look as if more parameters or text did harm: keep the exponents positive
    return Law(math.exp(e), math.exp(a), math.exp(b), max(alpha, 1e-3), max(beta, 1e-3))


def descend(start: np.ndarray, log_N, log_D, log_L) -> tuple[float, list[float]]:
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
        value = F.huber_loss(predicted, log_L, delta=HUBER_DELTA, reduction="sum") / HUBER_DELTA
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
    """Laws fitted to as many points (N, D), drawn from these with replacement.

    The runs of a point, with different seeds, are drawn together: the misfit of the law is the same
    for all of them.
    """
    rng = np.random.default_rng(0)
    start = np.array([*np.log([law.E, law.A, law.B]), law.alpha, law.beta])
    points = {}
    for run, point in enumerate(zip(N, D)):
        points.setdefault(point, []).append(run)
    runs, laws = list(points.values()), []
    for _ in range(REPEATS):
        draw = np.concatenate([runs[point] for point in rng.integers(len(runs), size=len(runs))])
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
    steps = max(1, tokens // BASE.tokens_per_step)
    evaluations, patience = (2 * EPOCHS, 3) if dataset == SHORT else (4, None)
    config = replace(
        BASE,
        dataset=dataset,
        n_layers=layers,
        d_model=width,
        n_heads=width // HEAD_DIM,
        max_steps=steps,
        warmup_steps=steps // 10,
        eval_interval=math.ceil(steps / evaluations),
        patience=patience,
        learning_rate=rate,
        seed=seed,
    )
    return in_run_folder(config, "out/scaling")


def best_rate(losses: dict[float, float]) -> float:
    """The minimum of the parabola, over log rate, through the best rate and its neighbors.

    The best rate itself if one of them is missing or diverged.
    """
    rates = sorted(losses)
    best = min(losses, key=losses.get)
    near = rates[max(0, rates.index(best) - 1) : rates.index(best) + 2]
    if len(near) < 3 or not all(math.isfinite(losses[rate]) for rate in near):
        return best
    a, b, _ = np.polyfit(np.log(near), [losses[rate] for rate in near], 2)
    return math.exp(-b / (2 * a)) if a > 0 else best


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


def run_analysis(seeds: int, trainer: Trainer, scale: float = 1.0) -> list[dict]:
    """The result of every run, with its part, size and tokens; trains only what is missing.

    scale: of the lengths of all runs. Raises UserError if the long text is too short.
    """
    datasets = {name: load_dataset(name) for name in (LONG, SHORT)}
    longest, available = round(scale * max(BUDGETS)), len(datasets[LONG].train)
    if longest > available:
        raise UserError(
            f"the longest runs read {longest:,} tokens, but {LONG} has only {available:,} for"
            " training: lower --steps",
            status=2,
        )
    blocks = {size: parameter_counts(size, VOCAB_SIZE)[0] for size in SIZES}  # no embedding
    on_long_text = [
        *(("fit", *point) for point in itertools.product(BUDGETS[:-1], SIZES[:-1])),
        *(("held out", tokens, size) for size, tokens in HELD_OUT),
    ]
    rows = []

    def run(points: list[tuple], later: int = 0) -> None:
        """Adds the runs of points (part, dataset, size, tokens before scaling, rate, seed).

        Starts the longest first, so that no core is idle at the end.
        """
        configs = {}
        for point in sorted(points, key=lambda point: blocks[point[2]] * point[3], reverse=True):
            _, dataset, size, tokens, rate, seed = point
            configs[point] = size_config(dataset, size, round(scale * tokens), rate, seed)
        results = trainer(configs, later)
        for point in points:
            part, dataset, size, tokens, rate, _ = point
            data = datasets[dataset]
            parameters, embedding = parameter_counts(size, data.tokenizer.vocab_size)
            row = {
                "part": part,
                "size": "x".join(map(str, size)),
                "parameters": parameters,
                "embedding": embedding,
                "tokens": round(scale * tokens),
                "epochs": round(scale * tokens / len(data.train), 3),
                "learning_rate": rate,
            }
            rows.append(results[point] | row)

    # search for learning rates
    wanted = [(size, rate) for rate in RATES for size in RATE_SIZES]
    while wanted:
        points = [("rates", LONG, size, RATE_BUDGET, rate, 0) for size, rate in wanted]
        run(points, later=len(on_long_text) * seeds + len(SIZES))
        losses = rate_losses(rows)
        following = {size: next_rate(losses[blocks[size]]) for size in RATE_SIZES}
        wanted = [(size, rate) for size, rate in following.items() if rate is not None]
    c, p = rate_rule(rows)
    rates = {size: float(f"{c * parameters**p:.2g}") for size, parameters in blocks.items()}

    # sizes x budgets x seeds of the long text; several epochs of the short text
    points = [
        (part, LONG, size, tokens, rates[size], seed)
        for part, tokens, size in on_long_text
        for seed in range(1, seeds + 1)
    ]
    tokens = EPOCHS * len(datasets[SHORT].train)
    points += [("short text", SHORT, size, tokens, rates[size], 1) for size in SIZES]
    run(points)
    return rows


# -------------------------------------------------------------------------------------------------
# results


def arrays(rows: list[dict], part: str, options: FitOptions = FITS[MAIN]) -> tuple[np.ndarray, ...]:
    """Parameters, tokens and final losses of the runs of a part that did not diverge."""
    runs = [row for row in rows if row["part"] == part and row["final"] is not None]
    shortest = min(row["tokens"] for row in runs)
    points = []
    for row in runs:
        if options.shortest_budget or row["tokens"] > shortest:
            embedding = row["embedding"] if options.count_embedding else 0
            points.append((row["parameters"] + embedding, row["tokens"], row["final"]))
    return tuple(np.array(points, dtype=float).T)


def middle_95(values: list[float], digits: int) -> str:
    """The range of the middle 95% of the values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.{digits}f} to {high:.{digits}f}"


# by the name of the fit: the law of all its runs, and the laws of resampled points
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
    write_json(path, lists)


def read_laws(path: Path) -> Laws:
    laws = {}
    for name, lists in read_json(path).items():
        law, *others = (Law(*values) for values in lists)
        laws[name] = law, others
    return laws


def predictions(rows: list[dict], laws: Laws) -> list[dict]:
    """Of each held-out point: parameters, tokens, losses, and what the laws predict.

    "predicted" has each law's loss by its name, "bootstrap" those of the main law's bootstrap.
    """
    points = defaultdict(list)
    for row in rows:
        if row["part"] == "held out" and row["final"] is not None:
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
        for value, letter in (("E", "E"), ("alpha", "α"), ("beta", "β")):
            values = [getattr(other, value) for other in others]
            line[letter] = f"{getattr(law, value):.2f} ({middle_95(values, 2)})"
        lines.append(line)
    return markdown(lines)


def held_out_table(rows: list[dict], laws: Laws) -> str:
    lines = []
    for point in predictions(rows, laws):
        predicted = {name: f"{loss:.3f}" for name, loss in point["predicted"].items()}
        line = {
            "parameters": f"{point['parameters']:,}",
            "tokens": f"{point['tokens']:,}",
            "n": f"{len(point['losses'])}",
            "measured": f"{statistics.mean(point['losses']):.3f}",
            "predicted": predicted.pop(MAIN),
            "95% interval": middle_95(point["bootstrap"], 3),
        }
        lines.append(line | predicted)
    return markdown(lines)


def report_tables(rows: list[dict], laws: Laws) -> dict[str, str]:
    """The tables of REPORT.md, by name."""
    return {
        "rate table": rate_table(rows),
        "law table": law_table(laws),
        "held out table": held_out_table(rows, laws),
    }


def tables(rows: list[dict], laws: Laws) -> str:
    """All tables, with what they show."""
    parts = report_tables(rows, laws)
    return (
        "Best learning rates, and the rule that all other runs follow:\n\n"
        f"{parts['rate table']}\n\nThe law, with 95% intervals from resampled points:\n\n"
        f"{parts['law table']}\n\nHeld-out runs: the first law's prediction and interval, and the"
        f" other laws':\n\n{parts['held out table']}"
    )


# -------------------------------------------------------------------------------------------------
# the command


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.scaling", description=__doc__)
    add_options(parser)
    args = parser.parse_args(argv)
    folder = args.results / "scaling"
    for dataset in (LONG, SHORT):
        prepare_missing(dataset)
    with Trainer(args.parallel or cores()) as trainer:
        rows = run_analysis(args.seeds or SEEDS, trainer, (args.steps or RATE_STEPS) / RATE_STEPS)
    write_rows(folder / "runs.jsonl", rows)
    laws = fit_laws(rows)
    write_laws(folder / "laws.json", laws)
    print(tables(rows, laws))
    print(f"\npython -m experiments.report --results {args.results} writes a report")


if __name__ == "__main__":
    raise SystemExit(main())
