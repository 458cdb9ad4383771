"""Several processes as one run, started by torchrun: who is who, and what they tell one another.

With a single process every function here does nothing, or gives back what it got.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number among all; process 0 writes and speaks for the others."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process's number on its machine, and its GPU's."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts() -> int:
    """How often torchrun has started the processes of this machine anew, because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def mute_others() -> None:
    """Only the first process prints; errors, on stderr, are everyone's."""
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")


@contextmanager
def group() -> Iterator[None]:
    """Joins the processes for as long as the block runs: NCCL between GPUs, gloo for tensors on the CPU."""
    if world_size() == 1:
        yield
        return
    store, *_ = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun's store outlives a restart, with the addresses of the dead
        store = dist.PrefixStore(f"start {restarts()}", store)
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, store=store, rank=rank(), world_size=world_size())
    yield
    wait()  # with gloo, who left early would cut the others' connections
    dist.destroy_process_group()


def total(numbers: list[float]) -> list[float]:
    """The sum over all processes of each number, in float64; every process has to call it."""
    if world_size() == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def any_process(*conditions: bool) -> list[bool]:
    """For each condition whether it holds in any process: then all of them act on it together."""
    return [number > 0 for number in total([float(condition) for condition in conditions])]


def wait() -> None:
    """Until every process has come here."""
    total([0.0])
