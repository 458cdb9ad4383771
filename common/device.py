"""Which device, precision and compilation a run uses, and why: the meaning of `auto`."""

import copy
import ctypes
import math
import os
import sys

import torch

from common import distributed
from common.errors import UserError, one_line
from model import GPT

# Without this, torch.compile spends 13 seconds on eight test programs for the CPU. PyTorch reads it
# when it imports its compiler; pick_compile tests that compilation works.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# FLOPs of the shortest run that compiling makes faster. On a GPU it takes about 40 seconds.
COMPILE_FLOPS = {"cpu": 1e13, "cuda": 4e15}


def pick_device(name: str) -> tuple[torch.device, str]:
    """The device of that name or, for auto, the fastest available, and the reason.

    A GPU becomes the current one, as CUDA graphs need. Raises UserError if it can't be used.
    """
    reason = "as set"
    if name == "auto":
        name, reason = "cpu", "auto: no GPU found"
        if torch.cuda.is_available():
            name, reason = "cuda", "auto: CUDA GPU found"
        elif torch.backends.mps.is_available():
            name, reason = "mps", "auto: Apple GPU found"
    try:
        if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not one of cpu, cuda, mps")
        device = torch.device(name)
        # set_device needs an index; each process of a distributed run has its own GPU
        if device.type == "cuda" and (device.index is None or distributed.world_size() > 1):
            device = torch.device("cuda", distributed.local_rank())
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        message = f"device {name} can't be used here ({one_line(error)}); use another --device"
        raise UserError(message, status=2) from None
    return device, reason


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def pick_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype in which autocast multiplies matrices, and the reason. Weights stay float32."""
    if name != "auto":
        return getattr(torch, name), "as set"
    if has_bfloat16(device):
        return torch.bfloat16, "auto: this device has fast bfloat16"
    if device.type == "cuda":
        return torch.float16, "auto: the GPU has no bfloat16"
    return torch.float32, f"auto: no fast bfloat16 on this {device.type}"


def pick_weights_dtype(device: torch.device, sequences: int) -> torch.dtype:
    """The dtype of the weights for generating that many sequences at once.

    A single sequence is limited by reading the weights from memory, which bfloat16 halves; but with
    AMX PyTorch multiplies a bfloat16 matrix by a single row more slowly than a float32 one. Several
    sequences are limited by arithmetic.
    """
    if device.type == "cuda":
        return pick_dtype("auto", device)[0]
    if device.type == "cpu" and sequences == 1:
        return torch.float32 if torch.cpu._is_amx_tile_supported() else torch.bfloat16
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def pick_compile(setting: bool | str, device: torch.device, flops: float) -> tuple[bool, str]:
    """Whether to torch.compile the model for a run of that many FLOPs, and the reason.

    Raises UserError if compilation was asked for and doesn't work.
    """
    if setting is False:
        return False, "as set"
    if setting == "auto" and flops < COMPILE_FLOPS.get(device.type, math.inf):
        return False, "auto: compiling would take longer than it saves in this run"
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, a broken one, a GPU too old: it fails in many ways
        reason = one_line(error)
        if setting is True:
            raise UserError(f"can't compile here; use --compile=false ({reason})") from None
        return False, f"auto: can't compile here, {reason}"
    if setting is True:
        return True, "as set"
    if device.type == "cuda":
        return True, "auto: about 40 seconds to compile, then faster steps"
    return True, "auto: 7 to 20 seconds to compile the first time, then faster steps"


def compile_model(model: GPT):
    """Returns a compiled model that shares the weights of `model`; `model` itself is unchanged.

    On a CPU only the blocks are compiled: they are identical, so one compilation serves all.
    """
    torch.compiler.reset()  # forget the shapes of earlier runs: they would change the code
    if model.device.type != "cpu":
        return torch.compile(model)
    weights = {id(parameter): parameter for parameter in model.parameters()}
    compiled = copy.deepcopy(model, weights)  # deepcopy takes what is in `weights` as it is
    for block in compiled.blocks:
        block.compile()
    return compiled


def reuse_memory() -> None:
    """Makes this process keep freed memory for its next tensors, if the C library is glibc.

    By default glibc returns large blocks to the system at once, and each new tensor page-faults
    again: 8 to 16% of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products have this dtype; nothing changes for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
