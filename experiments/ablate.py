"""Which choices matter? A study trains several arms with the same seeds and compares them in pairs.

python -m experiments.ablate norms                                  --help lists the studies
python -m experiments.ablate norms --steps 50 --seeds 2 --results out/trial        a small one

Most studies first search for each arm's best learning rate, with a seed that is used for nothing
else, and then train the arm at that rate with all the other seeds. An interrupted study resumes
where it stopped. It leaves runs.jsonl in <results>/<study>/.
"""

import math
import statistics
from dataclasses import dataclass, field, replace

import torch

from common.arguments import read_file
from common.cli import Parser, command
from common.dataset import load_dataset
from common.device import pick_device
from common.errors import UserError
from config import SETTINGS, Config, make_config
from experiments.runs import (
    SHORT_RUN,
    STUDENT_T,
    Trainer,
    add_options,
    cores,
    in_run_folder,
    interval,
    markdown,
    plus_minus,
    with_steps,
    write_rows,
)
from model import flops_per_token
from prepare import prepare_missing

SEARCH_SEED = 0  # used only to search for learning rates
MAX_RATES = 8  # learning rates tried per arm; the search widens while the best is at an edge
PAIR_DEVIATION = 0.010  # nats: standard deviation of paired differences, from the study "recipe"
TOLERANCE = 0.5  # nats above the arm's best loss; at higher losses a rate counts as too high
# Smaller differences do not count, even if their interval excludes zero. If none of the 27 arms of
# "recipe" had an effect, at most 5% of such studies would show one this large (Bonferroni, with
# PAIR_DEVIATION for all arms).
THRESHOLD = 0.02

# For a CPU, a model as deep as that of configs/shakespeare_char.py and a quarter as wide, for less
# than one epoch; for a GPU that model itself, for three epochs.
BASE = replace(SHORT_RUN, dataset="shakespeare_char", warmup_steps=50)
CPU = replace(BASE, d_model=96, n_heads=3, block_size=128, batch_size=8, max_steps=600)
GPU = replace(BASE, batch_size=16, max_steps=735, compile="auto")  # steps recorded as CUDA graphs


# -------------------------------------------------------------------------------------------------
# the studies


@dataclass(frozen=True)
class Times:
    """In an arm: the base's value of a setting times a factor."""

    factor: float


@dataclass(frozen=True)
class Study:
    """Arms by name: the settings that differ from the base. All are compared with the first arm."""

    question: str
    arms: dict[str, dict]
    seeds: int = 5
    config: str | None = None  # the file with the base's settings for a CPU; none: CPU or GPU
    overrides: dict = field(default_factory=dict)  # settings of the base that are not the file's
    steps: int | None = None  # of the base, instead of those in the file
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)  # learning rates; empty: each arm's own
    search: bool = True  # search from the rates; False: train at every one with all seeds
    equal_compute: bool = False  # arms with larger models get fewer steps
    timed: bool = False  # compare training times as well
    evaluations: int = 4  # during a run
    compare: str = "final"  # which loss of a run: after the last step, or "best"

    @property
    def first(self) -> str:
        return next(iter(self.arms))

    @property
    def unit(self) -> str:
        """The name of the loss to compare; nats of different tokens can't be compared."""
        by_dataset = any("dataset" in settings for settings in self.arms.values())
        return "bits_per_byte" if by_dataset else self.compare


def shape(layers: int, width: float) -> dict:
    """Settings for `layers` layers, `width` times as wide as the base, with heads of its size."""
    return {"n_layers": layers, "d_model": Times(width), "n_heads": Times(width)}


def vocabulary(tokenizer: str, batch_size: int = 16) -> dict:
    """Settings for Python code in this tokenizer, without the base's convolution.

    Larger vocabularies need smaller batches, so that all arms take about as many steps at equal
    compute.
    """
    settings = {"conv_width": 1, "weight_decay": 0.1, "eval_tokens": 20_000}
    return settings | {"dataset": f"python_{tokenizer}", "batch_size": batch_size}


SHORT = {"max_steps": Times(1 / 2)}
POST = SHORT | {"norm_position": "post"}
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3}
# shakespeare_small.py when the studies were run
OLDER = {"confidence_penalty": 0.0, "optimizer": "muon", "max_steps": 2941}

