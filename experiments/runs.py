"""Trains many small models and keeps each result, so that a rerun trains only what is missing.

Also what every program in experiments/ shares: options, intervals, Markdown tables, rows of JSON.
"""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import statistics
import sys
from collections.abc import Hashable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from common import checkpoint
from common.cli import Parser, whole_number
from common.dataset import load_dataset
from common.device import has_bfloat16, pick_device, pick_dtype
from common.errors import UserError
from common.files import locked, write_bytes
from common.metrics import Diverged, read_metrics, summarize
from config import Config
from evaluate import mean_loss
from model import count_parameters
from train import train

Key = TypeVar("Key", bound=Hashable)
RESULTS = Path("out/results")  # the project's own are in experiments/results
PROGRESS = "{n_fmt} of {total_fmt} runs done, {remaining} left |{bar}|"
# Settings of short runs. Not compiled: many small models would compile for longer than that saves.
SHORT_RUN = Config(
    min_lr=0.0,
    eval_tokens=20_000,
    sample_interval=0,
    save_interval=0,
    compile=False,
    wandb_mode="disabled",
)

# 97.5% quantiles of Student's t for 2, 3, ... 10 values
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# -------------------------------------------------------------------------------------------------
# options


def add_results(parser: Parser) -> None:
    """Adds --results, the folder of all results."""
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )


def add_options(parser: Parser, *, parallel: bool = True) -> None:
    """Adds the options that mean the same in every program: --steps, --seeds, --results, ..."""
    parser.add_argument(
        "--steps",
        type=whole_number(1, 10**9),
        metavar="N",
        help="steps of the base run; others keep their ratio to it",
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(2, 10),
        metavar="N",
        help="compared runs are repeated with the seeds 1 to N, 2 to 10",
    )
    add_results(parser)
    if parallel:
        parser.add_argument(
            "--parallel",
            type=whole_number(1, 10**3),
            metavar="N",
            help="runs at a time (default: one per CPU core; one on a GPU)",
        )


def cores() -> int:
    """How many cores of the CPU this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def with_steps(base: Config, steps: int) -> Config:
    """The base with another number of steps, and a warmup in proportion."""
    warmup = base.warmup_steps * steps // base.max_steps
    return replace(base, max_steps=steps, warmup_steps=warmup)


# -------------------------------------------------------------------------------------------------
# training


def in_run_folder(config: Config, parent: str) -> Config:
    """The config with an out_dir named after its settings and data, so that equal runs train once.

    Raises UserError if the data is not prepared.
    """
    identity = [asdict(config), load_dataset(config.dataset).fingerprint]
    code = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    return replace(config, out_dir=f"{parent}/{config.learning_rate:g}-{config.seed}-{code}")


def run_one(config: Config) -> dict:
    """Trains, and leaves result.json in the run's out_dir instead of checkpoints.

    If another program trains the same run, waits for its result.
    """
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"waiting for another program, which trains {folder}", wait=True):
        path = folder / "result.json"
        return read_json(path) if path.exists() else train_and_measure(config)


def train_and_measure(config: Config) -> dict:
    """Trains, writes result.json, and removes the checkpoints. Returns the result.

    "final" and "best" are losses on the whole validation split, after the last step and of the
    best checkpoint; "diverged" is a step or None. If the run diverged, "final" is None and "best"
    its lowest evaluation, on eval_tokens. Raises KeyboardInterrupt if Ctrl-C ended the run.
    """
    folder = Path(config.out_dir)
    if config.path("last.pt").exists():  # the run was interrupted
        config = replace(config, resume=True)
    diverged = None
    log = open(folder / "log.txt", "w", encoding="utf-8")
    with log, redirect_stdout(log), redirect_stderr(log):
        try:
            trained = train(config)
            if not trained["finished"]:
                raise KeyboardInterrupt
        except Diverged as error:
            diverged = error.step

    rows, dataset = read_metrics(config.path("metrics.jsonl")), load_dataset(config.dataset)
    times = [row["seconds"] for row in rows if "train/loss" in row]
    curves, (device, _) = summarize(rows), pick_device(config.device)
    if diverged is not None:
        final, best = None, min(curves["val_losses"])
    else:
        final = best = trained["best_val_loss"]
        if curves["val_losses"][-1] > min(curves["val_losses"]):
            dtype, _ = pick_dtype(config.dtype, device)
            last, _ = checkpoint.load(config.path("last.pt")).build(device)
            final = mean_loss(last, dataset.val, dtype)
    result = {
        "machine": machine(device),
        "seed": config.seed,
        "steps": config.max_steps,
        "tokens": config.max_steps * config.tokens_per_step,
        "block_size": config.block_size,
        "parameters": count_parameters(replace(config, vocab_size=dataset.tokenizer.vocab_size)),
        "bytes_per_token": dataset.meta["val"]["bytes"] / dataset.meta["val"]["tokens"],
        "final": final,
        "best": best,
        "bits_per_byte": None if final is None else dataset.bits_per_byte(final),
        "diverged": diverged,
        "val_steps": curves["val_steps"],
        "val_losses": [round(loss, 5) for loss in curves["val_losses"]],
        "milliseconds_per_step": milliseconds_per_step(times),
    }
    write_bytes(folder / "result.json", json.dumps(result).encode())
    for name in ("best.pt", "best.prev.pt", "last.pt"):
        config.path(name).unlink(missing_ok=True)
    return result


def milliseconds_per_step(times: list[float]) -> float:
    """From the seconds of training at each step, without the first one, which may compile."""
    if len(times) < 2:
        times = [0.0, *(times or [0.0])]
    return round(1000 * (times[-1] - times[0]) / (len(times) - 1), 2)


class Trainer:
    """trainer(configs) returns the result of each run, and trains those that have none yet.

    Trains `parallel` runs at a time; 1 means in this process. In a `with` block, one progress line
    counts the runs of all calls.
    """

    def __init__(self, parallel: int):
        self.parallel, self.bar, self.first_call = parallel, None, True

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if self.bar is not None:
            self.bar.close()
        if error is KeyboardInterrupt:
            print("the same command continues with the runs that are left", file=sys.stderr)

    def __call__(self, configs: dict[Key, Config], later: int = 0) -> dict[Key, dict]:
        """later: how many further runs the caller expects to ask for afterwards."""
        paths = {key: Path(config.out_dir, "result.json") for key, config in configs.items()}
        by_path = {paths[key]: config for key, config in configs.items()}  # equal ones once
        missing = [config for path, config in by_path.items() if not path.exists()]
        kept = len(by_path) - len(missing)
        if kept and self.first_call:
            print(
                f"{kept} of {len(by_path)} runs are kept from before, with equal settings and data;"
                f" after a change of code or machine, first delete {next(iter(by_path)).parents[1]}"
            )
        self.first_call = False
        if missing:
            total = len(missing) + later
            if self.bar is None:
                self.bar = tqdm(total=total, unit="run", smoothing=0, bar_format=PROGRESS)
            self.bar.total = self.bar.n + total
            self.bar.refresh()
            if self.parallel > 1:
                self.train_in_processes(missing)
            else:
                for config in missing:
                    run_one(config)
                    self.bar.update()
        return {key: read_json(path) for key, path in paths.items()}

    def train_in_processes(self, configs: list[Config]) -> None:
        """Trains in several processes that divide the CPU's cores among them.

        Raises UserError if a process was killed.
        """
        threads = max(1, cores() // self.parallel)
        spawn = multiprocessing.get_context("spawn")
        stop, waiting = spawn.Event(), iter(configs)
        with ProcessPoolExecutor(self.parallel, spawn, start_worker, (threads, stop)) as pool:
            on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it
            running = {pool.submit(work, config) for config in islice(waiting, self.parallel)}
            signal.signal(signal.SIGINT, on_interrupt)
            on_terminate = signal.signal(signal.SIGTERM, stop_with_workers)
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        self.bar.update()
                    # no more than can run: those waiting in the pool would start after Ctrl-C
                    running |= {pool.submit(work, config) for config in islice(waiting, len(done))}
            except BrokenProcessPool:
                raise UserError(
                    "a process was killed, perhaps because memory ran out: the same command with a"
                    " lower --parallel continues"
                ) from None
            except BaseException:
                stop.set()
                raise
            finally:
                signal.signal(signal.SIGTERM, on_terminate)


def stop_with_workers(*_) -> None:
    """Handles SIGTERM, which reaches this process only, like Ctrl-C, which reaches all."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    raise KeyboardInterrupt


