"""Which choices of configs/shakespeare_char.py's on_cpu block matter? One change at a time, at equal tokens.

python -m experiments.recipe [--seeds 1 2 3] [--parallel 2]   half an hour on 2 cores; broken off, it goes on
python -m experiments.recipe --redraw                         the table, from the runs that are kept
"""

import os
from contextlib import redirect_stdout
from pathlib import Path

from common.arguments import load_config
from common.cli import Parser, command
from config import Config
from experiments.runs import interval, markdown, plus_minus, read_rows, run_all, write_rows

RESULTS = Path("experiments/results/recipe")
STEPS = 500  # of 2,048 tokens: one epoch
SHIPPED = "as shipped"
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3}
ARMS = {  # what is changed, and in which settings
    SHIPPED: {},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "learning rate 1.2e-2": {"learning_rate": 1.2e-2},
    "cosine to a tenth, not to zero": {"min_lr": 6e-4},
    "no warmup": {"warmup_steps": 0},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.3": {"weight_decay": 0.3},
    "gradients not clipped": {"grad_clip": 0.0},
    "dropout 0.1": {"dropout": 0.1},
    "average of the weights, 0.99": {"ema_decay": 0.99},
    "windows at random": {"batch_order": "random"},
    "8 sequences a step, twice the steps": {
        "batch_size": 8,
        "max_steps": 2 * STEPS,
        "warmup_steps": 100,
    },
    "32 sequences a step, half the steps": {
        "batch_size": 32,
        "max_steps": STEPS // 2,
        "warmup_steps": 25,
    },
    "blocks of 64, 32 of them": {"block_size": 64, "batch_size": 32},
    "blocks of 256, 8 of them": {"block_size": 256, "batch_size": 8},
    "2 heads of 64": {"n_heads": 2},
    "no QK-norm": {"qk_norm": False},
    "LayerNorm": {"norm_type": "layernorm"},
    "learned positions": {"pos_type": "learned"},
    "GELU": {"mlp_type": "gelu"},
    "relu2": {"mlp_type": "relu2"},
    "output head of its own": {"tie_embeddings": False},
    "AdamW, 4e-3": ADAMW,
    "AdamW, 2e-3": ADAMW | {"learning_rate": 2e-3},
    "AdamW, 8e-3": ADAMW | {"learning_rate": 8e-3},
    "AdamW, 4e-3, beta2 0.99": ADAMW | {"beta2": 0.99},
    "AdamW, 4e-3, cosine to a tenth": ADAMW | {"min_lr": 4e-4},
    "AdamW, 4e-3, average of the weights, 0.99": ADAMW | {"ema_decay": 0.99},
}


def configs(seeds: list[int]) -> dict[str, Config]:
    """A config for each arm and seed, by the name of its folder."""
    runs = {}
    for arm, changes in ARMS.items():
        changes = {
            "max_steps": STEPS,
            "eval_interval": 10_000,
            "sample_interval": 0,
            "device": "cpu",
        } | changes
        flags = [f"--{name}={value}" for name, value in changes.items()]
        for seed in seeds:
            name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{arm}-{seed}")
            with redirect_stdout(None):  # it tells of the on_cpu block
                runs[name] = load_config(
                    [
                        "configs/shakespeare_char.py",
                        *flags,
                        f"--seed={seed}",
                        "--run_name=run",
                        f"--out_dir=out/recipe/{name}",
                    ]
                )
    return runs


def table(rows: list[dict]) -> str:
    """Markdown: each arm's mean loss, and its paired difference from what is shipped with a 95% interval."""
    losses = {arm: {row["seed"]: row["final"] for row in rows if row["arm"] == arm} for arm in ARMS}
    lines = [["change", "validation loss", "difference"]]
    for arm, by_seed in losses.items():
        if diverged := sum(loss is None for loss in by_seed.values()):
            lines.append([arm, f"diverged in {diverged} of {len(by_seed)} runs", ""])
            continue
        mean, _ = interval(list(by_seed.values()))
        seen = plus_minus(
            *interval([loss - losses[SHIPPED][seed] for seed, loss in by_seed.items()])
        )
        lines.append([arm, f"{mean:.3f}", "" if arm == SHIPPED else seen])
    return markdown(lines)


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="train nothing: the table from runs.jsonl"
    )
    args = parser.parse_args(argv)
    if not args.redraw:
        results = iter(run_all(configs(args.seeds), args.parallel).values())
        rows = [{"arm": arm, **next(results)} for arm in ARMS for _ in args.seeds]
        write_rows(RESULTS / "runs.jsonl", rows)
    text = table(read_rows(RESULTS / "runs.jsonl"))
    (RESULTS / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    raise SystemExit(main())