STUDIES = {
    "norms": Study(
        "Does it matter which norm is used, and where?",
        {
            "rmsnorm, pre": {"norm_type": "rmsnorm", "norm_position": "pre"},
            "rmsnorm, post": {"norm_type": "rmsnorm", "norm_position": "post"},
            "layernorm, pre": {"norm_type": "layernorm", "norm_position": "pre"},
            "layernorm, post": {"norm_type": "layernorm", "norm_position": "post"},
            "none": {"norm_type": "none"},
            "none, no QK-norm": {"norm_type": "none", "qk_norm": False},
        },
    ),
    "stability": Study(
        "At which learning rate does training break, and what prevents that?",
        {
            "pre-norm": SHORT,
            "pre-norm, no warmup": SHORT | {"warmup_steps": 0},
            "pre-norm, no clipping": SHORT | {"grad_clip": 0.0},
            "pre-norm, no QK-norm": SHORT | {"qk_norm": False},
            "pre-norm, no weight decay": SHORT | {"weight_decay": 0.0},
            "post-norm": POST,
            "post-norm, no warmup": POST | {"warmup_steps": 0},
            "post-norm, no clipping": POST | {"grad_clip": 0.0},
            "post-norm, no QK-norm": POST | {"qk_norm": False},
            "post-norm, no weight decay": POST | {"weight_decay": 0.0},
        },
        seeds=3,
        rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1),
        search=False,
    ),
    "positions": Study(
        "How should positions be encoded?",
        {
            "rope": {"pos_type": "rope"},
            "learned": {"pos_type": "learned"},
            "none": {"pos_type": "none"},
        },
    ),
    "mlp": Study(
        "Which nonlinearity, at equal parameters?",
        {
            "swiglu": {"mlp_type": "swiglu"},
            "gelu": {"mlp_type": "gelu"},
            "relu2": {"mlp_type": "relu2"},
        },
    ),
    "shape": Study(
        "Deep or wide, at equal compute?",
        {
            "6 layers": {},
            "1 layer, 7/3 as wide": shape(1, 7 / 3),
            "3 layers, 4/3 as wide": shape(3, 4 / 3),
            "14 layers, 2/3 as wide": shape(14, 2 / 3),
        },
        equal_compute=True,
        timed=True,
    ),
    "tokenizer": Study(
        "Which vocabulary suits a small model, at equal compute?",
        {
            "byte": vocabulary("byte"),
            "char": vocabulary("char"),
            "bpe1024": vocabulary("bpe1024"),
            "bpe4096": vocabulary("bpe4096", batch_size=12),
            "bpe16384": vocabulary("bpe16384", batch_size=6),
            "GPT-2's bpe": vocabulary("bpe", batch_size=3),
        },
        seeds=3,
        config="configs/shakespeare_small.py",
        overrides=OLDER,
        steps=800,
        rates=(),
        equal_compute=True,
    ),
    "optimizer": Study(
        "AdamW or Muon, at equal steps and at equal time?",
        {
            "adamw": {},
            "muon": {"optimizer": "muon"},
            "muon, 0.86 of the steps": {"optimizer": "muon", "max_steps": Times(0.86)},
        },
        timed=True,
    ),
    "recipe": Study(
        "Which settings of configs/shakespeare_char.py matter on a CPU?",
        {
            "base": {},
            "learning rate 3e-3": {"learning_rate": 3e-3},
            "learning rate 1.2e-2": {"learning_rate": 1.2e-2},
            "cosine to a tenth, not to zero": {"min_lr": 6e-4},
            "no warmup": {"warmup_steps": 0},
            "no weight decay": {"weight_decay": 0.0},
            "weight decay 0.3": {"weight_decay": 0.3},
            "no clipping": {"grad_clip": 0.0},
            "dropout 0.1": {"dropout": 0.1},
            "average of the weights, 0.99": {"ema_decay": 0.99},
            "random windows": {"batch_order": "random"},
            "8 sequences a step, twice the steps": {"batch_size": 8, "max_steps": Times(2)},
            "32 sequences a step, half the steps": {"batch_size": 32, "max_steps": Times(1 / 2)},
            "32 blocks of 64": {"block_size": 64, "batch_size": 32},
            "8 blocks of 256": {"block_size": 256, "batch_size": 8},
            "2 heads of 64": {"n_heads": 2},
            "no QK-norm": {"qk_norm": False},
            "LayerNorm": {"norm_type": "layernorm"},
            "learned positions": {"pos_type": "learned"},
            "GELU": {"mlp_type": "gelu"},
            "relu2": {"mlp_type": "relu2"},
            "untied output head": {"tie_embeddings": False},
            "AdamW, 4e-3": ADAMW,
            "AdamW, 2e-3": ADAMW | {"learning_rate": 2e-3},
            "AdamW, 8e-3": ADAMW | {"learning_rate": 8e-3},
            "AdamW, 4e-3, beta2 0.99": ADAMW | {"beta2": 0.99},
            "AdamW, 4e-3, cosine to a tenth": ADAMW | {"min_lr": 4e-4},
            "AdamW, 4e-3, average of the weights, 0.99": ADAMW | {"ema_decay": 0.99},
        },
        seeds=3,
        config="configs/shakespeare_char.py",
        overrides={"optimizer": "muon"},  # as when the study was run
        steps=500,  # one epoch
        rates=(),
    ),
    "long": Study(
        "Which effects last when the text is read many times?",
        {
            "base": {},
            "LayerNorm": {"norm_type": "layernorm"},
            "post-norm": {"norm_position": "post"},
            "learned positions": {"pos_type": "learned"},
            "GELU": {"mlp_type": "gelu"},
            "AdamW, 2e-3": ADAMW | {"learning_rate": 2e-3},
            "AdamW, 4e-3": ADAMW,
            "AdamW, 8e-3": ADAMW | {"learning_rate": 8e-3},
            "no QK-norm": {"qk_norm": False},
            "no short convolution": {"conv_width": 1},
            "weight decay 0.1": {"weight_decay": 0.1},
            "dropout 0.1": {"dropout": 0.1},
        },
        seeds=3,
        config="configs/shakespeare_small.py",
        overrides=OLDER,
        rates=(),
        evaluations=6,  # one per epoch
        compare="best",
    ),
}

