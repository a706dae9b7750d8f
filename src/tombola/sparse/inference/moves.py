"""Compiled steps between products: means, sums of two stacks, and the way in and out.

All take planes of rows of pixels, of ``pixel`` floats each; plane and row say how far it is to the next one.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

FIELDS = (
    *("counter", "chunks", "channels", "each", "height", "width", "pixel"),
    *("source", "source_plane", "source_row"),
    *("other", "other_plane", "other_row", "result", "result_plane", "result_row"),
    *("scale", "shift", "floor", "of_image", "of_pixel"),
)
field: Any = namedtuple("_Field", FIELDS)(*range(len(FIELDS)))  # a plain tuple's names would not be constants
_SIZE = len(FIELDS)


@cache
def kernel(name: str) -> Any:
    """A compiled step, a C function of a job's address: ``mean``, ``join``, ``enter``, ``leave``."""
    from tombola.sparse import threads

    return threads.compiled(_LOOPS[name](), name)


def _tools() -> Any:
    from numba import carray  # type: ignore[attr-defined]

    from tombola.sparse import threads  # the loops close over the module: an intrinsic would be another in each process

    return carray, threads


def _mean() -> Any:
    carray, threads = _tools()

    def mean(job_at: Any) -> None:
        """The mean of each channel's pixels."""
        job: Any = carray(job_at, (_SIZE,), np.int64)
        height, width, pixel = job[field.height], job[field.width], job[field.pixel]
        source_size = job[field.channels] * job[field.source_plane]
        source: Any = carray(threads.pointer(job[field.source]), (source_size,), np.float32)
        result_size = job[field.channels] * pixel
        result: Any = carray(threads.pointer(job[field.result]), (result_size,), np.float32)
        while True:
            chunk = threads.next_chunk(job_at)
            if chunk >= job[field.chunks]:
                break
            first = chunk * job[field.each]
            for channel in range(first, min(job[field.channels], first + job[field.each])):
                to = channel * pixel
                for place in range(pixel):
                    result[to + place] = np.float32(0)
                for y in range(height):
                    for x in range(width):
                        at = channel * job[field.source_plane] + y * job[field.source_row] + x * pixel
                        for place in range(pixel):
                            result[to + place] += source[at + place]
                for place in range(pixel):
                    result[to + place] /= np.float32(height * width)

    return mean


def _join() -> Any:
    carray, threads = _tools()

    def join(job_at: Any) -> None:
        """scale · source + shift + other, at least 0 where there is a floor; what has the address 0 is left out."""
        job: Any = carray(job_at, (_SIZE,), np.int64)
        channels, run = job[field.channels], job[field.width] * job[field.pixel]
        scales: Any = carray(threads.pointer(job[field.scale]), (channels,), np.float32)
        shifts: Any = carray(threads.pointer(job[field.shift]), (channels,), np.float32)
        source: Any = carray(threads.pointer(job[field.source]), (channels * job[field.source_plane],), np.float32)
        other: Any = carray(threads.pointer(job[field.other]), (channels * job[field.other_plane],), np.float32)
        result: Any = carray(threads.pointer(job[field.result]), (channels * job[field.result_plane],), np.float32)
        floor = np.float32(0) if job[field.floor] else np.float32(-np.inf)
        while True:
            chunk = threads.next_chunk(job_at)
            if chunk >= job[field.chunks]:
                break
            first = chunk * job[field.each]
            for channel in range(first, min(channels, first + job[field.each])):
                scale, shift = np.float32(1), np.float32(0)
                if job[field.scale]:
                    scale, shift = scales[channel], shifts[channel]
                for y in range(job[field.height]):
                    at = channel * job[field.source_plane] + y * job[field.source_row]
                    to = channel * job[field.result_plane] + y * job[field.result_row]
                    if job[field.other]:
                        by = channel * job[field.other_plane] + y * job[field.other_row]
                        for place in range(run):
                            value = source[at + place] * scale + shift + other[by + place]
                            result[to + place] = floor if value < floor else value
                    else:
                        for place in range(run):
                            value = source[at + place] * scale + shift
                            result[to + place] = floor if value < floor else value

    return join


def _turn(inwards: bool) -> Any:
    carray, threads = _tools()

    def turn(job_at: Any) -> None:
        """From a tensor of any strides to planes whose pixels are the images, or back."""
        job: Any = carray(job_at, (_SIZE,), np.int64)
        source: Any = carray(threads.pointer(job[field.source]), (1,), np.float32)
        result: Any = carray(threads.pointer(job[field.result]), (1,), np.float32)
        while True:
            chunk = threads.next_chunk(job_at)
            if chunk >= job[field.chunks]:
                break
            first = chunk * job[field.each]
            for channel in range(first, min(job[field.channels], first + job[field.each])):
                for y in range(job[field.height]):
                    at = channel * job[field.source_plane] + y * job[field.source_row]
                    to = channel * job[field.result_plane] + y * job[field.result_row]
                    for image in range(job[field.pixel]):
                        if inwards:
                            for x in range(job[field.width]):
                                value = source[at + image * job[field.of_image] + x * job[field.of_pixel]]
                                result[to + x * job[field.pixel] + image] = value
                        else:
                            for x in range(job[field.width]):
                                value = source[at + x * job[field.pixel] + image]
                                result[to + image * job[field.of_image] + x * job[field.of_pixel]] = value

    return turn


_LOOPS: dict[str, Any] = {
    "mean": _mean,
    "join": _join,
    "enter": lambda: _turn(True),
    "leave": lambda: _turn(False),
}
