"""Which device, precision and compilation a run uses, and why: what `auto` stands for."""

import torch

from cli import UserError

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
        raise UserError(f"device {name} can't be used here ({reason}); auto takes what there is", status=2) from None
    return device, "as set"


def pick_dtype(name: str, device: torch.device, d_model: int) -> tuple[torch.dtype, str]:
    """The dtype that autocast computes matrix products in (parameters stay float32), and the reason."""
    if name != "auto":
        return DTYPES[name], "as set"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "auto: the GPU has it"
        return torch.float16, "auto: the GPU has no bfloat16"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        if d_model >= 256:
            return torch.bfloat16, "auto: the CPU has it"
        return torch.float32, "auto: bfloat16 gains nothing at this width"
    return torch.float32, f"auto: no fast bfloat16 on this {device.type}"


def pick_weights_dtype(device: torch.device, streams: int) -> torch.dtype:
    """The dtype that generation keeps the weights in.

    One stream waits for nothing but the weights to come from memory, and in bfloat16 they come in half the time, on any
    CPU; several streams compute, which float32 does faster on a CPU.
    """
    if device.type == "cuda":
        return pick_dtype("auto", device, 0)[0]
    return torch.bfloat16 if device.type == "cpu" and streams == 1 else torch.float32


def pick_compile(setting: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether to torch.compile the model, and the reason."""
    if setting != "auto":
        return setting, "as set"
    if device.type == "cuda":
        return True, "auto: a minute to compile, much faster steps"
    return False, "auto: takes longer to compile than it saves without a CUDA GPU"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
