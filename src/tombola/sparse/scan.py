"""The compiled search through a block of numbers for those that are large. Imports Numba: not before it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tombola.compiled import kept

_STRIDE = 64  # numbers that are looked at together: most have nothing among them


def _scan(block: Any, offset: int, least: Any, strict: bool, values: Any, indices: Any, count: int) -> int:
    """Add the numbers of ``block`` that reach ``least``, a float32 (``strict``: that exceed it), to ``values``, and
    their places to ``indices``, from ``count`` on; return the new count. Both have room for a whole block."""
    whole = block.size // _STRIDE * _STRIDE
    for begin in range(0, whole, _STRIDE):
        reach = np.int32(0)
        for place in range(_STRIDE):  # without branches, so that it becomes a few vector instructions
            reach += np.int32(block[begin + place] >= least)
        if reach:
            for place in range(begin, begin + _STRIDE):
                if block[place] > least or (block[place] == least and not strict):
                    values[count] = block[place]
                    indices[count] = offset + place
                    count += 1
    for place in range(whole, block.size):
        if block[place] > least or (block[place] == least and not strict):
            values[count] = block[place]
            indices[count] = offset + place
            count += 1
    return count


_SIGNATURE = "int64(float32[::1], int64, float32, boolean, float32[::1], int64[::1], int64)"
scan = kept(lambda **options: njit(_SIGNATURE, **options)(_scan))
