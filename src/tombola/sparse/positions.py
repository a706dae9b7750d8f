"""Where the non-zeros of a sparse layer are: row by row and, for the gradient by the input, column by column.

A row is one output and one tap, in the order of ``weight.permute(0, 2, 3, 1)``; its columns are input channels,
ascending. All indices are 32-bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tombola.compiled import need
from tombola.sparse.geometry import Geometry

LIMIT = 2**31 - 1
BLOCK = 512  # columns whose pixels, of usual batches, stay in the cache while all rows use them


class Rows(NamedTuple):
    """What a product needs to know of :class:`Positions`, of one of the two ways.

    Attributes:
        pointers, entries, blocks: see there.
        order: where the values are; None: in the order of the entries.
    """

    pointers: Tensor
    entries: Tensor
    order: Tensor | None = None
    blocks: Tensor | None = None


class Positions(NamedTuple):
    """The structure of a layer, int32 tensors.

    Attributes:
        pointers: (outputs · taps + 1,): where each row begins among the non-zeros.
        columns: (nnz,): the input channel of each.
        entries: (nnz,): channel and tap in one number; the same tensor as ``columns`` where there is one tap.
        back_pointers, back_entries, order: the same for rows of one input channel and one tap, with outputs for
            columns; ``order`` says where each one's value is.
        blocks, back_blocks: where each run of :data:`BLOCK` columns of each row begins, and the end, if there are
            several of one tap; else None.
    """

    pointers: Tensor
    columns: Tensor
    entries: Tensor
    back_pointers: Tensor
    back_entries: Tensor
    order: Tensor
    blocks: Tensor | None = None
    back_blocks: Tensor | None = None

    @property
    def forth(self) -> Rows:
        """For the output, and for the gradient by the values."""
        return Rows(self.pointers, self.entries, None, self.blocks)

    @property
    def back(self) -> Rows:
        """For the gradient by the input."""
        return Rows(self.back_pointers, self.back_entries, self.order, self.back_blocks)


def positions(pointers: Tensor, columns: Tensor, geometry: Geometry) -> Positions:
    """The whole structure, of rows that are known to be right.

    Raises:
        ImportError: Numba is missing.
    """
    need("a sparse layer")
    from tombola.sparse.structure import transpose  # imports Numba: not before it is needed

    entries = columns
    if geometry.bits:
        tap = (_rows(pointers, columns, geometry) % geometry.taps).int()
        entries = (columns << geometry.bits) | tap
    back_pointers = np.empty(geometry.inputs * geometry.taps + 1, dtype=np.int32)
    back_entries, order = (np.empty(columns.numel(), dtype=np.int32) for _ in range(2))
    ranks = np.array(geometry.ranks(), dtype=np.int64)
    forth = pointers.cpu().numpy(), columns.cpu().numpy()
    transpose(*forth, ranks, geometry.bits, back_pointers, back_entries, order)
    above, below, places = (
        torch.from_numpy(array).to(columns.device) for array in (back_pointers, back_entries, order)
    )
    blocks = None if geometry.bits else _blocks(pointers, columns, geometry.inputs)
    back_blocks = None if geometry.bits else _blocks(above, below, geometry.outputs)
    return Positions(pointers, columns, entries, above, below, places, blocks, back_blocks)


def _blocks(pointers: Tensor, columns: Tensor, width: int) -> Tensor | None:
    from tombola.sparse.structure import split  # imports Numba: not before it is needed

    blocks, rows = -(-width // BLOCK), pointers.numel() - 1
    if blocks < 2 or 8 * rows * blocks > columns.numel():  # few non-zeros in each
        return None
    found = np.empty(rows * blocks + 1, dtype=np.int32)
    split(pointers.cpu().numpy(), columns.cpu().numpy(), BLOCK, blocks, found)
    return torch.from_numpy(found).to(columns.device)


def of_places(places: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Pointers and columns of places, ascending and distinct, in a weight whose rows and columns are as above.

    ``places``: (nnz,) int64, row · (inputs / groups) + channel within the group.
    """
    width = geometry.inputs // geometry.groups
    row = places // max(width, 1)  # a layer may be empty
    pointers = torch.zeros(geometry.outputs * geometry.taps + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(row, minlength=geometry.outputs * geometry.taps).cumsum(0)
    group = row // max(geometry.outputs // geometry.groups * geometry.taps, 1)
    return pointers, (places % max(width, 1) + group * width).int()


def to_places(pointers: Tensor, columns: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of :func:`of_places`."""
    width = geometry.inputs // geometry.groups
    return _rows(pointers, columns, geometry) * width + columns % max(width, 1)


def _rows(pointers: Tensor, columns: Tensor, geometry: Geometry) -> Tensor:
    """(nnz,) int64: the row of each."""
    rows = torch.arange(geometry.outputs * geometry.taps, device=pointers.device)
    return rows.repeat_interleave(pointers.diff(), output_size=columns.numel())


def random_places(count: int, total: int, generator: torch.Generator | None) -> Tensor:
    """``count`` distinct numbers below ``total``, ascending, all choices equally likely; memory follows ``count``."""
    if count > total // 2:  # choose those left out
        left_out = random_places(total - count, total, generator)
        chosen = torch.ones(total, dtype=torch.bool)
        chosen[left_out] = False
        return chosen.nonzero().squeeze(1)
    found = torch.empty(0, dtype=torch.int64)
    while found.numel() < count:
        more = torch.randint(total, (2 * (count - found.numel()) + 16,), generator=generator)
        found = torch.cat([found, more]).unique()
    surplus = torch.randperm(found.numel(), generator=generator)[count:]
    kept = torch.ones(found.numel(), dtype=torch.bool)
    kept[surplus] = False
    return found[kept]


def check(pointers: Tensor, columns: Tensor, geometry: Geometry) -> None:
    """Raise ValueError unless these are positions of such a layer: 32-bit, in range, in order, each once."""
    for name, tensor in (("pointers", pointers), ("columns", columns)):
        if tensor.dtype is not torch.int32 or tensor.ndim != 1:
            raise ValueError(f"{name}: must be one-dimensional int32, not {tensor.dtype} {tuple(tensor.shape)}")
    rows, width = geometry.outputs * geometry.taps, geometry.inputs // geometry.groups
    fits = pointers.numel() == rows + 1 and pointers[0] == 0 and pointers[-1] == columns.numel()
    if not fits or bool((pointers[1:] < pointers[:-1]).any()):
        raise ValueError(f"pointers: do not share {columns.numel()} non-zeros out among {rows} rows")
    row = _rows(pointers, columns, geometry)
    first = row // max(geometry.outputs // geometry.groups * geometry.taps, 1) * width
    if bool(((columns < first) | (columns >= first + width)).any()):
        raise ValueError(f"columns: a position is outside the {geometry.inputs} input channels of its output")
    if bool((to_places(pointers, columns, geometry).diff() <= 0).any()):
        raise ValueError("columns: a position occurs twice, or not in ascending order")
