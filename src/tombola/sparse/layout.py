"""The memory layout of sparse layers: batch innermost. Shapes stay those of PyTorch, (N, C, H, W); strides tell.

Like ``channels_last`` it spreads by itself: additions, activations and the like keep the strides of their input. In it
a channel is a plane whose pixels are runs of ``N`` numbers, which is what a sparse layer adds up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inside(x: Tensor) -> Tensor:
    """(N, …) -> (…, N), contiguous: a view of ``x`` if its batch is innermost already, else a copy.

    The gradient of a copied ``x`` comes back in the usual layout.
    """
    turned = x.movedim(0, -1)
    if turned.is_contiguous():
        return turned
    if x.is_contiguous() and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Turn.apply(x, True)  # type: ignore[no-any-return, no-untyped-call]
    return turned.contiguous()


def outside(x: Tensor) -> Tensor:
    """(…, N) -> (N, …) with the batch innermost; no copy."""
    return x.movedim(-1, 0)


def usual(x: Tensor) -> Tensor:
    """(N, …) in the usual layout; the gradient goes back with the batch innermost if ``x`` has it so."""
    if x.is_contiguous() or not x.movedim(0, -1).is_contiguous():
        return x
    if torch.compiler.is_compiling():
        return x.contiguous()
    return _Turn.apply(x, False)  # type: ignore[no-any-return, no-untyped-call]


def is_innermost(x: Tensor) -> bool:
    """Whether the batch is innermost and the usual layout is another."""
    return not x.is_contiguous() and x.movedim(0, -1).is_contiguous()


class _Turn(torch.autograd.Function):
    """From one layout to the other, and the gradient back again. Without it the gradient would keep the new layout,
    and every operation on the way back would mix the two, which is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_inside: bool) -> Tensor:
        ctx.to_inside = to_inside
        return x.movedim(0, -1).contiguous() if to_inside else x.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.to_inside:
            return gradient.movedim(-1, 0).contiguous(), None
        return gradient.movedim(0, -1).contiguous().movedim(-1, 0), None
