"""What a training run prints."""

import errno
import math
import os
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from common import distributed
from common.cli import command_for, discard_output, quote
from common.metrics import Metrics
from config import Config

MANY_EPOCHS = 5  # from this many on, a small model usually overfits
SLOW = 2.0  # a run is called slow when a step takes this many times the fastest


def print_summary(run, decisions: dict[str, tuple[object, str]]) -> None:
    """Prints what a train.Run is about to train.

    decisions: what was decided, such as "device": (value, reason).
    """
    config, dataset = run.config, run.dataset
    validation = f"{len(dataset.val):,} validation tokens"
    if config.eval_tokens < len(dataset.val):
        validation += f" ({config.eval_tokens:,} of them until the final evaluation)"
    groups = run.model.parameter_groups()
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    parts = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
    steps = f"{config.max_steps:,} steps of {config.tokens_per_step:,} tokens"
    print(f"data     {dataset.name}: {len(dataset.train):,} training tokens, {validation}")
    print(f"model    {sum(counts.values()):,} parameters: {parts}")
    if 2 * counts["embeddings"] > sum(counts.values()):
        print("         most of them are embeddings; a smaller vocabulary would need far fewer")
    epochs = config.max_steps * config.batch_size / run.batches.windows_per_epoch
    often = f" (the training text is read {epochs:.0f} times)" if epochs >= MANY_EPOCHS else ""
    print(f"run      {steps}, {epochs:.1f} epochs{often}")
    for name, (value, reason) in decisions.items():
        print(f"{name:8} {value} ({reason})")


def print_resume_command(config: Config, step: int) -> None:
    """Prints how to continue a run that was stopped."""
    program = command_for("train.py")
    if distributed.world_size() > 1:
        processes = os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())  # set by torchrun
        program = program.replace("python", f"torchrun --nproc_per_node={processes}", 1)
    print(
        f"saved {config.path('last.pt')} at step {step:,}; resume with:"
        f" {program} --run_name={quote(config.run_name)} --out_dir={quote(config.out_dir)} --resume"
    )


class Progress:
    """Prints a line for each evaluation, sample and log interval, above a bar on a terminal."""

    def __init__(self, config: Config, start: int, metrics: Metrics):
        """start: the step that the run starts or resumes from."""
        self.config, self.metrics = config, metrics
        self.reference = None  # step, training time and perf_counter() at the first log line
        self.latest = None  # step and training time of the latest one
        self.fastest = math.inf  # seconds per step between two log lines
        self.slow = False  # whether the user has been told
        self.output_closed = False  # whether the reader of standard output, such as tee, has ended
        self.bar = tqdm(
            total=config.max_steps,
            initial=start,
            unit="step",
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps",
            disable=None if distributed.is_first() else True,  # None: no terminal
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def print(self, text: str) -> None:
        """Prints above the bar; sets output_closed if standard output can't be written."""
        try:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            discard_output()
            if error.errno == errno.EIO:  # the terminal was closed, and the run is to go on
                return
            self.output_closed = True
            problem = f"can't write to standard output ({error.strerror})"
            with suppress(OSError):
                print(f"{problem}: stopping after this step", file=sys.stderr)

    def log(self, step: int, row: dict) -> None:
        """Prints a line about a training step from its row of metrics; "norm" is the gradient's.

        Speed and remaining time count from the first call, which prints nothing: the first step
        includes start-up and compilation.
        """
        self.bar.update(step + 1 - self.bar.n)
        if self.reference is None:
            self.reference = step, self.metrics.clock.seconds, time.perf_counter()
            return
        first, seconds, moment = self.reference
        tokens = (step - first) * self.config.tokens_per_step
        rate = tokens / (self.metrics.clock.seconds - seconds)
        per_step = (time.perf_counter() - moment) / (step - first)
        left = tqdm.format_interval(per_step * (self.config.max_steps - step - 1))
        self.print(
            f"step {step:>6,} | loss {row['train/loss']:.4f} | lr {row['train/lr']:.1e} | "
            f"norm {row.get('train/grad_norm', math.inf):.2f} | "
            f"{rate:,.0f} tok/s | {left} left"
        )
        self.notice_slow_steps(step)
        if self.metrics.wandb:
            self.metrics.wandb.log({"step": step, "train/tokens_per_second": rate})

    def notice_slow_steps(self, step: int) -> None:
        """Says once if steps have become much slower and other programs use the processor."""
        seconds = self.metrics.clock.seconds
        if self.latest:
            before, at = self.latest
            per_step = (seconds - at) / (step - before)
            self.fastest = min(self.fastest, per_step)
            times = per_step / self.fastest
            if times > SLOW and not self.slow and machine_is_busy():
                self.slow = True
                self.print(
                    f"steps now take {times:.1f} times as long: other programs are using the CPU"
                )
        self.latest = step, seconds


def machine_is_busy() -> bool:
    """Whether more programs want to run than there are processors."""
    try:
        return os.getloadavg()[0] > 1.25 * os.cpu_count()
    except (AttributeError, OSError):  # Windows; systems that keep it secret
        return False
