"""Many small training runs: each made once and kept as a result; what is missing is made when it is asked for again."""

import hashlib
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from common import checkpoint
from common.dataset import load_dataset
from common.device import pick_device, pick_dtype
from common.metrics import Diverged, read_metrics
from config import Config
from evaluate import mean_loss
from train import summarize, train

Key = TypeVar("Key", bound=Hashable)
PROGRESS = "{n_fmt} of {total_fmt} runs made, {remaining} left |{bar}|"
STUDENT = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of 2 to 10 values, and half the width of its 95% interval (Student's t)."""
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def plus_minus(mean: float, half: float) -> str:
    """A difference with half the width of its interval, such as −0.010 ± 0.015."""
    return f"{mean:+.3f} ± {half:.3f}".replace("-", "−")


def markdown(lines: list[list[str]]) -> str:
    """A table, of which the first line is the head."""
    head, *rows = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


def in_own_folder(config: Config, parent: str) -> Config:
    """The run in a folder that is named by all its settings: runs of equal settings share it, and are made once."""
    code = hashlib.sha256(json.dumps(asdict(config)).encode()).hexdigest()[:8]
    return replace(config, out_dir=f"{parent}/{config.learning_rate:g}-{config.seed}-{code}")


def make_run(config: Config) -> dict | None:
    """Trains, and leaves result.json in the run's out_dir in place of checkpoints; None where Ctrl-C ended it.

    "final" and "best" are losses on the whole validation split: after the last step, and of the best checkpoint.
    """
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    diverged = None
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            trained = train(config)
            if not trained["finished"]:
                return None
        except Diverged as error:
            diverged = error.step
    rows, dataset = read_metrics(config.path("metrics.jsonl")), load_dataset(config.dataset)
    curves = summarize(rows)
    if diverged is not None:
        final, best = None, min(curves["val_losses"])
    elif curves["val_losses"][-1] == min(curves["val_losses"]):
        final = best = trained["best_val_loss"]
    else:
        device, _ = pick_device(config.device)
        last, _ = checkpoint.build(checkpoint.load(config.path("last.pt")), device)
        final, best = (
            mean_loss(last, dataset.val, pick_dtype(config.dtype, device)[0]),
            trained["best_val_loss"],
        )
    result = {
        "seed": config.seed,
        "steps": config.max_steps,
        "final": final,
        "best": best,
        "bits_per_byte": None if final is None else dataset.bits_per_byte(final),
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


def run_all(configs: dict[Key, Config], parallel: int, later: int = 0) -> dict[Key, dict]:
    """The result of each run, from <out_dir>/result.json; trains those that have none, `parallel` at a time.

    A progress line tells how many are left and how long they will take, with the `later` ones that are yet to be asked
    for.
    """
    results = {key: Path(config.out_dir, "result.json") for key, config in configs.items()}
    missing = [configs[key] for key, path in results.items() if not path.exists()]
    if missing:
        threads = max(1, (os.cpu_count() or 1) // parallel)
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(parallel, context, torch.set_num_threads, (threads,)) as pool,
            tqdm(total=len(missing) + later, unit="run", smoothing=0, bar_format=PROGRESS) as bar,
        ):
            futures = [pool.submit(make_run, config) for config in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in results.items()}