# -------------------------------------------------------------------------------------------------
# running a study


def base_config(study: Study, device: torch.device) -> Config:
    """The settings that a study's arms change. Raises UserError."""
    if study.config is None:
        base = CPU if device.type == "cpu" else GPU
        values = {name: getattr(base, name) for name in SETTINGS}
    else:
        values, on_cpu = read_file(study.config)
        run = {"run_name": "run", "sample_interval": 0, "save_interval": 0}
        values |= on_cpu | run | {"wandb_mode": "disabled"}
    steps = {"max_steps": study.steps} if study.steps else {}
    return make_config(values | study.overrides | steps)


def arm_config(study: Study, base: Config, arm: str) -> Config:
    """The base with an arm's settings. If they change the number of steps, warmup scales too.

    Raises UserError.
    """
    settings = {
        name: round(value.factor * getattr(base, name)) if isinstance(value, Times) else value
        for name, value in study.arms[arm].items()
    }
    length = settings.pop("max_steps", base.max_steps) / base.max_steps
    config = make_config({name: getattr(base, name) for name in SETTINGS} | settings)
    if study.equal_compute and arm != study.first:
        flops = flops_per_step(arm_config(study, base, study.first))
        length *= flops / flops_per_step(config)
    steps = max(1, round(length * base.max_steps))
    warmup = round(length * config.warmup_steps)
    every = math.ceil(steps / study.evaluations)
    return replace(config, max_steps=steps, warmup_steps=warmup, eval_interval=every)


def check(study: Study, seeds: int) -> None:
    """Raises UserError if the study's definition is inconsistent."""
    if not 2 <= seeds <= 1 + len(STUDENT_T):
        raise UserError(f"a study needs 2 to {1 + len(STUDENT_T)} seeds, not {seeds}", status=2)
    if study.search and len(study.rates) == 1:
        raise UserError("a search needs at least two learning rates to start from", status=2)
    fixed = {"seed", "eval_interval", *(["learning_rate"] if study.rates else [])}
    for arm, settings in study.arms.items():
        if clash := fixed & settings.keys():
            names = ", ".join(clash)
            raise UserError(f"arm {arm!r} can't set {names}: the study does", status=2)
        if not isinstance(settings.get("max_steps", Times(1)), Times):
            problem = f"arm {arm!r} must set max_steps in proportion to the base, as Times(...)"
            raise UserError(problem, status=2)


