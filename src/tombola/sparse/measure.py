"""measure(): what sparsity saves on this machine, layer by layer: arithmetic, time, and where it begins to pay."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

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
            number of non-zeros; None for the total.
    """

    dense_multiply_adds: int
    sparse_multiply_adds: int
    dense_ms: float
    sparse_ms: float
    machine: float
    break_even_density: float | None

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
    even = "" if pays.break_even_density is None else f"{pays.break_even_density:.3f}"
    return (
        f"{pays.dense_ms:>8.3f}  {pays.sparse_ms:>9.3f}  {pays.arithmetic_saved:>11.1%}  {pays.time_saved:>6.1%}"
        f"  {pays.achieved:>7.1%}  {pays.slowdown:>8.2f}  {pays.break_even_slowdown:>7.2f}  {even:>12}"
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
    for call in calls(plain.train(), inputs):
        names = [f"{call.name}.{key}" for key in weights(call.module)]
        if any(name in given for name in names) and all(row.layer != call.name for row in parts):
            every, used = masks_of(call.name, call.module, given), [counted.layers[name] for name in names]
            inference, training = (_pays(call, every, used, training=training) for training in (False, True))
            parts.append(LayerPays(call.name, Masks(every).density, inference, training))
    if not parts:
        raise ValueError("measure: no layer with a mask can be sparse (Linear, Conv1d, Conv2d, GRU)")
    return Measured(tuple(parts), _sum([row.inference for row in parts]), _sum([row.training for row in parts]))


def _pays(call: Call, masks: Mapping[str, Tensor], used: list[flops.Layer], *, training: bool) -> Pays:
    call.module.train(training)
    dense_ms, _, sparse_ms = layer_times(call, masks, bf16=False)
    density = Masks(masks).density
    other = min(3 * density + 0.01, 0.9)
    generator = torch.Generator().manual_seed(0)
    more = {
        key: largest(torch.rand(mask.shape, generator=generator), round(other * mask.numel()))
        for key, mask in masks.items()
    }
    other_ms = layer_times(call, more, bf16=False).sparse
    steepness = max((other_ms - sparse_ms) / (other - density), 1e-12)
    even = min(max(density + (dense_ms - sparse_ms) / steepness, 0.0), 1.0)
    times = (3 if call.gradient else 2) if training else 1
    adds = (times * sum(layer.dense for layer in used), times * sum(layer.multiply_adds for layer in used))
    return Pays(*adds, dense_ms, sparse_ms, machine(), even)


def _sum(parts: list[Pays]) -> Pays:
    adds = (sum(part.dense_multiply_adds for part in parts), sum(part.sparse_multiply_adds for part in parts))
    return Pays(*adds, sum(part.dense_ms for part in parts), sum(part.sparse_ms for part in parts), machine(), None)


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
