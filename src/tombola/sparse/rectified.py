"""The way back through a ReLU, with the sums that are the gradient of the bias before it, in one pass over memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS = 16  # channels that a thread takes at a time, where there are many


def through_relu(gradient: Tensor, output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The gradient by what the ReLU was given, and its sum over each channel.

    Args:
        gradient: by the output; float32, on the CPU, in memory channel by channel without gaps.
        output: what the ReLU gave, which lies in memory like it.
        channels: how many there are.
    """
    from tombola.sparse.threads import run  # imports Numba: not before it is needed

    result, sums = torch.empty_like(gradient), gradient.new_empty(channels)
    if result.numel():
        tensors = (gradient, output, result, sums)
        sizes = (channels, result.numel() // channels)
        run(_kernel(), [0, -(-channels // _ROWS), *sizes, *(tensor.data_ptr() for tensor in tensors)])
    else:
        sums.zero_()
    return result, sums


@cache
def _kernel() -> Any:
    from numba import carray  # type: ignore[attr-defined]

    from tombola.sparse import threads  # the loop closes over the module: an intrinsic would be another in each process

    def through_relu(job_at: Any) -> None:
        job: Any = carray(job_at, (8,), np.int64)
        channels, size = job[2], job[3]
        gradients = carray(threads.pointer(job[4]), (channels, size), np.float32)
        outputs = carray(threads.pointer(job[5]), (channels, size), np.float32)
        results = carray(threads.pointer(job[6]), (channels, size), np.float32)
        sums = carray(threads.pointer(job[7]), (channels,), np.float32)
        while True:
            first = threads.next_chunk(job_at) * _ROWS
            if first >= channels:
                break
            for channel in range(first, min(first + _ROWS, channels)):
                gradient, output, result = gradients[channel], outputs[channel], results[channel]
                total = np.float32(0)
                for place in range(size):
                    passed = np.float32(0) if output[place] <= 0 else gradient[place]
                    result[place] = passed
                    total += passed
                sums[channel] = total

    return threads.compiled(through_relu, "through_relu", fastmath={"reassoc", "nsz"})
