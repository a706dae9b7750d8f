"""The compiled loops over the positions of a layer: the same column by column, and where blocks of columns begin.

Imports Numba: not before it is needed.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from tombola.compiled import kept

_ROWS = "int32[::1]"


def _transpose(
    pointers: Any, columns: Any, ranks: Any, bits: int, back_pointers: Any, back_entries: Any, order: Any
) -> None:
    """Fill the last three arrays: the structure column by column, by counting."""
    taps = ranks.size
    back_pointers[:] = 0
    for row in range(pointers.size - 1):
        for place in range(pointers[row], pointers[row + 1]):
            back_pointers[columns[place] * taps + ranks[row % taps] + 1] += 1
    for row in range(back_pointers.size - 1):
        back_pointers[row + 1] += back_pointers[row]
    nexts = back_pointers.copy()
    for row in range(pointers.size - 1):
        rank = ranks[row % taps]
        for place in range(pointers[row], pointers[row + 1]):
            back_row = columns[place] * taps + rank
            back_entries[nexts[back_row]] = ((row // taps) << bits) | rank
            order[nexts[back_row]] = place
            nexts[back_row] += 1


_signature = f"void({_ROWS}, {_ROWS}, int64[::1], int64, {_ROWS}, {_ROWS}, {_ROWS})"
transpose = kept(lambda **options: njit(_signature, **options)(_transpose))


def _split(pointers: Any, columns: Any, size: int, blocks: int, found: Any) -> None:
    """Fill ``found``: where each block of ``size`` columns of each row begins, and where the last one ends."""
    for row in range(pointers.size - 1):
        place = pointers[row]
        for block in range(blocks):
            while place < pointers[row + 1] and columns[place] < block * size:
                place += 1
            found[row * blocks + block] = place
    found[found.size - 1] = pointers[pointers.size - 1]


split = kept(lambda **options: njit(f"void({_ROWS}, {_ROWS}, int64, int64, {_ROWS})", **options)(_split))