def flops_per_step(config: Config) -> float:
    """FLOPs of a training step."""
    vocab_size = load_dataset(config.dataset).tokenizer.vocab_size
    return flops_per_token(replace(config, vocab_size=vocab_size)) * config.tokens_per_step


def run_study(
    study: Study, base: Config, seeds: int, trainer: Trainer, folder: str = "out/ablate"
) -> list[dict]:
    """The result of every run, with its arm and learning rate; trains only those that `folder`
    lacks.
    """
    arms = {arm: arm_config(study, base, arm) for arm in study.arms}

    def run(points: list[tuple[str, float, int]], later: int = 0) -> dict[tuple, dict]:
        configs = {}
        for arm, rate, seed in points:
            config = replace(arms[arm], learning_rate=rate, seed=seed)
            configs[arm, rate, seed] = in_run_folder(config, folder)
        return trainer(configs, later)

    if study.rates and study.search:
        points = [(arm, rate, SEARCH_SEED) for rate in study.rates for arm in arms]
        best = {}
        while len(best) < len(arms):
            results = run(points, later=seeds * len(arms))
            for arm in arms:
                losses = {
                    rate: loss(study, result)
                    for (other, rate, _), result in results.items()
                    if other == arm
                }
                rate = next_rate(losses)
                if rate is None:
                    best[arm] = min(sorted(losses), key=losses.get)
                else:
                    points.append((arm, rate, SEARCH_SEED))
        points += [(arm, best[arm], seed) for seed in range(1, seeds + 1) for arm in arms]
    else:
        points = [
            (arm, rate, seed)
            for seed in range(1, seeds + 1)  # the pairs that are compared run close together
            for arm, config in arms.items()
            for rate in study.rates or [config.learning_rate]
        ]
    return [
        {"arm": arm, "learning_rate": rate, **result}
        for (arm, rate, _), result in run(points).items()
    ]


def next_rate(losses: dict[float, float]) -> float | None:
    """The learning rate to try after these, which are in equal ratios, or None if that is enough.

    Goes beyond the edge at which the best rate lies, until the best lies between worse ones. Of
    equal losses, such as those of runs that all diverged, the one at the lowest rate is the best.
    """
    rates = sorted(losses)
    ratio = rates[1] / rates[0]
    best = min(rates, key=losses.get)
    if rates[0] < best < rates[-1] or len(rates) >= MAX_RATES:
        return None
    return rates[0] / ratio if best == rates[0] else rates[-1] * ratio


# -------------------------------------------------------------------------------------------------
# results of a study


def loss(study: Study, result: dict) -> float:
    """The loss that the study compares; infinite if the run diverged."""
    return math.inf if result["diverged"] is not None else result[study.unit]


def rates_of(rows: list[dict], arm: str | None = None) -> list[float]:
    return sorted({row["learning_rate"] for row in rows if arm in (None, row["arm"])})


def losses_at(study: Study, rows: list[dict], arm: str, rate: float) -> list[float]:
    """The loss of every run of an arm at a learning rate."""
    return [loss(study, row) for row in rows if (row["arm"], row["learning_rate"]) == (arm, rate)]


def best_runs(study: Study, rows: list[dict], arm: str) -> list[dict]:
    """An arm's runs at its best learning rate, except the one of the search. Raises UserError."""
    runs = [row for row in rows if row["arm"] == arm and row["seed"] != SEARCH_SEED]
    if not runs:
        raise UserError(f"the results have no runs of the arm {arm!r}: run the study again")
    best = min(rates_of(runs), key=lambda rate: sum(losses_at(study, runs, arm, rate)))
    return [row for row in runs if row["learning_rate"] == best]