def start_worker(threads: int, event) -> None:
    """Sets up a worker process. Once `event` is set, it starts no further run."""
    global stop
    stop = event
    torch.set_num_threads(threads)


def work(config: Config) -> None:
    """Calls run_one in a worker process. Ctrl-C ends the run; an idle worker ignores it."""
    if stop.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_one(config)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# -------------------------------------------------------------------------------------------------
# results


def machine(device: torch.device) -> str:
    """The device, and the versions of PyTorch and Python."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
        capabilities = torch.backends.cpu.get_cpu_capability()
        if has_bfloat16(device):
            capabilities += ", bfloat16"
        processor = model[1] if model else platform.processor()
        name = f"{torch.get_num_threads()} cores of {processor} ({capabilities})"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of 2 to 10 values, and half the width of its 95% interval (Student's t)."""
    half = STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def plus_minus(mean: float, half: float) -> str:
    """A difference with half the width of its interval, such as −0.010 ± 0.015."""
    return f"{mean:+.3f} ± {half:.3f}".replace("-", "−")


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of rows {heading: cell}. The first row has all headings; missing cells are empty."""
    if not rows:
        return "(not measured)"
    headings = list(rows[0])
    cells = [headings, *([row.get(name, "") for name in headings] for row in rows)]
    head, *lines = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([head, "|---" * len(headings) + "|", *lines])


def write_rows(path: Path, rows: list[dict]) -> None:
    """Writes one JSON object per line. A file with other rows is kept, as *.prev.jsonl."""
    lines = [json.dumps(row) for row in rows]
    if path.exists() and set(path.read_text(encoding="utf-8").splitlines()) - set(lines):
        kept = path.with_name(f"{path.stem}.prev{path.suffix}")
        os.replace(path, kept)
        print(f"kept other results of an earlier run as {kept}")
    write_bytes(path, "".join(line + "\n" for line in lines).encode())


def write_json(path: Path, value, indent: int | None = None) -> None:
    """Writes a JSON value; makes the folder."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def read_rows(path: Path) -> list[dict]:
    """Reads one JSON object per line. Raises UserError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise UserError(f"{path} is empty: delete it, or run again what writes it")
    return [parse(line, f"line {i} of {path}") for i, line in enumerate(lines, 1)]


def read_json(path: Path):
    """The JSON value in a file. Raises UserError."""
    return parse(path.read_text(encoding="utf-8"), f"{path}")


def parse(text: str, place: str):
    """The JSON value in a text, which is at `place`. Raises UserError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{place} is damaged ({error}): delete the file and rerun what wrote it"
        ) from None
