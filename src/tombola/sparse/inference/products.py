"""A sparse layer as a step of a program: which pieces its kernel walks, and how far away each non-zero's plane is.

For one size of images that distance is a number, so that the kernel need not work it out. Where a pixel is less than a
vector, the rows of a padded image are taken as one run, whose pixels between the rows mean nothing. A stride sorts the
padded pixels by their remainders first, so that those that a tap sees are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tombola.sparse.geometry import Geometry, Plan, tables
from tombola.sparse.kernels import PIECE, TILES
from tombola.sparse.layer import SparseLayer
from tombola.sparse.positions import LIMIT
from tombola.sparse.vectors import LANES

FEW = 2  # floats of a row of the result that are each a sum of its own, along the non-zeros
_PASS = 2  # what a pass over the non-zeros of a row costs beside its vectors, in vectors


@dataclass(frozen=True)
class Run:
    """A product over padded images as one run.

    Attributes:
        row: floats of a row of the result.
        shifts: of each tap, how far it shifts the source.
        plan: tables of the kernel.
    """

    row: int
    shifts: list[int]
    plan: Plan


def padded(geometry: Geometry, height: int, width: int, pixel: int) -> Run:
    """How to compute the layer for images of this size, padded and sorted."""
    (step_y, step_x), (pad_y, pad_x) = geometry.stride, geometry.padding
    tall, wide = -(-(height + 2 * pad_y) // step_y), -(-(width + 2 * pad_x) // step_x)
    part = tall * wide * pixel
    y_taps, x_taps = (range(0, k * d, d) for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
    shifts = [
        (y % step_y * step_x + x % step_x) * part + (y // step_y * wide + x // step_x) * pixel
        for y in y_taps
        for x in x_taps
    ]
    rows, columns = geometry.result_size(height, width)
    plan = straight(((rows - 1) * wide + columns) * pixel, step_y * step_x * part, rows * wide * pixel)
    return Run(wide * pixel, shifts, plan)


def straight(length: int, source_plane: int, result_plane: int) -> Plan:
    """All of each plane's first ``length`` floats, in whole vectors unless few, with all the non-zeros of each row."""
    whole = length if length <= FEW else -(-length // LANES) * LANES
    xs = [(done, min(PIECE, whole - done), done, 0, 1) for done in range(0, whole, PIECE)]
    return tables([(0, 0, 0, 1)], xs, [], source_plane, max(whole, result_plane))


def cost(plan: Plan, taps: int) -> float:
    """What a plan costs for each non-zero, in vectors."""
    total = 0.0
    for *_, y_taps in plan.ys.tolist():
        for _, length, _, _, x_taps in plan.xs.tolist():
            total += y_taps * x_taps / taps * _passes(length)
    return total


def _passes(length: int) -> int:
    vectors, passes = -(-length // LANES), 0
    left = vectors
    for count in TILES:
        passes += left // count
        left %= count
    return vectors + _PASS * passes


def offsets(layer: SparseLayer, shifts: list[int], source_plane: int) -> Tensor:
    """(nnz,) int32: from a piece's beginning in the first plane to that in each non-zero's, in floats.

    Raises:
        OverflowError: it does not fit in 32 bits.
    """
    bits, entries = layer.geometry.bits, layer.positions.entries
    if layer.geometry.inputs * source_plane > LIMIT:
        raise OverflowError
    channels = entries >> bits
    shift = torch.from_numpy(np.array(shifts, dtype=np.int32))[entries & ((1 << bits) - 1)] if bits else shifts[0]
    return channels * source_plane + shift