def difference(study: Study, rows: list[dict], arm: str) -> tuple[float, float] | None:
    """How much higher an arm's loss is than the first arm's, paired by seed, and half its interval.

    None for the first arm itself, with fewer than two pairs, or if a run of either arm diverged.
    """
    reference = {row["seed"]: loss(study, row) for row in best_runs(study, rows, study.first)}
    runs = [row for row in best_runs(study, rows, arm) if row["seed"] in reference]
    pairs = [loss(study, row) - reference[row["seed"]] for row in runs]
    if arm == study.first or len(pairs) < 2 or not all(map(math.isfinite, pairs)):
        return None
    return interval(pairs)


def why_not_compared(study: Study, rows: list[dict], arm: str) -> str:
    """The reason why difference() returns None for an arm."""
    for name in (arm, study.first):
        if any(row["diverged"] is not None for row in best_runs(study, rows, name)):
            return f"a run of {name} diverged"
    return "fewer than two pairs of runs"


def counts(mean: float, half: float) -> bool:
    """Whether a difference with half the width of its interval counts as an effect."""
    return abs(mean) > half and abs(mean) >= THRESHOLD


def arms_of(study: Study, rows: list[dict]) -> list[str]:
    """The arms that have runs."""
    return [arm for arm in study.arms if any(row["arm"] == arm for row in rows)]


def comparison_table(study: Study, rows: list[dict]) -> str:
    """Each arm at its best learning rate, compared with the first arm."""
    lines, unit = [], "bits per byte" if study.unit == "bits_per_byte" else "loss"
    for arm in arms_of(study, rows):
        runs = best_runs(study, rows, arm)
        losses = [loss(study, row) for row in runs if row["diverged"] is None]
        pair = difference(study, rows, arm)
        spread = ""  # the mean of the runs that did not diverge would flatter the arm
        if len(losses) == len(runs) > 1:
            spread = f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}"
        line = {
            "arm": arm,
            "learning rate": f"{runs[0]['learning_rate']:g}",
            "steps": f"{runs[0]['steps']:,}",
            "n": f"{len(runs)}",
            "diverged": f"{len(runs) - len(losses)}",
            f"{unit} (mean ± sd)": spread,
            "difference": plus_minus(*pair) if pair else "",
        }
        if study.timed:
            line["training [s]"] = f"{median_seconds(runs):.1f}"
        lines.append(line)
    return markdown(lines)


def median_seconds(runs: list[dict]) -> float:
    """Seconds of training, without evaluations: the median over runs of equal length."""
    times = [row["milliseconds_per_step"] * row["steps"] / 1000 for row in runs]
    return statistics.median(times)


def early_and_late_table(study: Study, rows: list[dict]) -> str:
    """Each arm's difference from the first one, after one evaluation interval and at the end.

    An effect appears, vanishes or reverses only if the change of the difference counts, too.
    """
    early, changes, lines = [], [], []
    for row in rows:
        # in nats per token; [0] is of the untrained model, the only one if the run diverged early
        value = row["val_losses"][:2][-1]
        if study.unit == "bits_per_byte" and row["diverged"] is None:
            value *= row["bits_per_byte"] / row["final"]
        early.append(row | {study.unit: value})
        changes.append(row | {study.unit: loss(study, row) - value})
    for arm in arms_of(study, rows)[1:]:
        pairs = [difference(study, part, arm) for part in (early, rows, changes)]
        if None not in pairs:
            match [counts(*pair) for pair in pairs]:
                case [True, True, False]:
                    verdict = "stays"
                case [True, True, True]:
                    verdict = "stays" if pairs[0][0] * pairs[1][0] > 0 else "reverses"
                case [True, False, True]:
                    verdict = "vanishes"
                case [False, True, True]:
                    verdict = "appears"
                case _:
                    verdict = ""
            first, last, _ = (plus_minus(*pair) for pair in pairs)
            lines.append({"change": arm, "early": first, "at the end": last, "the effect": verdict})
    return markdown(lines)


