"""Many small training runs: each made once and kept as a result; what is missing is made when it is asked for again."""

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from config import Config
from dataset import load_dataset
from metrics import Diverged, read_metrics
from train import summarize, train

Key = TypeVar("Key", bound=Hashable)
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of 2 to 10 values, and half the width of its 95% interval (Student's t)."""
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def make_run(config: Config) -> dict | None:
    """Trains, and leaves result.json in the run's out_dir in place of checkpoints; None where Ctrl-C ended it."""
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            if not train(config)["finished"]:
                return None
            diverged = None
        except Diverged as error:
            diverged = error.step
    rows, bits_per_byte = read_metrics(config.path("metrics.jsonl")), load_dataset(config.dataset).bits_per_byte
    curves, whole = summarize(rows), [row["val/whole_loss"] for row in rows if "val/whole_loss" in row]
    final = None if diverged else (whole or curves["val_losses"])[-1]
    result = {
        "seed": config.seed,
        "final": final,
        "best": min(whole or curves["val_losses"]),
        "bits_per_byte": None if diverged else bits_per_byte(final),
        "diverged": diverged,
        "val_steps": curves["val_steps"],
        "val_losses": [round(loss, 5) for loss in curves["val_losses"]],
        "milliseconds_per_step": round(1000 * rows[-1]["seconds"] / max(1, rows[-1]["step"]), 2),
    }
    for name in ("best.pt", "best.prev.pt", "last.pt"):
        config.path(name).unlink(missing_ok=True)
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "result.json")
    return result


def write_rows(path: Path, rows: list[dict]) -> None:
    """A JSON object a line; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_all(configs: dict[Key, Config], parallel: int) -> dict[Key, dict]:
    """The result of each run, from <out_dir>/result.json; trains those that have none, `parallel` at a time."""
    results = {key: Path(config.out_dir, "result.json") for key, config in configs.items()}
    missing = [configs[key] for key, path in results.items() if not path.exists()]
    if missing:
        threads = max(1, (os.cpu_count() or 1) // parallel)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(parallel, context, torch.set_num_threads, (threads,)) as pool:
            futures = [pool.submit(make_run, config) for config in missing]
            try:
                for future in tqdm(as_completed(futures), total=len(futures), unit="run", smoothing=0):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in results.items()}
