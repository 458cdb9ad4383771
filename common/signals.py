"""Ctrl-C and SIGTERM, so that a run can finish its step and save."""

import os
import signal
import threading
import time
from contextlib import suppress

from common import distributed


class StopSignals:
    """Inside its block, Ctrl-C or SIGTERM sets `received`; a second one stops immediately.

    SIGTERM again within a second is the same one: Slurm sends it to torchrun, which passes it on,
    and to this process.
    """

    def __enter__(self):
        self.received = False
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number, frame):
        if self.received:
            if number == signal.SIGTERM and time.monotonic() - self.received_at < 1:
                return
            raise KeyboardInterrupt
        self.received, self.received_at = True, time.monotonic()
        if distributed.is_first():
            message = b"\nstopping after this step (press Ctrl-C again to stop immediately)\n"
            with suppress(OSError):  # Ctrl-C has also ended the reader of `2>&1 | tee log`
                os.write(2, message)  # print() may be what the signal has interrupted

    def __exit__(self, kind, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        in_compiler = kind and kind.__module__.startswith(("torch._inductor", "torch._dynamo"))
        if self.received and in_compiler:
            raise KeyboardInterrupt from None  # Ctrl-C has also ended the compiler of torch.compile
