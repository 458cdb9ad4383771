"""Several processes as one run, started by torchrun: ranks, and the few collectives we need.

With a single process nothing is communicated.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from common.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def rank() -> int:
    """This process's number among all processes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process's number on its machine; its GPU has the same number."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first() -> bool:
    """Whether this is process 0, the only one that writes files and prints."""
    return rank() == 0


def restart_count() -> int:
    """How often torchrun has restarted this machine's processes after a failure."""
    return int(os.environ.get(RESTARTS, 0))


def restarted() -> bool:
    """Whether torchrun has restarted the processes of any machine: it counts on each one."""
    return any_process(restart_count() > 0)[0]


def check_environment() -> None:
    """Raises UserError if torchrun's variables are incomplete or wrong, as on some platforms."""
    found = {name: os.environ[name] for name in (*TORCHRUN, RESTARTS) if name in os.environ}
    missing = [name for name in TORCHRUN if name not in found]
    numbers = [value for name, value in found.items() if name != "MASTER_ADDR"]
    wrong = not all(number.isdecimal() for number in numbers) or rank() >= world_size()
    if wrong or missing and world_size() > 1:
        listed = ", ".join(f"{name}={value}" for name, value in found.items())
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise UserError(
            f"the environment has {listed}{lacking}: start several processes with torchrun, or"
            " unset these variables for a single one",
            status=2,
        )


@contextmanager
def group() -> Iterator[None]:
    """Connects the processes while the block runs: NCCL between GPUs, gloo for CPU tensors.

    Only process 0 prints; errors, on stderr, are shown by all. Raises UserError if there should be
    several processes but torchrun did not start them.
    """
    check_environment()
    if world_size() == 1:
        yield
        return
    if not is_first():
        sys.stdout = open(os.devnull, "w")
    store, *_ = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # the store survives a restart and still holds the old processes' addresses
        store = dist.PrefixStore(f"start {restart_count()}", store)
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, store=store, rank=rank(), world_size=world_size())
    yield
    barrier()  # with gloo, a process that exits early breaks the others' connections
    dist.destroy_process_group()


def exit_process(status: int) -> None:
    """Ends this process with an exit status.

    With several processes it skips Python's shutdown: DistributedDataParallel keeps gloo's threads
    alive after destroy_process_group, and if one of them frees a tensor during the shutdown, it
    aborts the process.
    """
    if world_size() == 1:
        raise SystemExit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def all_reduce_sum(numbers: list[float]) -> list[float]:
    """The sum over all processes of each number, in float64. Every process has to call it."""
    if world_size() == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def any_process(*conditions: bool) -> list[bool]:
    """For each condition, whether it holds in any process. Every process has to call it."""
    return [number > 0 for number in all_reduce_sum([float(condition) for condition in conditions])]


def on_first(function: Callable, *arguments) -> None:
    """Calls the function in process 0. If it raises UserError or OSError, the others just exit."""
    failure = None
    if is_first():
        try:
            function(*arguments)
        except (UserError, OSError) as error:
            failure = error
    if any_process(failure is not None)[0]:
        if failure:
            raise failure
        exit_process(1)


def barrier() -> None:
    """Waits until every process gets here."""
    all_reduce_sum([0.0])
