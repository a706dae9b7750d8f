"""A sparse layer's output and both its gradients, by the compiled loops of :mod:`~tombola.sparse.kernels`.

Arrays are float32 on the CPU with the batch innermost: ``(channels, height, width, batch)``, or ``(steps, channels,
batch)`` for the weights of recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tombola.compiled import need
from tombola.sparse.geometry import Geometry, Pair, Plan

CHUNKS = 4  # for each thread, at least, where the rows allow it
SHARES = 16  # in which the gradient by the values is summed up
_WIDE = 64  # floats of a piece from which on it pays to take columns in blocks

# Address of a layer's pointers, which stays when it moves -> what is shown the input and the output gradient of each of
# its backward passes, and told whether they are lent. Empty but before a move that grows by the gradient.
recorders: dict[int, Callable[[Tensor, Tensor, bool], None]] = {}


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pointers: Tensor,
    entries: Tensor,
    geometry: Geometry,
    relu: bool,
    blocks: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """The output, (O, H', W', N) or (steps, O, N); see :func:`~tombola.sparse.operators.product`.

    Raises:
        ImportError: Numba is missing, in the process that a pickled layer was brought to.
        ValueError: an image that is too small for the kernel.
    """
    need("a sparse layer")
    from tombola.sparse.kernels import PIECE  # imports Numba: not before it is needed
    from tombola.sparse.vectors import LANES

    x, values = x.contiguous(), values.contiguous()
    bias = None if bias is None else bias.contiguous()
    if x.ndim == 3:
        result = x.new_empty(x.shape[0], geometry.outputs, x.shape[2])
        plan = geometry.steps_plan(x.shape[0], x.shape[2], transposed=False, piece=PIECE)
        _run("product", geometry, plan, x, result, values, pointers, entries, bias=bias)
        return result
    _, height, width, batch = x.shape
    rows, columns = geometry.result_size(height, width)
    if rows < 1 or columns < 1:
        raise ValueError(f"an image of {height} × {width} is too small for a kernel of {geometry.kernel}")
    if flat := geometry.flat_plan(height, width, batch, piece=PIECE, lanes=LANES):
        pad_y, pad_x = geometry.padding
        tall, wide = height + 2 * pad_y, width + 2 * pad_x
        padded = x.new_zeros(geometry.inputs * tall * wide * batch + LANES)
        inner = padded[:-LANES].view(geometry.inputs, tall, wide, batch)
        inner[:, pad_y : tall - pad_y, pad_x : wide - pad_x] = x
        result = x.new_empty(geometry.outputs, flat.result_plane)
        at_once = relu and added is None
        _run("product", geometry, flat, padded, result, values, pointers, entries, bias=bias, relu=at_once)
        step_y, step_x = geometry.stride
        strides = (flat.result_plane, step_y * wide * batch, step_x * batch, 1)
        result = result.as_strided((geometry.outputs, rows, columns, batch), strides)
        if added is None:
            return result.contiguous()
        return (result + added).relu_() if relu else result + added
    result = x.new_empty(geometry.outputs, rows, columns, batch)
    plan = geometry.plan(height, width, batch, transposed=False, piece=PIECE)
    _run(
        "product",
        geometry,
        plan,
        x,
        result,
        values,
        pointers,
        entries,
        bias=bias,
        relu=relu,
        blocks=blocks,
        added=added,
    )
    return result


def by_input(
    gradient: Tensor,
    values: Tensor,
    pointers: Tensor,
    entries: Tensor,
    order: Tensor,
    geometry: Geometry,
    height: int = 1,
    width: int = 1,
    blocks: Tensor | None = None,
) -> Tensor:
    """The gradient by the input, of the shape that the input had: ``pointers``, ``entries`` and ``order`` are those of
    the way back."""
    from tombola.sparse.kernels import PIECE

    if gradient.ndim == 3:
        steps, _, batch = gradient.shape
        result = gradient.new_empty(steps, geometry.inputs, batch)
        plan = geometry.steps_plan(steps, batch, transposed=True, piece=PIECE)
    else:
        result = gradient.new_empty(geometry.inputs, height, width, gradient.shape[3])
        plan = geometry.plan(height, width, gradient.shape[3], transposed=True, piece=PIECE)
    values = values.contiguous()
    _run("product_in_order", geometry, plan, gradient, result, values, pointers, entries, order=order, blocks=blocks)
    return result


def by_values(
    gradient: Tensor,
    x: Tensor,
    pointers: Tensor,
    entries: Tensor,
    geometry: Geometry,
    blocks: Tensor | None = None,
    *,
    lent: bool = False,
) -> Tensor:
    """The gradient by the values, (nnz,); ``lent``: whether somebody may write over the arrays afterwards."""
    from tombola.sparse.kernels import PIECE

    x = x.contiguous()
    if x.ndim == 3:
        plan = geometry.steps_plan(x.shape[0], x.shape[2], transposed=False, piece=PIECE)
        seen = x.movedim(0, 1).unsqueeze(1), gradient.movedim(0, 1).unsqueeze(1)
    else:
        plan, seen = geometry.plan(*x.shape[1:], transposed=False, piece=PIECE), (x, gradient)
    if recorders and (record := recorders.get(pointers.data_ptr())) is not None:
        record(*seen, lent)
    # a sum over all pieces: in shares, so that threads need not all read the whole input, where these cost little
    pieces = len(plan.ys) * len(plan.xs)
    shares = max(1, min(SHARES, pieces)) if 2 * SHARES * entries.numel() <= x.numel() else 1
    result = x.new_zeros(shares, entries.numel())
    _run("gradient", geometry, plan, x, gradient, result, pointers, entries, shares=shares, blocks=blocks)
    return result.sum(0) if shares > 1 else result[0]


def _run(
    name: str,
    geometry: Geometry,
    plan: Plan,
    source: Tensor,
    result: Tensor,
    values: Tensor,
    pointers: Tensor,
    entries: Tensor,
    *,
    order: Tensor | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
    shares: int = 0,
    blocks: Tensor | None = None,
    added: Tensor | None = None,
) -> None:
    from tombola.sparse.kernels import launch

    if not result.numel():
        return
    rows = geometry.inputs if name == "product_in_order" else geometry.outputs
    threads, kernel, count = torch.get_num_threads(), geometry.kernel, 1
    if blocks is not None and int(plan.xs[0, 1]) >= _WIDE:
        pointers, count = blocks, (blocks.numel() - 1) // rows
        kernel, name = (1, count), name if shares else f"{name}_blocks"
    job = product_job(
        plan, rows, values, entries, pointers, bias, relu=relu, kernel=kernel, shares=shares, threads=threads
    )
    job |= {"bits": geometry.bits, "order": 0 if order is None else order.data_ptr(), "blocks": count}
    job |= {"source": source.data_ptr(), "result": result.data_ptr(), "added": 0 if added is None else added.data_ptr()}
    launch(name, [*job.values()])


def product_job(
    plan: Plan,
    rows: int,
    values: Tensor,
    entries: Tensor,
    pointers: Tensor,
    bias: Tensor | None,
    *,
    relu: bool,
    kernel: Pair,
    shares: int = 0,
    threads: int,
) -> dict[str, int]:
    """The fields of a kernel's job, in their order; source, result and some others are left to be filled in.

    Args:
        plan: the pieces.
        rows: of the result.
        values, entries, pointers, bias: see the kernels.
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
        "values": values.data_ptr(),
        "values_each": values.shape[-1] if shares else 0,
        "order": 0,
        "entries": entries.data_ptr(),
        "bits": 0,
        "pointers": pointers.data_ptr(),
        "taps": kernel[0] * kernel[1],
        "x_taps": kernel[1],
        "shifts": shifts,
        "source": 0,
        "source_plane": plan.source_plane,
        "result": 0,
        "result_plane": plan.result_plane,
        "bias": 0 if bias is None else bias.data_ptr(),
        "floor": int(relu),
        "blocks": 1,
        "added": 0,
    }