def vocabulary_table(study: Study, rows: list[dict]) -> str:
    """The size, speed and bits per byte of each arm, with its context and its text in bytes."""
    lines = []
    for arm in arms_of(study, rows):
        runs = best_runs(study, rows, arm)
        tokens, size = runs[0]["tokens"], runs[0]["bytes_per_token"]
        pair = difference(study, rows, arm)
        losses = [row["bits_per_byte"] for row in runs]
        line = {
            "tokenizer": arm,
            "parameters": f"{runs[0]['parameters']:,}",
            "bytes per token": f"{size:.2f}",
            "context [bytes]": f"{runs[0]['block_size'] * size:.0f}",
            "bytes read": f"{tokens * size / 1e6:.1f}M",
            "tokens/s": f"{tokens / median_seconds(runs):,.0f}",
            "bits per byte": "" if None in losses else f"{statistics.mean(losses):.3f}",
            "difference": plus_minus(*pair) if pair else "",
        }
        lines.append(line)
    return markdown(lines)


def rate_table(study: Study, rows: list[dict]) -> str:
    """Each arm's mean loss at each learning rate, and the highest rate at which it trains."""
    lines = []
    for arm in arms_of(study, rows):
        line = {"arm": arm} | {f"{rate:g}": "" for rate in rates_of(rows)}
        for rate in rates_of(rows, arm):
            losses = losses_at(study, rows, arm, rate)
            finite = [value for value in losses if math.isfinite(value)]
            parts = [f"{statistics.mean(finite):.3f}"] if finite else []
            if len(finite) < len(losses):
                parts.append(f"{len(losses) - len(finite)} of {len(losses)} diverged")
            line[f"{rate:g}"] = ", ".join(parts)
        line["trains up to"] = highest_rate(study, rows, arm)
        lines.append(line)
    return markdown(lines)


def highest_rate(study: Study, rows: list[dict], arm: str) -> str:
    """The highest learning rate with a mean loss at most TOLERANCE above the arm's best.

    "≥ 0.016" if no higher one was tried, "" if all runs diverged.
    """
    rates = rates_of(rows, arm)
    means = {rate: statistics.mean(losses_at(study, rows, arm, rate)) for rate in rates}
    limit = min(means.values()) + TOLERANCE
    good = [rate for rate in rates if means[rate] <= limit < math.inf]
    if not good:
        return ""
    return f"{'≥ ' if good[-1] == rates[-1] else ''}{good[-1]:g}"


def tables(study: Study, rows: list[dict]) -> str:
    """All tables of a study."""
    text = (
        "Each arm at its best learning rate: the mean and standard deviation over n seeds; the"
        f" difference from {study.first}, paired by seed, and half the width of its 95%"
        " interval.\n\n"
        f"{comparison_table(study, rows)}"
    )
    if study.rates and not study.search:
        text += (
            "\n\nThe rate is chosen with the seeds that are compared, which favors arms with uneven"
            " results."
        )
    if study.rates:
        text += (
            "\n\nThe mean loss at each learning rate over the seeds tried there, and the highest"
            f" rate at which the arm trains: its mean is at most {TOLERANCE} above the arm's"
            f" best.\n\n{rate_table(study, rows)}"
        )
    return text


# -------------------------------------------------------------------------------------------------
# the command


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.ablate", description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    add_options(parser)
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, mps; on a GPU most studies train 10M parameters",
    )
    args = parser.parse_args(argv)
    study = STUDIES[args.study]

    # the base of all arms
    device, _ = pick_device(args.device)
    base = replace(base_config(study, device), device=str(device))
    if args.steps:
        base = with_steps(base, args.steps)
    for settings in study.arms.values():
        prepare_missing(settings.get("dataset", base.dataset))

    # run the study
    seeds = args.seeds or study.seeds
    check(study, seeds)
    half = STUDENT_T[seeds - 2] * PAIR_DEVIATION / math.sqrt(seeds)
    print(study.question)
    print(
        f"{seeds} seeds: expect 95% intervals of about ± {half:.3f} (paired differences of our"
        f" 500-step runs have a standard deviation of {PAIR_DEVIATION}; shorter runs vary more)"
    )
    parallel = args.parallel or (cores() if device.type == "cpu" else 1)
    # training times can only be compared with those of the same study
    folder = f"out/ablate_{args.study}" if study.timed else "out/ablate"
    with Trainer(parallel) as trainer:
        rows = run_study(study, base, seeds, trainer, folder)
    write_rows(args.results / args.study / "runs.jsonl", rows)
    print(tables(study, rows))
    print(f"\npython -m experiments.report --results {args.results} writes a report")


if __name__ == "__main__":
    raise SystemExit(main())
