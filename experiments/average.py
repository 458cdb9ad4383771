"""Does an average of the weights help? Validation loss with and without, beside one another in the same runs.

python -m experiments.average [--cases adamw muon repeated] [--seeds 1 2 3] >> experiments/results/average.jsonl
"""

import json
from dataclasses import replace

import torch

from cli import Parser, command
from config import Config
from dataset import load_dataset
from evaluate import mean_loss
from train import Batches, Run, optimizer_step

DECAYS = (0.95, 0.98, 0.99, 0.995)
BASE = Config(n_layers=4, n_heads=4, d_model=128, block_size=128, batch_size=16, warmup_steps=50, device="cpu")
CASES = {
    "adamw": {"learning_rate": 4e-3, "max_steps": 600},
    "muon": {"optimizer": "muon", "learning_rate": 6e-3, "min_lr": 0.0, "max_steps": 550},
    "repeated": {
        "learning_rate": 2e-3,
        "max_steps": 1200,
        "dropout": 0.2,
        "block_size": 64,
    },  # 20 epochs of a short text
}
SHORT = 60_000  # characters of that text


def measure(case: str, seed: int) -> dict:
    """A run's validation losses every 100 steps: of the weights themselves, and of their average with each decay."""
    dataset = load_dataset(BASE.dataset)
    config = replace(BASE, **CASES[case], seed=seed, vocab_size=dataset.tokenizer.vocab_size)
    runs = [Run(replace(config, ema_decay=decay), dataset, torch.device("cpu"), torch.float32) for decay in DECAYS]
    run = runs[0]  # the one that learns; the others' averages follow its weights
    for other in runs:
        other.model = run.model
    batches = Batches(dataset.train[:SHORT] if case == "repeated" else dataset.train, config)
    curve = []
    for step in range(config.max_steps):
        ids = batches(step)
        optimizer_step(run.model, run.optimizers, run.scaler, ids, step, torch.float32, config)
        for other in runs:
            other.step = step
            other.update_average()
        last = step + 1 == config.max_steps
        if last or (step + 1) % 100 == 0:
            models = [run.model, *(other.average for other in runs)]
            curve.append(
                [step + 1, *(mean_loss(m, dataset.val, torch.float32, None if last else 20_000) for m in models)]
            )
    return {"case": case, "seed": seed, "decays": [0, *DECAYS], "curve": curve}


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="experiments/average.py", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for seed in args.seeds:
        for case in args.cases:
            print(json.dumps(measure(case, seed)), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
