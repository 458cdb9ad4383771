"""Which device, precision and compilation a run uses, and why: what `auto` stands for."""

import ctypes
import sys

import torch

from common.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device of that name, or for auto the fastest at hand, and the reason. Raises UserError where it is missing."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "auto: a CUDA GPU is at hand"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: Apple's GPU is at hand"
        return torch.device("cpu"), "auto: no GPU found"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is none of cpu, cuda and mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name} can't be used here ({reason}); auto takes what there is", status=2
        ) from None
    return device, "as set"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def pick_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that autocast computes matrix products in (parameters stay float32), and the reason."""
    if name != "auto":
        return DTYPES[name], "as set"
    if has_bfloat16(device):
        return torch.bfloat16, "auto: fast here"
    if device.type == "cuda":
        return torch.float16, "auto: the GPU has no bfloat16"
    return torch.float32, f"auto: no fast bfloat16 on this {device.type}"


def pick_weights_dtype(device: torch.device, streams: int) -> torch.dtype:
    """The dtype that generation keeps the weights in.

    One stream waits for nothing but the weights to come from memory, and in bfloat16 they come in half the time, on any
    CPU; several streams compute, which a CPU without bfloat16 does faster in float32.
    """
    if device.type == "cuda":
        return pick_dtype("auto", device)[0]
    return (
        torch.bfloat16
        if has_bfloat16(device) or (device.type == "cpu" and streams == 1)
        else torch.float32
    )


def pick_compile(setting: bool | str, device: torch.device, operations: float) -> tuple[bool, str]:
    """Whether to torch.compile the model for a run of so many floating-point operations, and the reason. Raises UserError
    where it is asked for and does not work."""
    if setting is False:
        return False, "as set"
    if setting == "auto" and (device.type == "mps" or device.type == "cpu" and operations < 1e14):
        return False, "auto: takes longer to compile than it saves here"
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except (
        Exception
    ) as error:  # no compiler, one that does not work, a GPU too old: it fails in many ways
        reason = str(error).splitlines()[0]
        if setting is True:
            raise UserError(f"can't compile here, --compile=false does without: {reason}") from None
        return False, f"auto: can't compile here, {reason}"
    if setting is True:
        return True, "as set"
    if device.type == "cuda":
        return True, "auto: a minute to compile, much faster steps"
    return True, "auto: half a minute to compile, faster steps in a run of this length"


def reuse_memory() -> None:
    """Makes this process keep the memory of freed tensors for the next ones, where the C library is glibc.

    By itself glibc gives large blocks back at once, and each new tensor waits for its pages: 8 to 16% of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
