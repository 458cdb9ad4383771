import pytest
import torch

from common.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix[None])[0])
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = (left @ right).flatten()
    assert torch.cosine_similarity(orthogonalize(matrix[None]).flatten(), nearest, dim=0) > 0.95


def test_steps_equal_those_of_torch():
    shapes = ((8, 24), (24, 8), (8, 24))  # the first and the last go through the iteration together
    start = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate(shapes)
    ]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizers = [
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers):
            for i, parameter in enumerate(parameters):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(10 * step + i)
                )
            optimizer.step()
    for a, b, before in zip(ours, theirs, start):
        assert (a - before).norm() > 0.1
        assert (a - b).norm() < 0.03 * (a - before).norm()  # theirs is in bfloat16
