"""On a GPU: a CUDA graph computes what the same operations compute one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import model
from common.device import compile_model
from config import Config
from model import GPT, GPTConfig, Graph
from train import Run, objective_and_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SMALL = {"vocab_size": 50, "n_layers": 2, "n_heads": 2, "d_model": 64, "block_size": 32}


def losses_and_norms(graph: Graph | None, compiled: bool, **settings) -> list[list[float]]:
    """Of ten steps on random tokens, with or without a graph."""
    config = Config(dataset="random", max_steps=10, warmup_steps=2, **SMALL, **settings)
    ids = np.random.default_rng(0).integers(50, size=5000).astype(np.uint16)
    run = Run(config, SimpleNamespace(train=ids), torch.device("cuda", 0), torch.bfloat16)
    run.graph = graph
    if compiled:
        run.wrapped_model = compile_model(run.model)
        run.objective_and_loss = torch.compile(objective_and_loss)
    return [torch.stack(run.update(step)).tolist() for step in range(10)]


SETTINGS = [
    {"dropout": 0.5, "micro_batch_size": 8},
    {"optimizer": "normuon", "confidence_penalty": 0.1, "ema_decay": 0.9},
]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_steps_are_the_same(settings, compiled):
    settings = settings | {"compiled": compiled, "learning_rate": 1e-2}
    graph = Graph()
    recorded, expected = losses_and_norms(graph, **settings), losses_and_norms(None, **settings)
    assert graph.graph is not None
    assert np.allclose(recorded, expected, rtol=0.01)  # the learning rate is rounded to float32


@pytest.mark.parametrize("conv_width", [1, 3])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 9, "top_p": 0.9}], ids=str)
def test_generated_tokens_are_the_same(conv_width, sampling, monkeypatch):
    gpt = GPT(GPTConfig(**SMALL, conv_width=conv_width)).cuda().eval()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def generate():
        start = torch.zeros(3, 1, dtype=torch.long, device="cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        return gpt.generate(start, 80, generator=generator, **sampling)

    recordings, record = [], torch.cuda.graph
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph: recordings.append(graph) or record(graph)
    )
    recorded = generate()  # more tokens than the context has
    assert len(recordings) == 1
    monkeypatch.setattr(model.Graph, "EAGER_CALLS", 10**9)
    assert torch.equal(recorded, generate())
