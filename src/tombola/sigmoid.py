"""Weights under the mask c·σ(βs), in two sweeps over memory: the gradients before the optimiser's step, and the
effective weights after it. The mask is computed anew in each, which takes less time than to store and fetch it.

For float32 tensors on the CPU; :class:`~tombola.ContinuousSparsification` has the same in PyTorch's operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_WORTH = 2**14  # weights that are worth another thread


class Sigmoid(NamedTuple):
    """The mask c·σ(βs) of a score s, and the price λ of its sum."""

    beta: float
    scale: float = 1.0
    price: float = 0.0


def able(*tensors: Tensor) -> bool:
    """Whether these may be given to the functions here: contiguous, float32, on the CPU."""
    return all(t.is_cpu and t.dtype is torch.float32 and t.is_contiguous() for t in tensors)


def pull_back(
    grad: Tensor, weight: Tensor, score: Tensor, mask: Sigmoid, *, parameter: Tensor | None, out: Tensor
) -> Tensor:
    """Gradients of w and s from that of w·m, by the chain rule.

    Args:
        grad: of the loss by the effective weight; becomes that by the weight, g·m.
        weight, score: w and s, of the same shape.
        mask: m as a function of s.
        parameter: becomes w, if given.
        out: becomes the gradient by the score, (g·w + λ)·∂m/∂s with ∂m/∂s = β·m·(1 − m/c).

    Returns:
        ``out``.
    """
    _run("pull_back", (grad, weight, score, parameter, out), mask)
    return out


def apply(weight: Tensor, score: Tensor, mask: Sigmoid, *, parameter: Tensor, take: bool) -> None:
    """Write w·m into ``parameter``; ``take``: with what it holds as the w from now on."""
    _run("take" if take else "apply", (None, weight, score, parameter, None), mask)


def _run(name: str, tensors: tuple[Tensor | None, ...], mask: Sigmoid) -> None:
    from tombola.sparse.threads import run  # imports Numba: not before there is a score

    count = next(t.numel() for t in tensors if t is not None)
    chunks = max(1, min(4 * torch.get_num_threads(), count // _WORTH))
    each = -(-count // chunks // 16) * 16
    numbers = np.array([mask.beta, mask.scale, mask.beta * mask.scale * mask.price], np.float32).view(np.int32)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    if count:
        run(_kernel(name), [0, -(-count // each), count, each, *addresses, *numbers.tolist()])


@cache
def _kernel(name: str) -> Any:
    from tombola.sparse import sigmoids

    return sigmoids.kernel(name)
