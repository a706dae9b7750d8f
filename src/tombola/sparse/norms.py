"""Batch normalisation while training, with the ReLU after it, for planes with the batch innermost.

PyTorch passes over the memory of a layer about eight times on the way back; here a channel, which is one run of memory,
stays in the cache between the sums and their use, and the ReLU costs nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tombola.sparse.layout import innermost


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(N, C, H, W) with the batch innermost -> the same, normalised over all but C, scaled, shifted, and at least 0 if
    ``relu``.

    Also returns mean and biased variance, (C,).
    """
    return _Normalised.apply(x, weight, bias, eps, relu)  # type: ignore[no-any-return, no-untyped-call]


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, found = torch.empty_like(x), x.new_empty(4, x.shape[1])  # mean, variance, scale and shift
        weight, bias = weight.contiguous(), bias.contiguous()
        _launch(_forward(), x, [x, y, weight, bias, found], int(relu), eps)
        ctx.save_for_backward(x, found)
        ctx.relu, ctx.eps = relu, eps
        mean, variance, *_ = found
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, found = ctx.saved_tensors  # which hooks may have moved
        x, found, gradient = innermost(x), found.contiguous(), innermost(gradient)
        by_x, (by_weight, by_bias) = torch.empty_like(x), x.new_empty(2, x.shape[1])
        _launch(_backward(), x, [x, gradient, by_x, found, by_weight, by_bias], int(ctx.relu), ctx.eps)
        return by_x, by_weight, by_bias, None, None


def _launch(loop: Any, x: Tensor, tensors: list[Tensor], relu: int, eps: float) -> None:
    from tombola.sparse.threads import run  # imports Numba: not before it is needed

    settings = np.array([eps], dtype=np.float64)
    channels = x.shape[1]
    if x.numel():
        size = x.numel() // channels
        run(loop, [0, channels, size, relu, settings.ctypes.data, *(tensor.data_ptr() for tensor in tensors)])


_LOOSE = {"reassoc", "contract", "nsz", "arcp"}  # sums in vectors; NaN and infinity stay what they are


@cache
def _forward() -> Any:
    from numba import carray  # type: ignore[attr-defined]

    from tombola.sparse import threads  # the loop closes over the module: an intrinsic would be another in each process

    def forward(job_at: Any) -> None:
        job: Any = carray(job_at, (10,), np.int64)
        channels, size, relu = job[1], job[2], job[3]
        eps = carray(threads.pointer(job[4]), (1,), np.float64)[0]
        x_all = carray(threads.pointer(job[5]), (channels, size), np.float32)
        y_all = carray(threads.pointer(job[6]), (channels, size), np.float32)
        weight = carray(threads.pointer(job[7]), (channels,), np.float32)
        bias = carray(threads.pointer(job[8]), (channels,), np.float32)
        found = carray(threads.pointer(job[9]), (4, channels), np.float32)
        while True:
            channel = threads.next_chunk(job_at)
            if channel >= channels:
                break
            x, y = x_all[channel], y_all[channel]
            total = np.float32(0)
            for place in range(size):
                total += x[place]
            mean = total / np.float32(size)
            squares = np.float32(0)
            for place in range(size):
                squares += (x[place] - mean) * (x[place] - mean)
            variance = squares / np.float32(size)
            scale = np.float32(weight[channel] / np.sqrt(variance + eps))
            shift = bias[channel] - mean * scale
            if relu:
                for place in range(size):
                    value = x[place] * scale + shift
                    y[place] = np.float32(0) if value < 0 else value
            else:
                for place in range(size):
                    y[place] = x[place] * scale + shift
            found[0, channel], found[1, channel], found[2, channel], found[3, channel] = mean, variance, scale, shift

    return threads.compiled(forward, "forward", fastmath=_LOOSE)


@cache
def _backward() -> Any:
    from numba import carray  # type: ignore[attr-defined]

    from tombola.sparse import threads  # the loop closes over the module: an intrinsic would be another in each process

    def backward(job_at: Any) -> None:
        job: Any = carray(job_at, (11,), np.int64)
        channels, size, relu = job[1], job[2], job[3]
        eps = carray(threads.pointer(job[4]), (1,), np.float64)[0]
        x_all = carray(threads.pointer(job[5]), (channels, size), np.float32)
        gradient_all = carray(threads.pointer(job[6]), (channels, size), np.float32)
        by_x_all = carray(threads.pointer(job[7]), (channels, size), np.float32)
        found = carray(threads.pointer(job[8]), (4, channels), np.float32)
        by_weight = carray(threads.pointer(job[9]), (channels,), np.float32)
        by_bias = carray(threads.pointer(job[10]), (channels,), np.float32)
        while True:
            channel = threads.next_chunk(job_at)
            if channel >= channels:
                break
            x, gradient, by_x = x_all[channel], gradient_all[channel], by_x_all[channel]
            mean, scale, shift = found[0, channel], found[2, channel], found[3, channel]
            inverse = np.float32(1 / np.sqrt(found[1, channel] + eps))
            total, product = np.float32(0), np.float32(0)
            for place in range(size):
                passed = np.float32(0) if relu and x[place] * scale + shift <= 0 else gradient[place]
                total += passed
                product += passed * (x[place] - mean)
            by_bias[channel], by_weight[channel] = total, product * inverse
            first = total / np.float32(size)
            second = product * inverse * inverse / np.float32(size)
            for place in range(size):
                passed = np.float32(0) if relu and x[place] * scale + shift <= 0 else gradient[place]
                by_x[place] = (passed - first - (x[place] - mean) * second) * scale

    return threads.compiled(backward, "backward", fastmath=_LOOSE)
