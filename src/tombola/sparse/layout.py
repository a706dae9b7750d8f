"""The memory layout of sparse layers: batch innermost. Shapes stay those of PyTorch, (N, C, H, W); strides tell.

Like ``channels_last`` it spreads by itself: additions, activations and the like keep the strides of their input. In it
a channel is a plane whose pixels are runs of ``N`` numbers, which is what a sparse layer adds up.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tombola.compiled import need

_LARGE = 4096  # floats that are worth the start of threads


def inside(x: Tensor) -> Tensor:
    """(N, …) -> (…, N), contiguous: a view of ``x`` if its batch is innermost already, else a copy.

    The gradient of a copied ``x`` comes back in the usual layout.
    """
    turned = x.movedim(0, -1)
    if turned.is_contiguous():
        return turned
    if not x.is_contiguous() or torch.compiler.is_compiling():
        return turned.contiguous()
    if x.requires_grad and torch.is_grad_enabled():
        return _Turn.apply(x, True)  # type: ignore[no-any-return, no-untyped-call]
    return _laid_out(x).movedim(0, -1)


def outside(x: Tensor) -> Tensor:
    """(…, N) -> (N, …) with the batch innermost; no copy."""
    return x.movedim(-1, 0)


def innermost(x: Tensor) -> Tensor:
    """(N, …) with the batch innermost: ``x`` itself if it lies so already, else a copy. Not to be differentiated."""
    is_so = x.stride() == _strides(x.shape) or x.movedim(0, -1).is_contiguous()  # dimensions of 1 have any stride
    return x if is_so else _laid_out(x)


def empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A new tensor (N, …) with the batch innermost, that is no view."""
    return like.new_empty_strided(shape, _strides(shape))


@lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    count, *rest = shape
    return (1, *(count * math.prod(rest[place + 1 :]) for place in range(len(rest))))


def usual(x: Tensor) -> Tensor:
    """(N, …) in the usual layout; the gradient goes back with the batch innermost if ``x`` has it so."""
    if not is_innermost(x):
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
        return _laid_out(x).movedim(0, -1) if to_inside else _to_usual(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _to_usual(gradient.movedim(-1, 0)) if ctx.to_inside else _laid_out(gradient), None


def _laid_out(x: Tensor) -> Tensor:
    """A copy of (N, …) with the batch innermost."""
    result = empty(x, x.shape)
    if x.is_contiguous() and _turns(x):
        return _turned(x, result, x.shape[0])
    return result.copy_(x)


def _to_usual(x: Tensor) -> Tensor:
    """(N, …), contiguous."""
    if x.movedim(0, -1).is_contiguous() and _turns(x):
        return _turned(x, x.new_empty(x.shape), x.numel() // x.shape[0])
    return x.contiguous()


def _turns(x: Tensor) -> bool:
    """Whether turning ``x`` is a matter of our own loop, which nobody differentiates."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    return x.numel() >= _LARGE and x.is_cpu and x.dtype is torch.float32 and not differentiated


def _turned(source: Tensor, result: Tensor, rows: int) -> Tensor:
    need("a sparse layer")
    from tombola.sparse.turning import turn  # imports Numba: not before it is needed

    return turn(source, result, rows)
