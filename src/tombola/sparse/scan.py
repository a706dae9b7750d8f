"""The compiled search through a block of numbers for those that are large. Imports Numba: not before it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_STRIDE = 64  # numbers that are looked at together: most have nothing among them


def _scan(block: Any, offset: int, least: float, strict: bool, values: Any, indices: Any, count: int) -> int:
    """Add the numbers of ``block`` that reach ``least`` (``strict``: exceed it) to ``values``, their places to
    ``indices``, from ``count`` on; return the new count. ``least`` is 0 or more; both have room for a whole block."""
    for begin in range(0, block.size, _STRIDE):
        end = min(begin + _STRIDE, block.size)
        top = np.float32(-1.0)
        for place in range(begin, end):  # without branches, so that it becomes a few vector instructions
            top = max(top, block[place])
        if top < least:
            continue
        for place in range(begin, end):
            number = block[place]
            if number > least or (number == least and not strict):
                values[count] = number
                indices[count] = offset + place
                count += 1
    return count


try:
    scan = njit(cache=True, fastmath={"nnan", "nsz"})(_scan)
except RuntimeError:  # no folder to keep it in
    scan = njit(fastmath={"nnan", "nsz"})(_scan)
