"""measure(): what sparsity saves on this machine, layer by layer: arithmetic, time, and where it begins to pay."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tombola import flops
from tombola.masks import Masks, largest
from tombola.sparse.choose import Call, calls, layer_times
from tombola.sparse.convert import masks_of, prepared
from tombola.sparse.swap import weights


@dataclass(frozen=True)
class Pays:
    """One layer, or all of them, in inference or in training.

    Attributes:
        dense_multiply_adds, sparse_multiply_adds: of one pass over the example; in training forward and back, which
            is three times as many, or twice where the input needs no gradient (a recurrent layer's states do, which
            is left out there).
        dense_ms, sparse_ms: milliseconds of that pass. Dense is PyTorch's float32 in the better of its two layouts.
        machine: multiply-adds a millisecond that this machine can do at best, on PyTorch's threads.
        break_even_density: density at which sparse would take as long as dense, if its time is a straight line in the
            number of non-zeros; of several layers that of them all, if the density of each is multiplied by the same
            number, but is 1 at most. 1 also where sparse would pay even then, 0 where it never would.
    """

    dense_multiply_adds: int
    sparse_multiply_adds: int
    dense_ms: float
    sparse_ms: float
    machine: float
    break_even_density: float

    @property
    def arithmetic_saved(self) -> float:
        """Share of the dense multiply-adds that are not done."""
        return 1 - self.sparse_multiply_adds / self.dense_multiply_adds

    @property
    def time_saved(self) -> float:
        """Share of the dense time that is not spent; negative: dense is faster."""
        return 1 - self.sparse_ms / self.dense_ms

    @property
    def achieved(self) -> float:
        """Multiply-adds done sparse, as a share of what the machine could do in that time."""
        return self.sparse_multiply_adds / self.sparse_ms / self.machine

    @property
    def slowdown(self) -> float:
        """How many times as long a sparse multiply-add takes as a dense one; NaN without any."""
        if not self.sparse_multiply_adds:
            return float("nan")
        return (self.sparse_ms / self.sparse_multiply_adds) / (self.dense_ms / self.dense_multiply_adds)

    @property
    def break_even_slowdown(self) -> float:
        """The slowdown below which sparse pays, see :func:`tombola.flops.break_even`; infinite without any work."""
        if not self.sparse_multiply_adds:
            return float("inf")
        return flops.break_even(self.dense_multiply_adds, self.sparse_multiply_adds)


@dataclass(frozen=True)
class LayerPays:
    """A layer: its density, and what that is worth."""

    layer: str
    density: float
    inference: Pays
    training: Pays


@dataclass(frozen=True)
class Measured:
    """The outcome of :func:`measure`.

    Attributes:
        layers: the layers that have a mask and could be sparse, in the order in which they are called.
        inference, training: their sums.
    """

    layers: tuple[LayerPays, ...]
    inference: Pays
    training: Pays

    def table(self) -> str:
        """Two lines a layer, for inference and for training, and the total."""
        rows = [(row.layer, f"{row.density:.4f}", row.inference, row.training) for row in self.layers]
        rows.append(("total", "", self.inference, self.training))
        width = max(len(name) for name, *_ in rows)
        head = (
            f"{'layer':<{width}}  density  pass       dense ms  sparse ms  saved: adds    time  of peak"
            "  slowdown  even at  even density"
        )
        lines = [head]
        for name, density, inference, training in rows:
            lines.append(f"{name:<{width}}  {density:>7}  inference  {_numbers(inference)}")
            lines.append(f"{'':<{width}}  {'':>7}  training   {_numbers(training)}")
        return "\n".join(lines)


def _numbers(pays: Pays) -> str:
    return (
        f"{pays.dense_ms:>8.3f}  {pays.sparse_ms:>9.3f}  {pays.arithmetic_saved:>11.1%}  {pays.time_saved:>6.1%}"
        f"  {pays.achieved:>7.1%}  {pays.slowdown:>8.2f}  {pays.break_even_slowdown:>7.2f}"
        f"  {pays.break_even_density:>12.3f}"
    )


def measure(model: nn.Module, masks: Mapping[str, Tensor] | None = None, example: Any = None) -> Measured:
    """When does sparsity pay on this machine?

    Each layer that has a mask and can be sparse is timed dense and sparse, forward alone and with the way back, on the
    shape that ``example`` gives it. Layouts, norms and activations between them are left out; for whole models see
    :func:`~tombola.sparse.convert`.

    Args:
        model: float32 on the CPU; it stays as it is.
        masks: parameter name -> bool tensor; None: the weights that are not zero.
        example: an input of the size that matters; a tuple for several.

    Raises:
        ValueError: there is no example, a mask does not fit the model, or no masked layer can be sparse.
        RuntimeError: the model is not on the CPU.
    """
    if example is None:
        raise ValueError("measure: pass example, an input of the size that matters")
    plain, given = prepared(model, masks, who="measure")
    inputs = example if isinstance(example, tuple) else (example,)
    counted = flops.count(plain, inputs, given)
    parts: list[LayerPays] = []
    lines: dict[bool, list[_Line]] = {False: [], True: []}  # in inference, in training
    for call in calls(plain.train(), inputs):
        names = [f"{call.name}.{key}" for key in weights(call.module)]
        if any(name in given for name in names) and all(row.layer != call.name for row in parts):
            every, used = masks_of(call.name, call.module, given), [counted.layers[name] for name in names]
            for training, found in lines.items():
                found.append(_line(call, every, used, training=training))
            inference, training_too = (_pays(found[-1:]) for found in lines.values())
            parts.append(LayerPays(call.name, Masks(every).density, inference, training_too))
    if not parts:
        raise ValueError("measure: no layer with a mask can be sparse (Linear, Conv1d, Conv2d, GRU)")
    inference, training_too = map(_pays, lines.values())
    return Measured(tuple(parts), inference, training_too)


class _Line(NamedTuple):
    """A layer dense, and sparse with its milliseconds as a straight line in its density."""

    dense_multiply_adds: int
    sparse_multiply_adds: int
    dense_ms: float
    sparse_ms: float
    weights: int
    density: float
    steepness: float

    def at(self, factor: float) -> tuple[float, float]:
        """Connections and milliseconds with so many times the density, or with all."""
        density = min(factor * max(self.density, 1e-6), 1.0)  # a layer without any is to grow, too
        return self.weights * density, self.sparse_ms + self.steepness * (density - self.density)


def _line(call: Call, masks: Mapping[str, Tensor], used: list[flops.Layer], *, training: bool) -> _Line:
    call.module.train(training)
    dense_ms, _, sparse_ms = layer_times(call, masks, bf16=False)
    density = Masks(masks).density
    other = 3 * density + 0.01 if density < 0.3 else density / 2
    generator = torch.Generator().manual_seed(0)
    others = {
        key: largest(torch.rand(mask.shape, generator=generator), round(other * mask.numel()))
        for key, mask in masks.items()
    }
    steepness = (layer_times(call, others, bf16=False).sparse - sparse_ms) / (other - density)
    times = (3 if call.gradient else 2) if training else 1
    adds = (times * sum(layer.dense for layer in used), times * sum(layer.multiply_adds for layer in used))
    return _Line(*adds, dense_ms, sparse_ms, sum(layer.weights for layer in used), density, max(steepness, 1e-12))


def _pays(lines: list[_Line]) -> Pays:
    dense_adds, adds, dense_ms, sparse_ms = (sum(numbers) for numbers in list(zip(*lines, strict=True))[:4])
    return Pays(dense_adds, adds, dense_ms, sparse_ms, machine(), _break_even_density(lines))


def _break_even_density(lines: list[_Line]) -> float:
    """See :class:`Pays`."""
    dense_ms, few, many = sum(line.dense_ms for line in lines), 0.0, 1e6
    for _ in range(100):  # the time rises with the factor
        factor = (few + many) / 2
        if sum(line.at(factor)[1] for line in lines) < dense_ms:
            few = factor
        else:
            many = factor
    return sum(line.at(few)[0] for line in lines) / sum(line.weights for line in lines)


def machine() -> float:
    """Multiply-adds a millisecond of this machine at best: vectors in registers, on PyTorch's threads."""
    return _machine(torch.get_num_threads())


@cache
def _machine(threads: int) -> float:
    from tombola.sparse.peak import ROUND, kernel
    from tombola.sparse.threads import run
    from tombola.sparse.vectors import LANES

    scratch, count, best = np.zeros((threads, LANES), dtype=np.float32), 200_000, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run(kernel(), [0, threads, count, scratch.ctypes.data])
        best = min(best, time.perf_counter() - start)
    return threads * count * ROUND / (best * 1000)
