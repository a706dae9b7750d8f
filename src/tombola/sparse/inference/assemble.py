"""The steps of a program, put together one after the other, for images of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tombola.sparse.execution import product_job
from tombola.sparse.geometry import Geometry, Plan
from tombola.sparse.inference.images import SLACK, Buffer, Image
from tombola.sparse.inference.layouts import Picked, as_it_is, sorted_parts
from tombola.sparse.inference.products import FEW, cost, offsets, padded, straight
from tombola.sparse.kernels import PIECE
from tombola.sparse.layer import SparseLayer
from tombola.sparse.linear import SparseLinear
from tombola.sparse.vectors import LANES

_CHUNKS = 8  # of a step, at most
_EACH = 16  # what a channel costs beside its floats, in floats
_SMALL = 4096  # floats that are not worth another chunk


class Unable(Exception):
    """The network has a step that a program cannot do."""


@dataclass(frozen=True)
class Step:
    """A kernel's name and the fields of its job; an image stands for its address, known when it has a place."""

    kernel: str
    values: dict[str, Any]


class Assembly:
    """A program in the making.

    Args:
        pixel: images that are computed at a time: the floats of a pixel.

    Attributes:
        steps: in their order; the first takes the input, the last gives the output.
        buffers: what they read and write.
        kept: whatever they have addresses of.
    """

    def __init__(self, pixel: int) -> None:
        self.pixel = pixel
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.kept: list[Any] = []

    # ---- steps

    def enter(self, channels: int, height: int, width: int, dimensions: int) -> Image:
        """The input; its address and strides are filled in at each call."""
        image = self._image(channels, height, width, dimensions)
        self._step("enter", (), image, channels=channels, height=height, width=width)
        return image

    def leave(self, x: Image) -> None:
        """The output, likewise."""
        self._step("leave", (x,))

    def product(self, layer: SparseLayer, x: Image | Picked, added: Image | None = None) -> Image:
        """A sparse layer, and what is added to its output.

        Raises:
            Unable: it does not fit, or is too large for distances of 32 bits.
        """
        geometry = layer.geometry
        dimensions = 2 if isinstance(layer, SparseLinear) else len(layer.shape)
        rows, columns = geometry.result_size(x.height, x.width)
        if x.channels != geometry.inputs or x.dimensions != dimensions or rows < 1 or columns < 1:
            raise Unable
        source, plan, shifts, row = self._planned(geometry, x)
        result = self._image(geometry.outputs, rows, columns, dimensions, plane=plan.result_plane, row=row)
        source.buffer.last = len(self.steps)
        at_once = not plan.shifts.size  # all non-zeros of a row, whatever their tap
        pointers = layer.pointers[:: geometry.taps].contiguous() if at_once else layer.pointers
        try:
            entries = offsets(layer, shifts, plan.source_plane)
        except OverflowError as error:
            raise Unable from error
        self.kept += [plan, pointers, entries, layer.values, layer.bias]
        taps = (1, 1) if at_once else geometry.kernel
        values: dict[str, Any] = product_job(
            plan, geometry.outputs, relu=layer.relu, kernel=taps, threads=torch.get_num_threads()
        )
        values |= {"values": layer.values.data_ptr(), "entries": entries.data_ptr(), "pointers": pointers.data_ptr()}
        values["bias"] = 0 if layer.bias is None else layer.bias.data_ptr()
        kernel = "dot" if at_once and int(plan.xs[-1, :2].sum()) <= FEW else "product_at"
        values |= {"source": source, "result": result}
        if added is None:
            self.steps.append(Step(kernel, values))
            return result
        if kernel == "product_at" and result.is_compact and added.is_compact and added.shape == result.shape:
            added.buffer.last = len(self.steps)
            self.steps.append(Step(kernel, values | {"added": added}))
            return result
        self.steps.append(Step(kernel, values | {"floor": 0}))
        return self.sum(result, added, floor=layer.relu)

    def affine(self, x: Image, scale: Tensor, shift: Tensor, *, floor: bool) -> Image:
        """scale · x + shift, (C,) each, for each channel; at least 0 if there is a ``floor``."""
        self.kept += [scale, shift]
        return self._join((x,), scale=scale.data_ptr(), shift=shift.data_ptr(), floor=int(floor))

    def relu(self, x: Image) -> Image:
        """At least 0."""
        return self._join((x,), floor=1)

    def sum(self, x: Image, y: Image, *, floor: bool) -> Image:
        """x + y, at least 0 if there is a ``floor``.

        Raises:
            Unable: they are of different sizes.
        """
        if (x.shape, x.height) != (y.shape, y.height):
            raise Unable
        return self._join((x, y), floor=int(floor))

    def mean(self, x: Image, *, keep: bool) -> Image:
        """Of each channel's pixels; ``keep``: as an image of one pixel."""
        result = self._image(x.channels, 1, 1, x.dimensions if keep else 2)
        self._step("mean", (x,), result)
        return result

    def flat(self, x: Image) -> Image:
        """Each pixel of each channel as a channel of its own."""
        x = self.compact(x)
        size = x.channels * x.height * x.width
        return Image(x.buffer, size, 1, 1, self.pixel, self.pixel, self.pixel, 2)

    def compact(self, x: Image | Picked) -> Image:
        """The same in memory without gaps."""
        if isinstance(x, Image):
            return x if x.is_compact else self._laid_out(as_it_is(x))
        return self._laid_out(x)

    # ---- how

    def _planned(self, geometry: Geometry, x: Image | Picked) -> tuple[Image, Plan, list[int], int]:
        """The source, the plan, the taps' shifts, and the floats of a row of the result."""
        if geometry.is_plain:
            floats = x.height * x.width * x.pixel
            if isinstance(x, Picked) or -(-x.run // LANES) > -(-floats // LANES):  # fewer vectors without the gaps
                x = self.compact(x)
            return x, straight(x.run, x.plane, x.height * x.row), [0], x.row
        pieces = geometry.plan(x.height, x.width, x.pixel, transposed=False, piece=PIECE)
        run = padded(geometry, x.height, x.width, x.pixel)
        if cost(run.plan, 1) >= 0.8 * cost(pieces, geometry.taps):
            row = geometry.result_size(x.height, x.width)[1] * x.pixel
            return self.compact(x), pieces, pieces.shifts.tolist(), row
        picked = as_it_is(x) if isinstance(x, Image) else x
        source = self._laid_out(picked.arranged(*sorted_parts(x.height, x.width, geometry.stride, geometry.padding)))
        return source, run.plan, run.shifts, run.row

    def _laid_out(self, x: Picked) -> Image:
        result = self._image(x.channels, x.height, x.width, x.dimensions)
        table, counts = x.table(), x.counts_table()
        self.kept += [table, counts]
        x.source.buffer.last = len(self.steps)
        values = self._shared_out(x.channels, result.plane * len(x.places)) | {
            "source": x.source,
            "source_plane": x.source.plane,
            "result": result,
            "result_plane": result.plane,
            "floats": result.plane,
            "places": table.ctypes.data,
            "taps": len(x.places),
            "largest": int(x.largest),
            "counts": 0 if counts is None else counts.ctypes.data,
        }
        self.steps.append(Step("runs" if x.is_in_runs else "gather", values))
        return result

    def _join(self, sources: Sequence[Image], **values: int) -> Image:
        x = sources[0]
        result = self._image(x.channels, x.height, x.width, x.dimensions)
        self._step("join", sources, result, **values)
        return result

    def _image(self, channels: int, height: int, width: int, dimensions: int, *, plane: int = 0, row: int = 0) -> Image:
        row = row or width * self.pixel
        plane = plane or height * row
        buffer = Buffer(channels * plane + SLACK, len(self.steps), len(self.steps))
        self.buffers.append(buffer)
        return Image(buffer, channels, height, width, self.pixel, plane, row, dimensions)

    def _step(self, kernel: str, sources: Sequence[Image], result: Image | None = None, **values: int) -> None:
        """A step of :mod:`~tombola.sparse.inference.moves`, of the size of the first source."""
        found: dict[str, Any] = dict(values)
        for name, image in (*zip(("source", "other"), sources, strict=False), ("result", result)):
            if image is not None:
                found |= {name: image, f"{name}_plane": image.plane, f"{name}_row": image.row}
        for x in sources:
            x.buffer.last = len(self.steps)
            found |= {"channels": x.channels, "height": x.height, "width": x.width}
        shared = self._shared_out(found["channels"], found["height"] * found["width"] * self.pixel)
        self.steps.append(Step(kernel, shared | {"pixel": self.pixel} | found))

    def _shared_out(self, channels: int, floats: int) -> dict[str, int]:
        """Chunks of channels, each of so many floats."""
        chunks = max(1, min(channels, _CHUNKS, channels * (floats + _EACH) // _SMALL))
        each = -(-channels // chunks)
        return {"chunks": -(-channels // each), "channels": channels, "each": each}
