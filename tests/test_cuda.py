"""On a GPU: a CUDA graph computes what the same operations compute one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.tokenizer import CharTokenizer
from config import Config
from model import GPT, GPTConfig, Graph, GraphCache, KVCache
from train import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SMALL = {"vocab_size": 50, "n_layers": 2, "n_heads": 2, "d_model": 64, "block_size": 32}


@pytest.fixture
def recordings(monkeypatch):
    """The CUDA graphs that have been recorded."""
    recordings, record = [], torch.cuda.graph
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph: recordings.append(graph) or record(graph)
    )
    return recordings


def train(compiled: bool, **settings) -> tuple[list[list[float]], torch.Tensor]:
    """The losses and gradient norms of ten steps on random tokens, and the final weights."""
    config = Config(dataset="random", max_steps=10, warmup_steps=2, **SMALL, **settings)
    ids = np.random.default_rng(0).integers(50, size=5000).astype(np.uint16)
    dataset = SimpleNamespace(train=ids, tokenizer=CharTokenizer("".join(map(chr, range(50)))))
    run = Run(config, dataset, torch.device("cuda", 0), torch.bfloat16)
    run.accelerate(compiled)
    results = []
    for step in range(10):
        results.append(torch.stack(run.update(step)).tolist())
        if step == 6:
            run.sample(40)  # records a second graph
    return results, torch.cat([weight.detach().flatten() for weight in run.model.parameters()])


SETTINGS = [
    {"dropout": 0.5, "micro_batch_size": 8},
    {"optimizer": "normuon", "confidence_penalty": 0.1, "ema_decay": 0.9},
]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_steps_are_the_same(settings, compiled, recordings, monkeypatch):
    settings = settings | {"compiled": compiled, "learning_rate": 1e-2}
    recorded, weights = train(**settings)
    assert len(recordings) == 2
    monkeypatch.setattr(Graph, "EAGER_CALLS", 10**9)
    expected, expected_weights = train(**settings)
    assert len(recordings) == 2
    assert np.allclose(recorded, expected, rtol=0.01)
    assert (weights - expected_weights).abs().mean() < 1e-3


def make_model(dtype: torch.dtype, conv_width: int) -> GPT:
    """A model with large random weights."""
    model = GPT(GPTConfig(**SMALL, conv_width=conv_width)).to("cuda", dtype).eval()
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv_width", [1, 3])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 9, "top_p": 0.9}], ids=str)
def test_generated_tokens_are_the_same(dtype, conv_width, sampling, recordings, monkeypatch):
    model = make_model(dtype, conv_width)

    def generate():
        start = torch.zeros(3, 1, dtype=torch.long, device="cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        return model.generate(start, 80, generator=generator, **sampling)

    recorded = generate()  # more tokens than the context has
    assert len(recordings) == 1
    monkeypatch.setattr(Graph, "EAGER_CALLS", 10**9)
    assert torch.equal(recorded, generate())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv_width", [1, 3])
def test_the_cache_gives_the_same_logits(dtype, conv_width):
    model = make_model(dtype, conv_width)
    idx = torch.randint(50, (3, 32), device="cuda")
    cache = KVCache(model.config, 3, idx.device, dtype)
    graph_cache = GraphCache(cache)
    logits = [model(idx[:, :5], cache)]
    for i in range(5, 32):
        graph_cache.move_to(torch.tensor([i], device="cuda"))
        logits.append(model(idx[:, i : i + 1], graph_cache))
    assert torch.allclose(torch.cat(logits, 1), model(idx), atol=0.1)  # a wrong mask: about 1
