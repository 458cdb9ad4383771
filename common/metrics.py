"""A run's metrics: one JSON object per line in <run_name>_metrics.jsonl."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import torch

from common import distributed
from common.errors import UserError
from common.files import lock, write_bytes
from common.timing import Stopwatch
from common.wandb_run import WandbRun
from config import Config

CURVE_POINTS = 4000
LARGEST = 2.0**63  # no loss, gradient norm or step is that large
MOST_OVERFLOWS = 50  # in a row; by then the loss scale of float16 has fallen from 2^16 to 2^-34


class Diverged(UserError):
    """A loss or a gradient norm at `step` is not finite, or absurdly large."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a metrics file, without a last line that is incomplete. Raises UserError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"can't read {path}: it is not text") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            check_row(row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if rows and number == len(lines):  # the run is writing it, or was killed then
                break
            raise UserError(f"{path} is not a metrics file (line {number})") from None
        rows.append(row)
    return rows


def plausible(value: float) -> bool:
    """Whether a value can have been measured: not nan, and below LARGEST in size."""
    return abs(value) < LARGEST


def check_row(row: dict) -> None:
    """Raises one of many errors if this is not a row of a metrics file."""
    if type(row["step"]) is not int or type(row.get("sample", "")) is not str:
        raise ValueError("a step is a whole number, a sample is text")
    for name, value in row.items():
        if name != "sample" and not plausible(value):
            raise ValueError(f"{name} is out of range")


def summarize(rows: list[dict]) -> dict:
    """A run's curves as lists, from its metrics."""
    trained = [row for row in rows if "train/loss" in row]
    evaluated = [row for row in rows if "val/loss" in row]
    return {
        "steps": [row["step"] for row in trained],
        "train_losses": [row["train/loss"] for row in trained],
        "lrs": [row["train/lr"] for row in trained],
        "grad_norms": [row.get("train/grad_norm", math.inf) for row in trained],
        "val_steps": [row["step"] for row in evaluated],
        "val_losses": [row["val/loss"] for row in evaluated],
    }


def lock_metrics(file) -> None:
    """Locks an open metrics file. Raises UserError if a run that is alive writes it."""
    lock(file, f"another run is still writing {file.name}: choose another --run_name")


def check_not_running(path: Path) -> None:
    """Raises UserError if a run that is alive writes this metrics file."""
    if path.exists():
        with open(path, "r+") as file:  # NFS locks only what is open for writing
            lock_metrics(file)


class Metrics:
    """Writes loss, learning rate and gradient norm of every step, validation losses and samples.

    Each row has `step`, `tokens` and `seconds`: the time of training up to the end of the step (on
    a GPU: of its launch), without that of evaluating, sampling and saving. Losses and gradient
    norms stay on the device until flush(), because reading one makes the loop wait for the device.
    With several processes, the first one writes.
    """

    def __init__(self, path: Path, config: Config, run_id: str, start: int, may_overflow: bool):
        """Starts a new file, or continues an old one from step `start` without its later rows.

        may_overflow: up to MOST_OVERFLOWS infinite gradient norms in a row are not an error,
        because float16's GradScaler skips such steps.
        """
        kept = []
        evaluated_again = start % config.eval_interval == 0 or start == config.max_steps
        self.lock_file, self.file, self.wandb = None, None, None
        self.curves, self.stride = [], 1  # rows to draw, and the interval of steps between them
        if distributed.is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock_file = open(path, "a")  # stays locked when write_bytes replaces it
            lock_metrics(self.lock_file)
            if start:
                try:
                    kept = [
                        row
                        for row in read_metrics(path)
                        if row["step"] < start
                        or row["step"] == start
                        and "val/loss" in row
                        and not evaluated_again
                    ]
                except UserError as error:
                    raise UserError(f"{error}; to resume without it, move it away") from None
                if missing := start - sum("train/loss" in row for row in kept):
                    print(
                        f"note: {path} lacks {missing:,} of {start:,} steps: the curves have gaps"
                    )
            text = "".join(json.dumps(row) + "\n" for row in kept)
            write_bytes(path, text.encode())
            self.file = open(path, "a", encoding="utf-8", buffering=1)  # complete lines, at once
            lock_metrics(self.file)
            for row in kept:
                self.keep_for_curves(row)
            self.wandb = WandbRun(config, run_id)
            self.wandb.samples = [[row["step"], row["sample"]] for row in kept if "sample" in row]
        self.clock = Stopwatch(kept[-1].get("seconds", 0.0) if kept else 0.0)
        self.tokens_per_step, self.pending = config.tokens_per_step, []
        self.allowed_overflows, self.overflows = MOST_OVERFLOWS if may_overflow else 0, 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.file:
            with suppress(OSError):  # a full disk has been reported by then
                self.file.close()
            self.lock_file.close()
            self.wandb.finish(1 if kind else 0)

    def add(self, step: int, lr: float, loss, grad_norm) -> None:
        """Takes a step's learning rate and, as tensors on the device, its loss and gradient norm.

        loss: of this process's sequences; the mean over all processes is what gets written.
        """
        self.pending.append((step, self.clock.seconds, lr, loss, grad_norm))

    def flush(self) -> dict:
        """Writes the steps that were added; returns the row of the last one.

        Raises Diverged if a value is not finite or absurdly large.
        """
        if not self.pending:
            return {}
        steps, seconds, lrs, losses, norms = zip(*self.pending)
        self.pending.clear()
        losses = distributed.all_reduce_sum(torch.stack(losses).tolist())
        norms = torch.stack(norms).tolist()
        for step, at, lr, loss, norm in zip(steps, seconds, lrs, losses, norms):
            values = {"train/loss": loss / distributed.world_size(), "train/lr": lr}
            self.overflows = 0 if math.isfinite(norm) else self.overflows + 1  # in a row
            if not 0 < self.overflows <= self.allowed_overflows:
                values["train/grad_norm"] = norm
            row = self.write(step, values, at)
        return row

    def write(self, step: int, values: dict, seconds: float | None = None) -> dict:
        """Writes and returns a row; `seconds` is the present time unless given.

        Raises Diverged if a value is not finite or absurdly large, UserError if the disk is full.
        """
        for name, value in values.items():
            if name != "sample" and not plausible(value):
                raise Diverged(
                    f"{name} is {value} at step {step}: set a lower learning_rate or more"
                    " warmup_steps; the checkpoints saved before are unchanged",
                    step,
                )
        seconds = self.clock.seconds if seconds is None else seconds
        row = {"step": step, "tokens": step * self.tokens_per_step, "seconds": round(seconds, 6)}
        row |= values
        if self.file:
            try:
                self.file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise UserError(f"can't write {self.file.name}: {error.strerror}") from None
            self.keep_for_curves(row)
            if "sample" in row:
                self.wandb.log_sample(step, row["sample"])
            else:
                self.wandb.log(row)
        return row

    def keep_for_curves(self, row: dict) -> None:
        """Keeps a row in memory to be drawn; of a long run's steps, evenly spaced ones."""
        if self.drawn(row):
            self.curves.append(row)
        if row["step"] > CURVE_POINTS * self.stride:
            self.stride *= 2
            self.curves = list(filter(self.drawn, self.curves))

    def drawn(self, row: dict) -> bool:
        """Whether the curves need a row: of the steps, only every stride-th."""
        return "train/loss" not in row or row["step"] % self.stride == 0

    def sync(self) -> None:
        """Returns once everything written is on the disk."""
        if self.file:
            os.fsync(self.file.fileno())
