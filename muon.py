"""Muon: momentum whose every update is made orthogonal, for the matrices inside a model.

Keller Jordan, 2024, kellerjordan.github.io/posts/muon; its scale here is that of Liu et al., 2025, arXiv:2502.16982.
torch.optim.Muon does the same in bfloat16 alone, which a CPU without it has to imitate, at 20 times the time.
"""

import math

import torch

# Of a quintic a x + b x^3 + c x^5 that takes any singular value between 0 and 1 to about 1 in STEPS steps.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix of the same shape whose singular values are all about 1, by a Newton-Schulz iteration."""
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    wide = x.size(0) <= x.size(1)
    x = x if wide else x.T  # the product below is then the smaller one
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        product = x @ x.T
        x = torch.addmm(x, torch.addmm(product, product, product, beta=B, alpha=C), x, beta=A)
    return (x if wide else x.T).type_as(matrix)


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only. An update has the root mean square of AdamW's, so that one learning rate serves both."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(momentum, group["momentum"]))  # Nesterov's look ahead
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))
