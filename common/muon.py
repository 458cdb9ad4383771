"""Muon: momentum with orthogonalized updates, for weight matrices; and NorMuon.

Keller Jordan, 2024, kellerjordan.github.io/posts/muon; updates are scaled as in Liu et al., 2025,
arXiv:2502.16982. torch.optim.Muon works in bfloat16 only (20 times slower on a CPU that has to
emulate it) and on one matrix at a time. NorMuon: Li et al., 2025, arXiv:2510.05491.
"""

import math
from collections import defaultdict

import torch

from common.device import has_bfloat16

# Coefficients a, b and c of a polynomial a x + b x^3 + c x^5 that maps singular values in (0, 1]
# close to 1 in STEPS iterations.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """For each matrix of (N, rows, columns), the nearest one with all singular values about 1.

    A Newton-Schulz iteration, x <- (a + b x x^T + c (x x^T)^2) x, in bfloat16 if the device is fast
    at it.
    """
    x = matrices.bfloat16() if has_bfloat16(matrices.device) else matrices.float()
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT  # so that x x^T is the smaller product
    _, rows, columns = x.shape
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype == torch.bfloat16 or columns < 1.5 * rows:
        for _ in range(STEPS):
            gram = x @ x.mT
            factor = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
            x = torch.baddbmm(x, factor, x, beta=LINEAR)
    else:  # fewer operations: multiply the square matrices first (too inexact in bfloat16)
        gram = x @ x.mT
        factor = product = polynomial(gram)
        for _ in range(STEPS - 1):
            gram = factor @ gram @ factor  # (factor x) (factor x)^T: factor is symmetric
            factor = polynomial(gram)
            product = factor @ product
        x = product @ x
    return (x if wide else x.mT).type_as(matrices)


def polynomial(gram: torch.Tensor) -> torch.Tensor:
    """a + b gram + c gram^2, for square matrices (N, rows, rows)."""
    result = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
    result.diagonal(dim1=1, dim2=2).add_(LINEAR)
    return result


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only. A joint matrix (q, k and v; gate and value) counts as one.

    The root mean square of an update is about 0.2 times the learning rate, as is typical of AdamW,
    so one learning rate suits both.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        beta2: float | None = None,
    ):
        """momentum: decay of the mean gradient. beta2: that of the mean squared updates, for
        NorMuon; None for Muon.
        """
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "beta2": beta2}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)  # matrices of equal shape are orthogonalized together
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                averages = [self.average(parameter, group["momentum"]) for parameter in parameters]
                updates = orthogonalize(torch.stack(averages)).unbind()
                if group["beta2"] is not None:
                    updates = [
                        self.equalize(parameter, update, group["beta2"])
                        for parameter, update in zip(parameters, updates)
                    ]
                torch._foreach_mul_(updates, group["lr"] * 0.2 * math.sqrt(max(shape)))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(parameters, updates)

    def average(self, parameter: torch.Tensor, beta: float) -> torch.Tensor:
        """The moving average of the gradient, with Nesterov's look-ahead."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - beta)
        return parameter.grad.lerp(average, beta)

    def equalize(self, parameter: torch.Tensor, update: torch.Tensor, beta2: float) -> torch.Tensor:
        """Gives the neurons' updates equal lengths, on average over the steps (NorMuon).

        The norm of the whole update stays. The neurons are the rows or the columns, whichever are
        more: the others have equal lengths already, because they are orthogonal to each other.
        """
        state, (rows, columns) = self.state[parameter], update.shape
        squares = update.square().mean(dim=1 if rows >= columns else 0, keepdim=True)
        if "squares" not in state:
            state["squares"] = torch.zeros_like(squares)
        average = state["squares"].lerp_(squares, 1 - beta2)
        equalized = update / (average.sqrt() + 1e-8)
        return equalized * (update.norm() / (equalized.norm() + 1e-8))
