import pytest
import torch

from common.muon import Muon, orthogonalize


def random_matrix(shape: tuple, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrix = random_matrix(shape, 0)
    orthogonal = orthogonalize(matrix[None])[0]
    values = torch.linalg.svdvals(orthogonal)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = left @ right
    assert torch.cosine_similarity(orthogonal.flatten(), nearest.flatten(), dim=0) > 0.95


def test_steps_equal_those_of_pytorch():
    shapes = ((8, 24), (24, 8), (8, 24))  # matrices of equal shape are updated together
    start = [random_matrix(shape, seed) for seed, shape in enumerate(shapes)]
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = [
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(5):
        for i, shape in enumerate(shapes):
            ours[i].grad = random_matrix(shape, seed=10 * step + i)
            theirs[i].grad = ours[i].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for our, their, before in zip(ours, theirs, start):
        moved = (our - before).norm()
        assert moved > 0.1
        assert (our - their).norm() < 0.03 * moved  # PyTorch's is in bfloat16
