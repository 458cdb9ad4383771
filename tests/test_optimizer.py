"""The learning rate, the optimizers, and Run.update: one optimizer step."""

import itertools
import math

import numpy as np
import pytest
import torch

from common import muon
from common.dataset import Dataset
from common.tokenizer import ByteTokenizer
from config import SETTINGS
from model import GPT, entropy
from train import Run, learning_rate, make_optimizers

CPU = torch.device("cpu")


@pytest.fixture
def make_run(tiny):
    """make_run(**settings): a run on random tokens, without any files."""

    def make(n_tokens=500, dtype=torch.float32, **settings):
        tokens = np.random.default_rng(0).integers(50, size=n_tokens).astype(np.uint16)
        dataset = Dataset("random", ByteTokenizer(), {}, tokens, tokens)
        return Run(tiny(vocab_size=50, **settings), dataset, CPU, dtype)

    return make


def parameters(model: GPT) -> dict:
    """A copy of a model's parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def close(a: dict, b: dict, **tolerances) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], **tolerances) for k in a)


def length(tensors: dict) -> float:
    """The norm of all tensors together."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).norm().item()


def first_gradients(run: Run) -> tuple[dict, float, float]:
    """The gradients that the first step follows, its loss and its gradient norm."""
    run.optimizers = [torch.optim.SGD(run.model.parameters())]
    before = parameters(run.model)
    loss, norm = run.update(0)
    after = parameters(run.model)
    return {name: before[name] - after[name] for name in before}, loss.item(), norm.item()


# learning rate


