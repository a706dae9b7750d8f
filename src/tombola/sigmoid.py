"""Weights under the mask c·σ(βs), in two sweeps over memory: the gradients before the optimiser's step, and the
effective weights after it. The mask is computed anew in each, which takes less time than to store and fetch it.

For float32 tensors on the CPU; :class:`~tombola.ContinuousSparsification` has the same in PyTorch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tombola.bits import dense_stride
from tombola.compiled import available

_LEAST = 2**14  # weights that are worth another thread


class Sigmoid(NamedTuple):
    """The mask c·σ(βs) of a score s, and the price λ of its sum."""

    beta: float
    scale: float = 1.0
    price: float = 0.0


def able(*tensors: Tensor) -> bool:
    """Whether these may be given together to the functions here: float32, on the CPU, in one order, without gaps, and
    Numba is there."""
    return alike(*tensors) and dense_stride(tensors[0]) is not None and available()


def alike(*tensors: Tensor) -> bool:
    """The same, if one of them is known to have no gaps."""
    stride = tensors[0].stride()
    return all(t.is_cpu and t.dtype is torch.float32 and t.stride() == stride and t.data_ptr() for t in tensors)


def pull_back(layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], mask: Sigmoid) -> list[bool]:
    """Gradients of w and s from that of w·m, by the chain rule.

    Args:
        layers: of each (g, w, s, out): the gradient of the loss by the effective weight, which becomes that by the
            weight, g·m; weight and score; and what becomes the gradient by the score, (g·w + λ)·∂m/∂s with
            ∂m/∂s = β·m·(1 − m/c).
        mask: m as a function of s.

    Returns:
        of each layer whether the gradient of its effective weight is finite.
    """
    endless = _sweep("pull_back", layers, mask)
    return [which not in endless for which in range(len(layers))]


def apply(layers: Sequence[tuple[Tensor, Tensor, Tensor]], mask: Sigmoid) -> None:
    """Of each layer's (w, s, out) ``out`` becomes w·m."""
    _sweep("apply", layers, mask)


def _sweep(name: str, layers: Sequence[Sequence[Tensor]], mask: Sigmoid) -> set[int]:
    """Run a loop over all layers: the numbers of those of which it tells something."""
    if not layers:
        return set()
    from tombola.sparse.threads import sweep  # imports Numba: not before there is a score

    at = [[tensor.data_ptr() for tensor in layer] for layer in layers]

    def addresses(which: int, begin: int) -> list[int]:
        return [address + 4 * begin for address in at[which]]

    numbers = np.array([mask.beta, mask.scale, mask.beta * mask.scale * mask.price], np.float32).view(np.int32)
    sizes = [layer[0].numel() for layer in layers]
    told = sweep(_kernel(name), sizes, addresses, *numbers.tolist(), least=_LEAST)
    for tensor in chain(*layers):
        torch.autograd.graph.increment_version(tensor)  # a graph that still needs the old numbers is told
    return told


@cache
def _kernel(name: str) -> Any:
    from tombola.sparse import sigmoids

    return sigmoids.kernel(name)
