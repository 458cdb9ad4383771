"""A run's metrics: one JSON object a line in <run_name>_metrics.jsonl, and the same to Weights & Biases."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from common import distributed
from common.errors import UserError


class Diverged(UserError):
    """A loss or a gradient norm at `step` is no finite number."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a metrics file; a last line that was cut short is left out. Raises UserError."""
    rows, broken = [], None
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if broken:
                    break
                try:
                    row = json.loads(line)
                    numbers = [value for name, value in row.items() if name != "sample"]
                    if type(row["step"]) is not int or not all(
                        abs(value) < 2**63 for value in numbers
                    ):
                        raise ValueError("not a step, or a value that nobody measured")
                    if type(row.get("sample", "")) is not str:
                        raise ValueError("a sample is text")
                    rows.append(row)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    broken = number
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"can't read {path}: {getattr(error, 'strerror', 'it is not text')}"
        ) from None
    if broken and (broken < number or not rows):
        raise UserError(f"{path} is no metrics file: see line {broken}")
    return rows


class Metrics:
    """Writes what is measured at each step, and samples, with `step`, `tokens` and `seconds` (of training alone).

    Losses and gradient norms stay on the device until collect(): reading each at once would make the loop wait for it.
    Of several processes the first one writes.
    """

    def __init__(self, path: Path, config, run_id: str, start: int, overflows: bool = False):
        """Starts a new file, or goes on with an old one from step `start`, without what it has of later steps.

        overflows: infinite gradient norms are no error, because float16's GradScaler skips such steps.
        """
        self.file, self.wandb, self.seconds, self.samples = None, None, 0.0, []
        if distributed.rank() == 0:
            kept = (
                [row for row in read_metrics(path) if row["step"] < start]
                if start and path.exists()
                else []
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(temporary, path)
            self.file = open(path, "a", encoding="utf-8", buffering=1)  # whole lines, at once
            self.wandb = start_wandb(config, run_id)
            self.seconds = kept[-1].get("seconds", 0.0) if kept else 0.0
            self.samples = [[row["step"], row["sample"]] for row in kept if "sample" in row]
        self.tokens_per_step = config.tokens_per_step
        self.overflows = overflows
        self.pending, self.timed_since = [], None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.file:
            self.file.close()
        self.tell_wandb(lambda: self.wandb.finish(exit_code=int(kind is not None)))

    def add(self, step: int, lr: float, loss, grad_norm) -> None:
        """Takes a training step's learning rate, and as tensors on the device the loss and the gradient norm.

        The loss is this process's; what is written down is the mean over all.
        """
        self.pending.append((step, self.now(), lr, loss, grad_norm))

    def collect(self) -> dict:
        """Writes down the steps that were added, and returns the last. Raises Diverged where a loss is not finite."""
        if not self.pending:
            return {}
        steps, seconds, lrs, losses, grad_norms = zip(*self.pending)
        losses = distributed.total(torch.stack(losses).tolist())
        for step, at, lr, loss, grad_norm in zip(
            steps, seconds, lrs, losses, torch.stack(grad_norms).tolist()
        ):
            row = {
                "train/loss": loss / distributed.world_size(),
                "train/lr": lr,
                "train/grad_norm": grad_norm,
            }
            if not math.isfinite(row["train/grad_norm"]) and self.overflows:
                del row["train/grad_norm"]
            self.write(step, row, at)
        self.pending.clear()
        return row

    def write(self, step: int, measured: dict[str, float], seconds: float | None = None) -> None:
        """Writes a line, of the present time unless another is given. Raises Diverged where a value is not finite."""
        for name, value in measured.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"{name} is {value} at step {step}: set a lower learning_rate or more warmup_steps;"
                    " the checkpoints saved before are still good",
                    step,
                )
        row = self.keep(step, measured, self.now() if seconds is None else seconds)
        self.tell_wandb(lambda: self.wandb.log(row))

    def keep(self, step: int, values: dict, seconds: float) -> dict:
        """Writes a line into the file, and returns it."""
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "seconds": round(seconds, 3),
            **values,
        }
        if self.file:
            self.file.write(json.dumps(row) + "\n")
        return row

    def speed(self, step: int, tokens_per_second: float) -> None:
        """For Weights & Biases alone: the file has what a run and its repetition share."""
        self.tell_wandb(
            lambda: self.wandb.log({"step": step, "train/tokens_per_second": tokens_per_second})
        )

    def sample(self, step: int, text: str) -> None:
        """Writes a text that the model made; in Weights & Biases they are a table."""
        self.keep(step, {"sample": text}, self.now())
        self.samples.append([step, text])

        def tell():
            import wandb

            self.wandb.log(
                {"step": step, "samples": wandb.Table(columns=["step", "text"], data=self.samples)}
            )

        self.tell_wandb(tell)

    def finish(self, step: int, curves: Path, best: Path | None) -> None:
        """For Weights & Biases alone: the figure of the curves, and the checkpoint `best` as an artifact."""

        def tell():
            import wandb

            self.wandb.log({"step": step, "curves": wandb.Image(str(curves))})
            if best:
                self.wandb.log_artifact(str(best), name=f"{self.wandb.id}-best", type="model")

        self.tell_wandb(tell)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the block's time as time of training."""
        self.timed_since = time.perf_counter()
        yield
        self.seconds, self.timed_since = self.now(), None

    def now(self) -> float:
        """Seconds of training so far."""
        return self.seconds + (time.perf_counter() - self.timed_since if self.timed_since else 0.0)

    def sync(self) -> None:
        """Returns once all that was written is on the disk."""
        if self.file:
            os.fsync(self.file.fileno())

    def tell_wandb(self, call: Callable[[], None]) -> None:
        if self.wandb:
            try:
                call()
            except Exception as error:  # the network, the service: nothing that should cost a run
                print(f"Weights & Biases is off from here on: {first_line(error)}")
                self.wandb = None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def start_wandb(config, run_id: str):
    """The Weights & Biases run, or None where there is none; whatever is wrong with it, the training goes on."""
    mode = config.wandb_mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "disabled"
    if mode == "disabled":
        return None
    if mode not in ("offline", "online"):
        print(f"Weights & Biases is off: WANDB_MODE is {mode!r}, not disabled, offline or online")
        return None
    try:
        import wandb

        if mode == "online" and not wandb.login(prompt=False):
            raise ValueError("there is no API key: run `wandb login`, or set WANDB_API_KEY")
        run = wandb.init(
            project=config.wandb_project,
            name=f"{config.run_name}-{config.n_layers}L-{config.d_model}d",
            config=asdict(config),
            id=run_id,
            resume="allow",
            mode=mode,
            dir=os.path.abspath(
                config.out_dir
            ),  # its service keeps the folder that it was started in
            settings=wandb.Settings(init_timeout=30, silent=True),
        )
        run.define_metric("*", step_metric="step")
        return run
    except ImportError:
        print("Weights & Biases is off: it is not installed (pip install wandb)")
    except (
        Exception
    ) as error:  # the network, the account, the service: nothing that should cost a run
        print(f"Weights & Biases is off: {first_line(error)}")
    return None
