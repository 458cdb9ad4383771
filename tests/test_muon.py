import pytest
import torch

from common import muon
from common.muon import Muon, orthogonalize


def random_matrix(shape: tuple, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape, bfloat16, monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: bfloat16)
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


@pytest.mark.parametrize(("shape", "along"), [((40, 12), 1), ((12, 40), 0)])
def test_normuon_moves_all_neurons_equally_far_and_the_matrix_as_far_as_muon(shape, along):
    moves = {}
    for beta2 in (None, 0.95):
        matrix = torch.nn.Parameter(torch.zeros(shape))
        scales = torch.logspace(-2, 2, max(shape)).unsqueeze(along)  # of the neurons' gradients
        matrix.grad = random_matrix(shape, 0) * scales
        Muon([matrix], lr=0.02, beta2=beta2).step()
        moves[beta2] = matrix.detach()
    lengths = moves[0.95].norm(dim=along)
    assert lengths.max() < 1.001 * lengths.min()
    lengths = moves[None].norm(dim=along)
    assert lengths.max() > 2 * lengths.min()
    assert moves[0.95].norm() == pytest.approx(moves[None].norm().item(), rel=1e-4)


def test_normuon_averages_the_squared_updates_over_the_steps():
    matrix = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = Muon([matrix], lr=1.0, momentum=0.0, beta2=0.5)
    gradients = torch.tensor([[[1.0, 0], [0, 1], [0, 0]], [[0, 0], [0, 1], [1, 0]]])
    for gradient in gradients:
        before, matrix.grad = matrix.detach().clone(), gradient
        optimizer.step()
    lengths = (matrix.detach() - before).norm(dim=1)
    assert lengths[0] == 0  # this neuron moved in the first step only, 1 in both, 2 in the second
    # mean squares: 0.5 of this step's and, for neuron 1, 0.25 of the step's before
    assert lengths[2] / lengths[1] == pytest.approx((0.75 / 0.5) ** 0.5, rel=1e-3)


def test_normuon_leaves_a_matrix_without_a_gradient_alone():
    matrix = torch.nn.Parameter(random_matrix((4, 3), 0))
    before = matrix.detach().clone()
    matrix.grad = torch.zeros(4, 3)
    Muon([matrix], lr=0.1, beta2=0.95).step()
    assert torch.equal(matrix, before)
