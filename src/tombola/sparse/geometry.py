"""Where the taps of a convolution meet its input: the pieces that a kernel walks, and each one's range of taps.

Along each axis a coordinate of the result sees a run of taps; the others would read outside and are left out, so no
padding is ever stored. The gradient by the input is a product of the same kind with the roles exchanged: of an input
coordinate only those taps are of use that agree with it modulo the stride, so the taps are ranked by their remainder,
and again each coordinate sees a run of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
_Table = NDArray[np.int64]


@dataclass(frozen=True)
class Geometry:
    """The shape of a two-dimensional convolution. ``Geometry(inputs, outputs)`` is a fully connected layer."""

    inputs: int
    outputs: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        numbers = (self.inputs, self.outputs, self.kernel, self.stride, self.padding, self.dilation, self.groups)
        object.__setattr__(self, "_hash", hash(numbers))  # plans are looked up by it at each call

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    @property
    def weights(self) -> int:
        """Weights of the layer when dense."""
        return self.outputs * self.taps * self.inputs // self.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_plain(self) -> bool:
        """Whether each pixel of the output sees the same pixel of the input alone: a product of matrices."""
        return self.taps == 1 and self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def bits(self) -> int:
        """Low bits of an entry that tell its tap."""
        return (self.taps - 1).bit_length()

    def result_size(self, height: int, width: int) -> Pair:
        """Height and width of the output for an input of these."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return rows, columns

    def result_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(N, O, …), as many dimensions as the input has, (N, C), (N, C, W) or (N, C, H, W).

        Raises:
            ValueError: the image is too small for the kernel.
        """
        height, width = (1, 1, *shape[2:])[-2:]
        sizes = self.result_size(height, width)
        if min(sizes) < 1:
            raise ValueError(f"an image of {height} × {width} is too small for a kernel of {self.kernel}")
        return (shape[0], self.outputs, *sizes[4 - len(shape) :])

    def ranks(self) -> list[int]:
        """Of each tap its place among the taps when the gradient by the input is taken."""
        rows, columns = (_ranked(k, s, d) for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))
        return [rows.index(y) * len(columns) + columns.index(x) for y in range(len(rows)) for x in range(len(columns))]

    def flat_plan(self, height: int, width: int, batch: int, *, piece: int, lanes: int) -> Plan | None:
        """A plan with fewer vectors for images so small that rows of pixels do not fill one; None if it has not.

        It is for an input that is padded already, and takes all rows of pixels as one run of whole vectors: the result
        has rows as long as the padded input's, of which the last pixels mean nothing, and is that of a stride of 1. At
        its end the input needs ``lanes`` numbers more, which mean nothing either.
        """
        rows, columns = (n + 2 * p for n, p in zip((height, width), self.padding, strict=True))
        lost = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        length = ((rows - lost[0] - 1) * columns + columns - lost[1]) * batch
        if not length:  # an empty batch
            return None
        usual = _plan(self, height, width, batch, False, length)
        vectors = len(usual.ys) * int((-(-usual.xs[:, 1] // lanes)).sum())
        if 5 * -(-length // lanes) > 4 * vectors:  # it takes two copies as well
            return None
        whole = -(-length // lanes) * lanes
        ys = [(0, 0, 0, self.kernel[0])]
        xs = [(done, min(piece, whole - done), done, 0, self.kernel[1]) for done in range(0, whole, piece)]
        y_taps, x_taps = (range(0, (k * d), d) for k, d in zip(self.kernel, self.dilation, strict=True))
        shifts = [(y * columns + x) * batch for y in y_taps for x in x_taps]
        result_plane = max(whole, (rows - lost[0]) * columns * batch)
        return tables(ys, xs, shifts, rows * columns * batch, result_plane)

    def plan(self, height: int, width: int, batch: int, *, transposed: bool, piece: int) -> Plan:
        """How to compute the output, or ``transposed`` the gradient by the input, for an input of this size.

        Args:
            height: of the input, in pixels.
            width: of the input, in pixels.
            batch: floats of one pixel.
            transposed: for the gradient by the input.
            piece: the longest piece, in floats.
        """
        return _plan(self, height, width, batch, transposed, piece)

    def steps_plan(self, steps: int, batch: int, *, transposed: bool, piece: int) -> Plan:
        """The same for a fully connected layer and ``steps`` inputs one after the other: (steps, channels, batch).

        A recurrent layer has its steps so, because then what it computes at one of them is one run of memory.
        """
        return _steps_plan(self, steps, batch, transposed, piece)


@dataclass(frozen=True)
class Plan:
    """Tables of 64-bit integers; offsets and lengths are in floats.

    Attributes:
        ys: for each row of pixels of the result: offset in the result, in the source, first row of taps, rows.
        xs: for each piece of a row of pixels: offset in the result, length, offset in the source, first tap of the row
            of taps, taps.
        shifts: of each tap, by its rank: how far it shifts the source.
        source_plane, result_plane: floats of one channel.
        addresses: of the three tables.
    """

    ys: _Table
    xs: _Table
    shifts: _Table
    source_plane: int
    result_plane: int
    addresses: tuple[int, int, int]


def _ranked(taps: int, stride: int, dilation: int) -> list[int]:
    return sorted(range(taps), key=lambda tap: (tap * dilation % stride, tap))


@lru_cache(maxsize=512)
def _plan(geometry: Geometry, height: int, width: int, batch: int, transposed: bool, piece: int) -> Plan:
    if geometry.is_plain:
        height, width, batch = 1, 1, height * width * batch  # a product of matrices
    outer = geometry.result_size(height, width)
    source, result = (outer, (height, width)) if transposed else ((height, width), outer)
    axes = zip((height, width), geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    (y_runs, y_shifts), (x_runs, x_shifts) = (
        (_transposed if transposed else _forward)(n, k, s, p, d) for n, k, s, p, d in axes
    )
    ys = [(y * result[1] * batch, base * source[1] * batch, first, count) for y, base, first, count in y_runs]
    xs = []
    for x, base, first, count, pixels in _merged(x_runs):
        for done in range(0, pixels * batch, piece):
            length = min(piece, pixels * batch - done)
            xs.append((x * batch + done, length, base * batch + done, first, count))
    shifts = [(y * source[1] + x) * batch for y in y_shifts for x in x_shifts]
    return tables(ys, xs, shifts, source[0] * source[1] * batch, result[0] * result[1] * batch)


@lru_cache(maxsize=512)
def _steps_plan(geometry: Geometry, steps: int, batch: int, transposed: bool, piece: int) -> Plan:
    sizes = (geometry.outputs, geometry.inputs) if transposed else (geometry.inputs, geometry.outputs)
    source, result = (size * batch for size in sizes)
    ys = [(step * result, step * source, 0, 1) for step in range(steps)]
    xs = [(done, min(piece, batch - done), done, 0, 1) for done in range(0, batch, piece)]
    return tables(ys, xs, [0], batch, batch)


def tables(
    ys: Sequence[Sequence[int]], xs: Sequence[Sequence[int]], shifts: list[int], source_plane: int, result_plane: int
) -> Plan:
    """A plan of rows of these tables."""
    y_table, x_table, shift_table = (np.array(table, dtype=np.int64) for table in (ys, xs, shifts))
    addresses = (y_table.ctypes.data, x_table.ctypes.data, shift_table.ctypes.data)
    return Plan(y_table, x_table, shift_table, source_plane, result_plane, addresses)


_Run = tuple[int, int, int, int]  # coordinate of the result, source coordinate at shift 0, first rank, ranks


def _forward(size: int, taps: int, stride: int, padding: int, dilation: int) -> tuple[list[_Run], list[int]]:
    shifts = [tap * dilation for tap in range(taps)]
    count = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    runs = []
    for place in range(count):
        base = place * stride - padding
        inside = [tap for tap, shift in enumerate(shifts) if 0 <= base + shift < size]
        runs.append((place, base, inside[0] if inside else 0, len(inside)))
    return runs, shifts


def _transposed(size: int, taps: int, stride: int, padding: int, dilation: int) -> tuple[list[_Run], list[int]]:
    order = _ranked(taps, stride, dilation)
    shifts = [-(tap * dilation // stride) for tap in order]
    count = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    runs = []
    for place in range(size):
        base, phase = divmod(place + padding, stride)
        matching = [rank for rank, tap in enumerate(order) if tap * dilation % stride == phase]
        inside = [rank for rank in matching if 0 <= base + shifts[rank] < count]
        runs.append((place, base, inside[0] if inside else 0, len(inside)))
    return runs, shifts


def _merged(runs: list[_Run]) -> list[tuple[int, int, int, int, int]]:
    """Neighbours that see the same taps of neighbouring pixels, as one; with the number of pixels."""
    merged: list[tuple[int, int, int, int, int]] = []
    for place, base, first, count in runs:
        if merged:
            x, start, *taps, pixels = merged[-1]
            if taps == [first, count] and base == start + pixels:
                merged[-1] = (x, start, first, count, pixels + 1)
                continue
        merged.append((place, base, first, count, 1))
    return merged
