import pytest
import torch

from common.device import compile_model, pick_compile, pick_device, pick_dtype, pick_weights_dtype
from common.errors import UserError
from model import GPT, GPTConfig

CPU = torch.device("cpu")


def test_a_device_is_used_as_set():
    assert pick_device("cpu") == (CPU, "as set")


def test_cuda_means_the_first_gpu(monkeypatch):
    current = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda")[0] == torch.device("cuda", 0)  # set_device needs the index
    assert current == [torch.device("cuda", 0)]


def test_a_gpu_that_does_not_work_is_an_error_even_with_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "99")  # torchrun started more processes than there are GPUs
    with pytest.raises(UserError, match="use another --device"):
        pick_device("auto")


def test_a_dtype_is_used_as_set():
    assert pick_dtype("float16", CPU) == (torch.float16, "as set")


@pytest.mark.parametrize("fast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_uses_bfloat16_on_a_cpu_that_is_fast_at_it(monkeypatch, fast, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_dtype("auto", CPU)[0] == dtype
    assert pick_weights_dtype(CPU, sequences=10) == dtype
    assert pick_weights_dtype(CPU, sequences=1) == torch.bfloat16


def test_a_cpu_with_amx_generates_one_text_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert pick_weights_dtype(CPU, sequences=1) == torch.float32
    assert pick_weights_dtype(CPU, sequences=10) == torch.bfloat16


# compilation


@pytest.mark.parametrize("device, flops", [("cpu", 1e12), ("cuda", 1e14), ("mps", 1e18)])
def test_runs_that_compilation_would_make_longer_are_not_compiled(device, flops):
    reason = "auto: compiling would take longer than it saves in this run"
    assert pick_compile("auto", torch.device(device), flops) == (False, reason)


def test_compilation_can_be_turned_off():
    assert pick_compile(False, CPU, flops=1e15) == (False, "as set")


def test_without_a_working_compiler_auto_does_not_compile(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", fail)
    reason = "auto: can't compile here, no compiler at all"
    assert pick_compile("auto", CPU, flops=1e15) == (False, reason)
    with pytest.raises(UserError, match=r"use --compile=false \(no compiler at all\)"):
        pick_compile(True, CPU, flops=1e9)


def test_long_runs_are_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert pick_compile("auto", CPU, flops=1e14)[0]
    assert pick_compile(True, CPU, flops=0) == (True, "as set")


def test_a_compiled_model_shares_the_weights_of_the_model():
    config = GPTConfig(vocab_size=5, block_size=8, n_layers=1, n_heads=1, d_model=8)
    model = GPT(config)
    compiled = compile_model(model)
    assert compiled is not model
    for ours, theirs in zip(model.parameters(), compiled.parameters(), strict=True):
        assert ours is theirs