def test_learning_rate_rises_linearly_and_falls_along_a_cosine(tiny):
    config = tiny(learning_rate=1.0, min_lr=0.1, warmup_steps=4, max_steps=104)
    assert [learning_rate(step, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(54, config) == pytest.approx(0.55)
    assert learning_rate(104, config) == pytest.approx(0.1)
    rates = [learning_rate(step, config) for step in range(4, 105)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_without_warmup_starts_at_its_peak(tiny):
    assert learning_rate(0, tiny(learning_rate=1.0, warmup_steps=0)) == 1.0


def test_every_optimizer_follows_the_learning_rate(make_run):
    run = make_run(optimizer="muon")
    run.update(7)
    rates = {group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups}
    assert rates == {learning_rate(7, run.config)}


# optimizers


@pytest.mark.parametrize("optimizer", SETTINGS["optimizer"].choices)
def test_only_matrices_decay(tiny, optimizer):
    config = tiny(
        optimizer=optimizer,
        vocab_size=10,
        bias=True,
        pos_type="learned",
        norm_type="layernorm",
        weight_decay=0.5,
    )
    model = GPT(config)
    decays = {}
    for optimizer in make_optimizers(model, config):
        for group in optimizer.param_groups:
            decays |= {id(parameter): group["weight_decay"] for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embedding" not in name
        assert decays[id(parameter)] == (0.5 if matrix else 0.0), name


@pytest.mark.parametrize("optimizer, beta2", [("muon", None), ("normuon", 0.9)])
def test_muon_updates_the_matrices_of_the_blocks_and_nothing_else(tiny, optimizer, beta2):
    config = tiny(optimizer=optimizer, vocab_size=10, momentum=0.8, beta2=0.9)
    model = GPT(config)
    muon, _ = make_optimizers(model, config)
    assert {(group["momentum"], group["beta2"]) for group in muon.param_groups} == {(0.8, beta2)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    updated = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    modules = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    assert updated == {f"blocks.{i}.{module}.weight" for i in range(2) for module in modules}


@pytest.mark.parametrize("optimizer", SETTINGS["optimizer"].choices)
def test_a_learning_rate_in_a_tensor_makes_the_same_steps(make_run, optimizer, monkeypatch):
    """As in a CUDA graph, for which a plain call stands in here."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: False)  # its rounding adds up
    plain, recorded = make_run(optimizer=optimizer), make_run(optimizer=optimizer)
    recorded.graph = lambda function, *tensors: function(*tensors)
    before = parameters(plain.model)
    for step in range(3):
        plain.update(step)
        recorded.update(step)
    assert close(parameters(plain.model), parameters(recorded.model), atol=1e-5)
    assert not close(parameters(plain.model), before, atol=1e-3)


# one optimizer step

ONCE = {"learning_rate": 1.0, "warmup_steps": 0, "batch_size": 8}  # one step of a length of 1


def test_micro_batches_have_the_gradient_of_the_whole_batch(make_run):
    whole, loss, norm = first_gradients(make_run(**ONCE, grad_clip=0))
    parts, parts_loss, parts_norm = first_gradients(
        make_run(**ONCE, grad_clip=0, micro_batch_size=2)
    )
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    assert parts_norm == pytest.approx(norm, rel=1e-4)
    assert close(whole, parts, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_but_their_whole_norm_is_reported(make_run):
    whole, _, norm = first_gradients(make_run(**ONCE, grad_clip=0))
    clipped, _, reported = first_gradients(make_run(**ONCE, grad_clip=0.01))
    assert norm > 0.1
    assert norm == pytest.approx(length(whole), rel=1e-4)
    assert reported == norm
    assert length(clipped) == pytest.approx(0.01, rel=1e-3)


def test_a_confidence_penalty_changes_the_gradient_but_not_the_reported_loss(make_run):
    plain, loss, _ = first_gradients(make_run(**ONCE, grad_clip=0))
    run = make_run(**ONCE, grad_clip=0, confidence_penalty=0.5, micro_batch_size=2)
    ids = run.batches(0)
    entropy(run.model(ids[:, :-1])).backward()
    expected = {name: plain[name] - 0.5 * p.grad for name, p in run.model.named_parameters()}
    run.model.zero_grad()
    penalized, same_loss, _ = first_gradients(run)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert close(penalized, expected, rtol=1e-3, atol=1e-6)
    assert not close(penalized, plain, rtol=1e-2, atol=1e-5)


def test_every_micro_batch_of_every_process_has_its_own_dropout(make_run, monkeypatch):
    logits = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run = make_run(dropout=0.3, batch_size=2, micro_batch_size=1)
        run.batches = lambda step: torch.arange(9).repeat(2, 1)  # two equal sequences
        run.model.register_forward_hook(lambda *arguments: logits.append(arguments[-1].detach()))
        run.update(0)
    assert len(logits) == 4
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(logits, 2))


def test_the_same_step_gives_the_same_weights_with_dropout(make_run):
    first, second = make_run(dropout=0.3), make_run(dropout=0.3)
    torch.rand(1)  # the state of the global generator does not matter
    second.update(0)
    torch.rand(1)
    first.update(0)
    assert close(parameters(first.model), parameters(second.model), rtol=0, atol=0)


def test_one_batch_can_be_memorized(make_run):
    run = make_run(n_tokens=33, max_steps=150)  # a single window
    losses = [run.update(step)[0].item() for step in range(150)]
    assert losses[0] > 3.5
    assert losses[-1] < 0.1


def test_the_average_of_the_weights_decays_as_set(make_run):
    run = make_run(ema_decay=0.6)
    expected = parameters(run.model)
    for step in range(12):
        run.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, weight in parameters(run.model).items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    assert run.eval_model is run.ema_model
    assert close(parameters(run.ema_model), expected, atol=1e-6)
    assert not close(parameters(run.model), expected, atol=1e-4)


def test_a_float16_step_that_overflows_is_skipped_by_every_optimizer(make_run):
    run = make_run(dtype=torch.float16, optimizer="muon")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    before = parameters(run.model)

    def overflow(gradient):
        return torch.full_like(gradient, math.inf)

    hook = run.model.head.weight.register_hook(overflow)  # AdamW's, while Muon's are finite
    _, norm = run.update(0)
    assert not norm.isfinite()
    assert close(parameters(run.model), before, rtol=0, atol=0)
    assert run.scaler.get_scale() == 0.5

    hook.remove()
    _, norm = run.update(1)
    assert norm.isfinite()
    assert not close(parameters(run.model), before)


@pytest.mark.parametrize(
    "settings",
    [*({"optimizer": name} for name in SETTINGS["optimizer"].choices), {"dtype": torch.bfloat16}],
    ids=str,
)
def test_the_loss_falls(make_run, settings):
    run = make_run(n_tokens=65, max_steps=40, learning_rate=3e-3, **settings)
    losses = [run.update(step)[0].item() for step in range(40)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("optimizer", SETTINGS["optimizer"].choices)
def test_adamw_has_the_betas_of_the_settings(tiny, optimizer):
    config = tiny(optimizer=optimizer, vocab_size=10, beta1=0.8, beta2=0.99)
    adamw = make_optimizers(GPT(config), config)[-1]
    assert isinstance(adamw, torch.optim.AdamW)  # Adam's decay would be part of the gradient
    assert {tuple(group["betas"]) for group in adamw.param_groups} == {(0.8, 0.99)}


# random numbers


def test_every_step_and_every_seed_has_its_own_dropout(make_run):
    masks = []
    for seed, step in ((1, 0), (1, 1), (2, 0)):
        run = make_run(dropout=0.3, seed=seed)
        run.model.dropout.register_forward_hook(lambda _, x, y: masks.append(y == 0))
        run.update(step)
    assert len(masks) == 3
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


def test_the_seed_decides_the_initial_weights_and_the_samples(make_run):
    one, other = make_run(seed=1), make_run(seed=2)
    assert not close(parameters(one.model), parameters(other.model))
    other.model.load_state_dict(one.model.state_dict())
    assert one.sample(50) != other.sample(50)


def test_samples_are_made_without_dropout(make_run):
    run, modes = make_run(dropout=0.5), []
    run.model.blocks[0].register_forward_hook(lambda block, *_: modes.append(block.training))
    run.sample(3)
    assert modes == [False] * 3
    assert run.model.training
