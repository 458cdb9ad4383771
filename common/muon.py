"""Muon: momentum whose every update is made orthogonal, for the matrices inside a model.

Keller Jordan, 2024, kellerjordan.github.io/posts/muon; its scale here is that of Liu et al., 2025, arXiv:2502.16982.
torch.optim.Muon does the same in bfloat16 alone, which a CPU without it has to imitate, at 20 times the time, and one
matrix at a time.
"""

import math
from itertools import groupby

import torch

from common.device import has_bfloat16

# Of a quintic a x + b x^3 + c x^5 that takes any singular value between 0 and 1 to about 1 in STEPS steps.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """For each of the matrices (N, rows, columns) the nearest one of the same shape whose singular values are all
    about 1, by a Newton-Schulz iteration."""
    x = matrices.bfloat16() if has_bfloat16(matrices.device) else matrices.float()
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT  # the product below is then the smaller one
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        product = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(product, product, product, beta=B, alpha=C), x, beta=A)
    return (x if wide else x.mT).type_as(matrices)


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only. An update has the root mean square of AdamW's, so that one learning rate serves both."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape, alike in groupby(
                sorted(group["params"], key=lambda p: p.shape), key=lambda p: p.shape
            ):
                parameters = list(alike)
                updates = torch.stack(
                    [self.update(parameter, group["momentum"]) for parameter in parameters]
                )
                scale = -group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, orthogonalize(updates).unbind(), alpha=scale)

    def update(self, parameter: torch.Tensor, decay: float) -> torch.Tensor:
        """The gradient, averaged with those before it."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(momentum, decay)  # Nesterov's look ahead
