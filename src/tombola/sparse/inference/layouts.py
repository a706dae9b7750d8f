"""Where the pixels of a plane come from: tables for the step that lays planes out anew, or pools."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.sparse.geometry import Pair
from tombola.sparse.inference.images import Image
from tombola.sparse.vectors import LANES

Places = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Picked:
    """An image whose pixels are made of those of ``source``; it has a place in memory as soon as somebody wants it.

    Attributes:
        source: another image.
        places: (taps, height, width): where in a plane of the source they begin, in floats; -1: nowhere.
        largest: whether the largest of the taps is taken, else their sum.
        counts: (height, width), what the sum is divided by, or None.
    """

    source: Image
    places: Places
    largest: bool = False
    counts: NDArray[np.float32] | None = None

    @property
    def channels(self) -> int:
        """Channels."""
        return self.source.channels

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.places.shape[1])

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return int(self.places.shape[2])

    @property
    def pixel(self) -> int:
        """Floats of a pixel."""
        return self.source.pixel

    @property
    def dimensions(self) -> int:
        """Of the tensor."""
        return self.source.dimensions

    def arranged(self, rows: Places, columns: Places) -> Picked:
        """The same with other pixels: those at ``rows``, ``columns``, arrays of a shape (height, width); -1: none."""
        there = (rows >= 0) & (columns >= 0)
        places = np.where(there, self.places[:, rows, columns], np.int32(-1))
        counts = None if self.counts is None else np.where(there, self.counts[rows, columns], np.float32(1))
        return Picked(self.source, places, self.largest, counts)

    @cached_property
    def is_in_runs(self) -> bool:
        """Whether pixels are whole vectors."""
        return self.pixel % LANES == 0

    def table(self) -> Places:
        """For each tap and each float of the result where it comes from; for each vector where pixels are such."""
        step = LANES if self.is_in_runs else 1
        within = np.arange(0, self.pixel, step, dtype=np.int32)
        flat = self.places.reshape(len(self.places), -1, 1)
        return _whole(np.where(flat < 0, np.int32(-1), flat + within).reshape(len(flat), -1), -1, LANES // step)

    def counts_table(self) -> NDArray[np.float32] | None:
        """The same of the counts, for each float."""
        if self.counts is None:
            return None
        return _whole(np.repeat(self.counts.reshape(1, -1), self.pixel, axis=1), 1, LANES)


def _whole(table: NDArray[Any], rest: int, lanes: int) -> NDArray[Any]:
    """Rows filled up to whole vectors."""
    missing = -table.shape[1] % lanes
    return np.ascontiguousarray(np.pad(table, ((0, 0), (0, missing)), constant_values=rest))


def as_it_is(x: Image) -> Picked:
    """The pixels of ``x`` themselves."""
    rows, columns = np.arange(x.height, dtype=np.int32), np.arange(x.width, dtype=np.int32)
    return Picked(x, (rows[:, None] * x.row + columns * x.pixel)[None], largest=True)


def pooled(x: Image, kernel: Pair, stride: Pair, padding: Pair, *, largest: bool, divisor: int = 0) -> Picked:
    """Windows of ``x``; ``divisor`` 0: the sum is divided by the pixels that are inside."""
    sizes = zip((x.height, x.width), kernel, stride, padding, strict=True)
    rows, columns = (_windows(*size) for size in sizes)  # (taps, outputs) each
    taps = rows[:, None, :, None] * x.row + columns[None, :, None, :] * x.pixel
    inside = (rows >= 0)[:, None, :, None] & (columns >= 0)[None, :, None, :]
    places = np.where(inside, taps, -1).reshape(-1, rows.shape[1], columns.shape[1]).astype(np.int32)
    counts = None if largest else np.full(places.shape[1:], divisor, np.float32) if divisor else (places >= 0).sum(0)
    return Picked(x, places, largest, None if counts is None else counts.astype(np.float32))


def _windows(size: int, taps: int, stride: int, padding: int) -> Places:
    """(taps, outputs): the coordinate that each tap of each output sees; -1: none."""
    outputs = (size + 2 * padding - taps) // stride + 1
    found = np.arange(taps)[:, None] + np.arange(outputs) * stride - padding
    return np.where((found >= 0) & (found < size), found, -1).astype(np.int32)


def sorted_parts(height: int, width: int, stride: Pair, padding: Pair) -> tuple[Places, Places]:
    """Of each pixel of a padded plane, sorted by the remainders of its coordinates, the row and the column, or -1.

    The parts, one for each pair of remainders, are below each other.
    """
    rows, columns = (
        _part(size, s, p) for size, s, p in zip((height, width), stride, padding, strict=True)
    )  # (remainders, pixels)
    shape = (len(rows), len(columns), rows.shape[1], columns.shape[1])
    y = np.broadcast_to(rows[:, None, :, None], shape).reshape(-1, shape[-1])
    x = np.broadcast_to(columns[None, :, None, :], shape).reshape(-1, shape[-1])
    return y, x


def _part(size: int, stride: int, padding: int) -> Places:
    count = -(-(size + 2 * padding) // stride)
    found = np.arange(stride)[:, None] + np.arange(count) * stride - padding
    return np.where((found >= 0) & (found < size), found, -1).astype(np.int32)
