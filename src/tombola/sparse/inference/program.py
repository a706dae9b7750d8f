"""A network for inference as tables of compiled steps, with memory that stays: one call into machine code for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.forward_ad import unpack_dual

from tombola.compiled import need

AT_ONCE = 16  # images: their pixels are then whole vectors, and what flows between layers stays in the cache
_KEPT = 8  # sizes of input


class Program:
    """Runs a fused network without PyTorch between its layers. It holds memory for some sizes of input, and no state.

    Tables and memory are made when an input of another size comes, at most :data:`AT_ONCE` images of it at a time. They
    hold the addresses of the network's weights: :meth:`forget` them when these are somewhere else.
    """

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[int, ...], _Part | None] = OrderedDict()
        self._parameters: tuple[Tensor, ...] | None = None  # finding them takes as long as a small layer
        self._lock = Lock()

    def forget(self) -> None:
        """Make all anew."""
        with self._lock:
            self._parts.clear()
            self._parameters = None

    def run(self, net: fx.GraphModule, x: Any) -> Tensor | None:
        """The output for ``x``, (N, …), in the usual layout; None if there is something that no step can do.

        So it is where a gradient by ``x`` or by a parameter is wanted, in autocast, and while PyTorch compiles.
        """
        if not isinstance(x, Tensor) or x.dtype is not torch.float32 or not x.is_cpu or not x.numel():
            return None
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return None
        if torch.is_grad_enabled() and (_is_differentiated(x) or self._is_trained(net)):
            return None
        size, *rest = x.shape
        with self._lock, torch.no_grad():  # the memory is there once
            part = self._part(net, (min(size, AT_ONCE), *rest))
            last = self._part(net, (size % AT_ONCE, *rest)) if size > AT_ONCE and size % AT_ONCE else part
            if part is None or last is None:
                return None
            y = torch.empty((size, *part.shape[1:]))
            for start in range(0, size, AT_ONCE):
                (part if start + AT_ONCE <= size else last).run(x, y, start)
        return y

    def _is_trained(self, net: fx.GraphModule) -> bool:
        """Whether a gradient by one of the parameters is wanted."""
        if self._parameters is None:
            self._parameters = tuple(net.parameters())
        return any(parameter.requires_grad for parameter in self._parameters)

    def _part(self, net: fx.GraphModule, shape: tuple[int, ...]) -> _Part | None:
        need("a sparse layer")
        from tombola.sparse.inference.assemble import Unable  # imports Numba: not before it is needed

        if shape not in self._parts:
            try:
                self._parts[shape] = _Part(net, shape)
            except Unable:
                self._parts[shape] = None
            if len(self._parts) > _KEPT:
                self._parts.popitem(last=False)
        self._parts.move_to_end(shape)
        return self._parts[shape]

    def __deepcopy__(self, memo: Any) -> Program:
        return Program()

    def __reduce__(self) -> tuple[type[Program], tuple[()]]:
        return Program, ()


def _is_differentiated(x: Tensor) -> bool:
    return x.requires_grad or unpack_dual(x).tangent is not None


class _Part:
    """The steps for one size of input."""

    def __init__(self, net: fx.GraphModule, shape: Sequence[int]) -> None:
        from tombola.sparse.inference import moves, runner
        from tombola.sparse.inference.images import Image, place
        from tombola.sparse.inference.translate import translate

        self._assembly, result = translate(net, shape)
        self._memory = torch.zeros(place(self._assembly.buffers))
        base = self._memory.data_ptr()
        self.shape = (shape[0], *result.shape)
        placed = [
            {
                name: base + 4 * value.buffer.offset if isinstance(value, Image) else value
                for name, value in values.items()
            }
            for values in (step.values for step in self._assembly.steps)
        ]
        self._steps = runner.table(zip((step.kernel for step in self._assembly.steps), placed, strict=True))
        self._run = runner.run
        self._ends = [
            (step, *map(moves.FIELDS.index, (end, "of_image", f"{end}_plane", f"{end}_row", "of_pixel")))
            for step, end in ((self._steps[0], "source"), (self._steps[-1], "result"))
        ]
        self._strides: list[tuple[int, ...]] = [(), ()]

    def run(self, x: Tensor, y: Tensor, start: int) -> None:
        """Compute ``y`` from ``x``, of any strides, from the image ``start`` on."""
        for end, (tensor, (step, address, *fields)) in enumerate(zip((x, y), self._ends, strict=True)):
            strides = tensor.stride()
            step[address] = tensor.data_ptr() + 4 * start * strides[0]
            if strides != self._strides[end]:
                self._strides[end] = strides
                step[fields] = (*strides[:2], *(0, 0, *strides[2:])[-2:])
        self._run(self._steps)
