"""The clocks of a training run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts seconds from when it is made, except inside paused()."""

    def __init__(self, seconds: float = 0.0):
        """seconds: where it starts, such as the training time of a run that is resumed."""
        self.counted, self.running_since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        if self.running_since is None:
            return self.counted
        return self.counted + time.perf_counter() - self.running_since

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.counted, self.running_since = self.seconds, None
        yield
        self.running_since = time.perf_counter()


class SaveTimer:
    """Tells when the setting save_interval asks for a save."""

    def __init__(self, interval: int | str):
        """interval: 500 (steps), "10min" (since the last save), or 0 for never."""
        text = str(interval)
        self.steps = 0 if text.endswith("min") else int(text)
        self.seconds = 60 * float(text.removesuffix("min")) if text.endswith("min") else 0
        self.saved()

    def saved(self) -> None:
        """Starts counting again: a checkpoint has just been saved."""
        self.last_save = time.perf_counter()

    def due(self, step: int) -> bool:
        if self.steps:
            return step % self.steps == 0
        return self.seconds > 0 and time.perf_counter() - self.last_save >= self.seconds
