"""Growing connections where the gradient of the loss is largest, without ever holding that gradient.

The gradient of a layer's weight is a product of its output gradients and its inputs. It is computed for a few outputs
at a time into one buffer, and what can be among the k largest is taken out of it: the outcome is exactly that of
looking at all of it. Nothing is estimated from a sample, which with heavy-tailed rows finds too few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tombola.masks import permutation
from tombola.sparse.geometry import Geometry
from tombola.sparse.positions import random_places

ENTRIES = 2**21  # numbers of one block, at most
FEWEST, BLOCKS = 2**17, 32  # of a layer that is not large: memory follows it, and more blocks stay in the cache
ROOM = 2**14  # numbers of a block that are looked at before what was found is cut to size
SHUFFLED = 2**22  # equal numbers that are put in random order; of more, some are drawn

Piece = tuple[Tensor, Tensor]  # input (C, H, W, N) and output gradient (O, H', W', N) of one backward pass


class Scores(Protocol):
    """What makes each weight of a layer worth having, 0 or more: rows of outputs, a few at a time, in order.

    Attributes:
        outputs: rows.
        width: scores of a row.
        groups: rows of two groups are never asked for together.
    """

    outputs: int
    width: int
    groups: int

    def rewind(self) -> None:
        """The next rows are the first again, with the same scores."""

    def fill(self, first: int, block: Tensor) -> None:
        """Write the scores of the rows from ``first`` on into ``block``, (rows, width) float32."""


class GradientScores:
    """|∂loss/∂weight|, of the dense weight.

    Args:
        geometry: the shape of the layer.
        pieces: of the backward passes; their gradients are added up.
        group: of processes, each with a part of the batch; None: this one has all of it.
    """

    def __init__(self, geometry: Geometry, pieces: list[Piece], group: Any = None) -> None:
        self.outputs, self.groups = geometry.outputs, geometry.groups
        self.width = geometry.weights // geometry.outputs
        self._geometry, self._pieces, self._group = geometry, pieces, group

    def rewind(self) -> None:
        """Nothing to do: any rows can be computed at any time."""

    def fill(self, first: int, block: Tensor) -> None:
        """See :class:`Scores`."""
        g, last = self._geometry, first + block.shape[0]
        channels = g.inputs // g.groups
        begin = first // (g.outputs // g.groups) * channels
        block.zero_()
        for x, gradient in self._pieces:
            mine, rows = x[begin : begin + channels], gradient[first:last]
            if not (mine.numel() and rows.numel()):
                continue
            if g.is_plain:
                block.addmm_(rows.reshape(len(rows), -1), mine.reshape(channels, -1).T)
                continue
            # only the shape of the weight matters to its gradient
            weight = x.new_empty(1).expand(len(rows), channels, *g.kernel)
            images = [tensor.movedim(3, 0).contiguous() for tensor in (rows, mine)]
            options = [list(pair) for pair in (g.stride, g.padding, g.dilation)]
            found = torch.ops.aten.convolution_backward(
                *images, weight, None, *options, False, [0, 0], 1, [False, True, False]
            )[1]
            block.add_(found.reshape(block.shape))
        if self._group is not None:
            torch.distributed.all_reduce(block, group=self._group)
        block.abs_()


class RandomScores:
    """Numbers from a (CPU) generator, the same as one ``torch.rand`` of all of them gives."""

    def __init__(self, geometry: Geometry, generator: torch.Generator) -> None:
        self.outputs, self.groups = geometry.outputs, 1
        self.width = geometry.weights // geometry.outputs
        self._generator, self._start = generator, generator.get_state()

    def rewind(self) -> None:
        """Draw the same numbers again, from a generator of its own: the other one goes on."""
        self._generator = torch.Generator()
        self._generator.set_state(self._start)

    def fill(self, first: int, block: Tensor) -> None:
        """See :class:`Scores`."""
        torch.rand(block.shape, generator=self._generator, out=block)


@torch.no_grad()
def best(
    scores: Scores, number: int, *, taken: Tensor, generator: torch.Generator, entries: int | None = None
) -> Tensor:
    """The places of the ``number`` largest scores, ascending; of equal ones some that ``generator`` draws.

    It is what ``largest`` finds among all scores at once, with the same draws (unless more than 2²² scores are equal to
    the smallest that is taken).

    Args:
        scores: finite.
        number: how many.
        taken: (n,) int64, ascending: places that are no candidates.
        generator: on the CPU.
        entries: numbers of a block, which is at least one row; None: a 32nd of all, from 2¹⁷ to 2²¹.

    Raises:
        FloatingPointError: a score is infinite.
    """
    if number == 0:
        return taken.new_empty(0)
    if entries is None:
        entries = min(max(scores.outputs * scores.width // BLOCKS, FEWEST), ENTRIES)
    found = _Largest(number)
    for offset, block in _blocks(scores, taken, entries):
        found.add(block, offset)
    values, places = found.values, found.places
    least = float(values.min()) if number >= len(values) else float(values.kthvalue(len(values) - number + 1).values)
    if not math.isfinite(float(values.max())):
        raise FloatingPointError("the gradient of a missing connection is not finite; nothing was changed")
    sure = places[values > least]
    missing = number - len(sure)
    if found.cut != least:
        level = places[values == least]
        return torch.cat([sure, level[permutation(level, generator)][:missing]]).sort().values
    # some that are equal to the last one were let go: look for all of them
    equal = 0
    for _, block in _again(scores, taken, entries):
        equal += int((block == least).sum())
    shuffled = torch.randperm(equal, generator=generator)[:missing] if equal <= SHUFFLED else None
    ranks = random_places(missing, equal, generator) if shuffled is None else shuffled.sort().values
    chosen, seen = [sure], 0
    for offset, block in _again(scores, taken, entries):
        level = (block == least).nonzero().squeeze(1)
        first, last = torch.searchsorted(ranks, torch.tensor([seen, seen + len(level)])).tolist()
        chosen.append(level[ranks[first:last] - seen] + offset)
        seen += len(level)
    return torch.cat(chosen).sort().values


class _Largest:
    """The largest of numbers that come block by block, with those equal to the smallest of them.

    Attributes:
        cut: a number; some of those equal to it were let go, because there were too many. −1: none were.
    """

    def __init__(self, number: int) -> None:
        self._number, self._count, self._least, self.cut = number, 0, 0.0, -1.0
        self._full = 2 * number + 1024
        self._values = torch.empty(self._full + ROOM)
        self._places = torch.empty(self._full + ROOM, dtype=torch.int64)

    @property
    def values(self) -> Tensor:
        return self._values[: self._count]

    @property
    def places(self) -> Tensor:
        return self._places[: self._count]

    def add(self, block: Tensor, offset: int) -> None:
        """Take what can still be among the largest."""
        from tombola.sparse.scan import scan  # imports Numba: not before it is needed

        arrays = self._values.numpy(), self._places.numpy()
        for begin in range(0, len(block), ROOM):
            least, strict = np.float32(self._least), self._least == self.cut
            part = block[begin : begin + ROOM].numpy()
            self._count = scan(part, offset + begin, least, strict, *arrays, self._count)
            if self._count > self._full:
                self._cut()

    def _cut(self) -> None:
        values, places = self.values, self.places
        self._least = float(values.kthvalue(len(values) - self._number + 1).values)
        stay = values >= self._least
        if int(stay.sum()) > self._number + self._number // 2:  # too many equal ones: without them there is room
            self.cut = self._least
            more = values > self._least
            level = (values == self._least).nonzero().squeeze(1)
            more[level[: self._number - int(more.sum())]] = True
            stay = more
        values, places = values[stay], places[stay]
        self._count = len(values)
        self._values[: self._count] = values
        self._places[: self._count] = places


def _rows(scores: Scores, entries: int) -> int:
    return max(1, min(entries // max(scores.width, 1), scores.outputs // scores.groups))


def _blocks(scores: Scores, taken: Tensor, entries: int) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, scores) of blocks of rows one after the other, in one buffer; −1 where it is taken."""
    rows = _rows(scores, entries)
    in_group = scores.outputs // scores.groups
    starts = [
        (g * in_group + r, min(rows, in_group - r)) for g in range(scores.groups) for r in range(0, in_group, rows)
    ]
    ends = torch.tensor([(first + count) * scores.width for first, count in starts])
    borders = [0, *torch.searchsorted(taken, ends).tolist()]
    buffer = torch.empty(rows, scores.width)
    for index, (first, count) in enumerate(starts):
        block, offset = buffer[:count], first * scores.width
        scores.fill(first, block)
        flat = block.view(-1)
        flat[taken[borders[index] : borders[index + 1]] - offset] = -1.0
        yield offset, flat


def _again(scores: Scores, taken: Tensor, entries: int) -> Iterator[tuple[int, Tensor]]:
    scores.rewind()
    return _blocks(scores, taken, entries)
