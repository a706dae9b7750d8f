"""What flows through a program: stacks of planes somewhere in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNED = 16  # floats of a cache line
SLACK = 16  # floats that a vector may read past the end of a stack, which mean nothing


@dataclass(eq=False)
class Buffer:
    """A run of floats in use from the step that writes it to the last one that reads it."""

    floats: int
    first: int
    last: int
    offset: int = -1  # in the program's memory


@dataclass(frozen=True)
class Image:
    """Channels of ``height`` rows of ``width`` pixels of ``pixel`` floats; ``origin``, ``plane`` and ``row`` in floats.

    ``dimensions`` are those of the tensor that it stands for: 2 (N, C), 3 (N, C, W) or 4 (N, C, H, W).
    """

    buffer: Buffer
    channels: int
    height: int
    width: int
    pixel: int
    plane: int
    row: int
    dimensions: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's tensor."""
        return (self.channels, *(self.height, self.width)[4 - self.dimensions :])

    @property
    def is_compact(self) -> bool:
        """Whether planes and rows follow each other without a gap."""
        return self.row == self.width * self.pixel and self.plane == self.height * self.row

    @property
    def run(self) -> int:
        """Floats from the first to the last of a plane, those between its rows included."""
        return (self.height - 1) * self.row + self.width * self.pixel


def place(buffers: Sequence[Buffer]) -> int:
    """Give each buffer an offset such that none that are in use at the same step overlap; returns the floats of all."""
    done: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda buffer: -buffer.floats):
        taken = sorted(
            (b.offset, b.offset + _rounded(b)) for b in done if b.first <= buffer.last and buffer.first <= b.last
        )
        offset = 0
        for begin, end in taken:
            if offset + _rounded(buffer) <= begin:
                break
            offset = max(offset, end)
        buffer.offset = offset
        done.append(buffer)
    return max((buffer.offset + _rounded(buffer) for buffer in done), default=0)


def _rounded(buffer: Buffer) -> int:
    return -(-(buffer.floats + SLACK) // ALIGNED) * ALIGNED
