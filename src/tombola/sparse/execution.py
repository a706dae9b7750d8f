"""A sparse layer's output and both its gradients, by the compiled loops of :mod:`~tombola.sparse.kernels`.

Arrays are float32 on the CPU. What counts is how they lie in memory, not their shapes: channel by channel, each of
``size``, ``(height, width, batch)``; or, for the weights of recurrent layers, step by step, and ``size`` is ``(steps,
batch)``. It is that of the layer's input throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tombola.compiled import need
from tombola.sparse.geometry import Geometry, Pair, Plan
from tombola.sparse.positions import Rows

CHUNKS = 4  # for each thread, at least, where the rows allow it
SHARES = 16  # in which the gradient by the values is summed up
_WIDE = 64  # floats of a piece from which on it pays to take columns in blocks

Size = tuple[int, ...]

# Address of a layer's pointers, which stays when it moves -> what is shown the input and the output gradient of each of
# its backward passes, and told whether they are lent. Empty but before a move that grows by the gradient.
recorders: dict[int, Callable[[Tensor, Tensor, bool], None]] = {}


def product(
    x: Tensor,
    result: Tensor,
    size: Size,
    values: Tensor,
    bias: Tensor | None,
    rows: Rows,
    geometry: Geometry,
    *,
    relu: bool = False,
    added: Tensor | None = None,
) -> None:
    """Write the output into ``result``; see :func:`~tombola.sparse.operators.product`.

    Raises:
        ImportError: Numba is missing, in the process that a pickled layer was brought to.
    """
    need("a sparse layer")
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    flat = _flat_plan(geometry, size)
    if flat is None:
        _run("product", geometry, size, x, result, values, rows, bias=bias, relu=relu, added=added)
        return
    from tombola.sparse.vectors import LANES  # imports Numba: not before it is needed

    (height, width, batch), (pad_y, pad_x), (step_y, step_x) = size, geometry.padding, geometry.stride
    tall, wide = height + 2 * pad_y, width + 2 * pad_x
    padded = x.new_zeros(geometry.inputs * flat.source_plane + LANES)
    inner = padded.as_strided((geometry.inputs, tall, wide, batch), (flat.source_plane, wide * batch, batch, 1))
    inner[:, pad_y : tall - pad_y, pad_x : wide - pad_x] = _planes(x, geometry.inputs, size)
    whole = x.new_empty(geometry.outputs, flat.result_plane)
    at_once = relu and added is None
    _run("product", geometry, size, padded, whole, values, rows, bias=bias, relu=at_once, flat=True)
    there = (*geometry.result_size(height, width), batch)
    strides = (flat.result_plane, step_y * wide * batch, step_x * batch, 1)
    found, result = whole.as_strided((geometry.outputs, *there), strides), _planes(result, geometry.outputs, there)
    if added is None:
        result.copy_(found)
        return
    torch.add(found, _planes(added, geometry.outputs, there), out=result)
    if relu:
        result.relu_()


def input_gradient(
    gradient: Tensor, result: Tensor, size: Size, values: Tensor, back: Rows, geometry: Geometry
) -> None:
    """Write the gradient by the input into ``result``."""
    _run("product_in_order", geometry, size, gradient, result, values.contiguous(), back)


def value_gradient(
    gradient: Tensor, x: Tensor, size: Size, rows: Rows, geometry: Geometry, *, lent: bool = False
) -> Tensor:
    """The gradient by the values, (nnz,); ``lent``: whether somebody may write over the arrays afterwards."""
    if recorders and (record := recorders.get(rows.pointers.data_ptr())) is not None:
        there = (*geometry.result_size(*size[:2]), size[2]) if len(size) == 3 else size
        record(_planes(x, geometry.inputs, size), _planes(gradient, geometry.outputs, there), lent)
    count = rows.entries.numel()
    # a sum over all pieces: in shares, so that threads need not all read the whole input, where these cost little
    shares = max(1, min(SHARES, _pieces(geometry, size))) if 2 * SHARES * count <= x.numel() else 1
    result = x.new_zeros((shares, count) if shares > 1 else count)
    _run("gradient", geometry, size, x, gradient, result, rows, shares=shares)
    return result.sum(0) if shares > 1 else result


def _planes(x: Tensor, channels: int, size: Size) -> Tensor:
    """A view of the same memory: (channels, height, width, batch), or (channels, 1, steps, batch)."""
    if len(size) == 3:
        height, width, batch = size
        return x.as_strided((channels, *size), (height * width * batch, width * batch, batch, 1))
    return x.as_strided((channels, 1, *size), (size[1], size[1], channels * size[1], 1))


class _Call(NamedTuple):
    """A kernel, and of its job what is the same at each call."""

    loop: Any
    job: dict[str, int]
    blocked: bool  # whether it is told where blocks of columns begin, instead of rows
    plan: Plan  # whose tables the job has addresses of


def _run(
    name: str,
    geometry: Geometry,
    size: Size,
    source: Tensor,
    result: Tensor,
    values: Tensor,
    rows: Rows,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
    shares: int = 0,
    added: Tensor | None = None,
    flat: bool = False,
) -> None:
    from tombola.sparse.threads import run  # imports Numba: not before it is needed

    if not result.numel():
        return
    pointers, entries, order, blocks = rows
    count = 0 if blocks is None else blocks.numel() - 1
    call = _call(name, geometry, size, flat, relu, shares, count, torch.get_num_threads())
    job = call.job.copy()
    job["source"], job["result"], job["values"] = source.data_ptr(), result.data_ptr(), values.data_ptr()
    starts = pointers if blocks is None or not call.blocked else blocks
    job["entries"], job["pointers"] = entries.data_ptr(), starts.data_ptr()
    if order is not None:
        job["order"] = order.data_ptr()
    if bias is not None:
        job["bias"] = bias.data_ptr()
    if added is not None:
        job["added"] = added.data_ptr()
    if shares:
        job["values_each"] = entries.numel()
    run(call.loop, [*job.values()])


@lru_cache(maxsize=1024)
def _call(
    name: str, geometry: Geometry, size: Size, flat: bool, relu: bool, shares: int, blocks: int, threads: int
) -> _Call:
    """``blocks``: how many runs of columns all rows together have, 0 if they are not divided."""
    from tombola.sparse.kernels import kernel

    transposed = name == "product_in_order"
    rows, taps, each = geometry.inputs if transposed else geometry.outputs, geometry.kernel, 1
    plan = _flat_plan(geometry, size) if flat else _plan(geometry, size, transposed=transposed)
    assert plan is not None
    blocked = bool(blocks) and int(plan.xs[0, 1]) >= _WIDE
    if blocked:
        each = blocks // rows
        taps, name = (1, each), name if shares else f"{name}_blocks"
    job = product_job(plan, rows, relu=relu, kernel=taps, shares=shares, threads=threads)
    return _Call(kernel(name), job | {"bits": geometry.bits, "blocks": each}, blocked, plan)


@lru_cache(maxsize=1024)
def _flat_plan(geometry: Geometry, size: Size) -> Plan | None:
    from tombola.sparse.kernels import PIECE
    from tombola.sparse.vectors import LANES

    return None if len(size) == 2 else geometry.flat_plan(*size, piece=PIECE, lanes=LANES)


def _plan(geometry: Geometry, size: Size, *, transposed: bool) -> Plan:
    from tombola.sparse.kernels import PIECE

    make = geometry.steps_plan if len(size) == 2 else geometry.plan
    return make(*size, transposed=transposed, piece=PIECE)


@lru_cache(maxsize=1024)
def _pieces(geometry: Geometry, size: Size) -> int:
    plan = _plan(geometry, size, transposed=False)
    return len(plan.ys) * len(plan.xs)


def product_job(plan: Plan, rows: int, *, relu: bool, kernel: Pair, shares: int = 0, threads: int) -> dict[str, int]:
    """The fields of a kernel's job, in their order; those that are addresses of tensors are left to be filled in.

    Args:
        plan: the pieces.
        rows: of the result.
        relu: whether negative results become 0.
        kernel: taps in both directions.
        shares: for the gradient by the values, into how many the pieces are divided.
        threads: that are to do it.
    """
    ys, xs = len(plan.ys), len(plan.xs)
    pieces_per_chunk = -(-ys * xs // shares) if shares else 1
    groups = -(-ys * xs // pieces_per_chunk)
    rows_per_chunk = -(-rows // -(-CHUNKS * threads // groups))
    y_table, x_table, shifts = plan.addresses
    return {
        "counter": 0,
        "chunks": -(-rows // rows_per_chunk) * groups,
        "rows": rows,
        "rows_per_chunk": rows_per_chunk,
        "pieces_per_chunk": pieces_per_chunk,
        "ys": ys,
        "y_table": y_table,
        "xs": xs,
        "x_table": x_table,
        "values": 0,
        "values_each": 0,
        "order": 0,
        "entries": 0,
        "bits": 0,
        "pointers": 0,
        "taps": kernel[0] * kernel[1],
        "x_taps": kernel[1],
        "shifts": shifts,
        "source": 0,
        "source_plane": plan.source_plane,
        "result": 0,
        "result_plane": plan.result_plane,
        "bias": 0,
        "floor": int(relu),
        "blocks": 1,
        "added": 0,
    }
