"""The operators of sparse layers and their gradients: ``tombola::sparse_product``, ``…_input_gradient``,
``…_value_gradient``.

They take and give float32 arrays on the CPU with the batch innermost, ``(channels, height, width, batch)``. What is
inside them takes ``(steps, channels, batch)`` as well, for the weights of recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tombola.sparse.geometry import Geometry, Pair, Plan
from tombola.sparse.positions import Positions

CHUNKS = 4  # for each thread, at least, where the rows allow it
SHARES = 16  # in which the gradient by the values is summed up
_WIDE = 64  # floats of a piece from which on it pays to take columns in blocks
_Sizes = list[int]  # a Geometry's numbers one after the other

# Address of a layer's pointers, which stays when it moves -> what is shown the input and the output gradient of each of
# its backward passes, and told whether they are lent. Empty but before a move that grows by the gradient.
recorders: dict[int, Callable[[Tensor, Tensor, bool], None]] = {}


def product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    positions: Positions,
    geometry: Geometry,
    *,
    relu: bool = False,
    added: Tensor | None = None,
) -> Tensor:
    """The output of a sparse layer.

    Args:
        x: (C, H, W, N), float32.
        values: (nnz,), float32.
        bias: (O,), float32, or None.
        positions: where the values stand.
        geometry: the shape of the layer.
        relu: whether negative outputs become 0.
        added: (O, H', W', N), float32: what is added to the output, before the ReLU.

    Returns:
        (O, H', W', N).
    """
    if torch.compiler.is_compiling():
        pairs = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
        sizes = [geometry.inputs, geometry.outputs, *(number for pair in pairs for number in pair)]
        pointers, _, *structure, _, _ = positions
        if added is None:
            return sparse_product(x, values, bias, pointers, *structure, sizes, relu)  # type: ignore[no-any-return]
        total: Tensor = sparse_product(x, values, bias, pointers, *structure, sizes, False) + added
        return total.relu() if relu else total
    # the same without the operator's bookkeeping, which takes longer than a small layer
    if torch.is_grad_enabled():
        arguments = (x, values, bias, added, positions, geometry, relu)
        return _Product.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    pointers, entries, blocks = positions.pointers, positions.entries, positions.blocks
    return _forward(x, values, bias, pointers, entries, geometry, relu, blocks, added)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Any,
        added: Any,
        positions: Positions,
        geometry: Geometry,
        relu: bool,
    ) -> Tensor:
        pointers, entries, blocks = positions.pointers, positions.entries, positions.blocks
        output = _forward(x, values, bias, pointers, entries, geometry, relu, blocks, added)
        ctx.save_for_backward(x, values, output if relu else None)
        ctx.positions, ctx.geometry = positions, geometry
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, values, output = ctx.saved_tensors
        positions, geometry = ctx.positions, ctx.geometry
        gradient = _through_relu(gradient, output)
        by_x = by_values = by_bias = None
        if ctx.needs_input_grad[0]:
            back = positions.back_pointers, positions.back_entries, positions.order
            by_x = _by_input(gradient, values, *back, geometry, x.shape[1], x.shape[2], positions.back_blocks)
        if ctx.needs_input_grad[1]:
            by_values = _by_values(gradient, x, positions.pointers, positions.entries, geometry, positions.blocks)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum((1, 2, 3))
        return by_x, by_values, by_bias, gradient if ctx.needs_input_grad[3] else None, None, None, None


def _through_relu(gradient: Tensor, output: Tensor | None) -> Tensor:
    gradient = gradient.contiguous()
    return gradient if output is None else torch.ops.aten.threshold_backward(gradient, output, 0)


# ---- what the operators do


def _forward(
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


def _by_input(
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


def _by_values(
    gradient: Tensor,
    x: Tensor,
    pointers: Tensor,
    entries: Tensor,
    geometry: Geometry,
    blocks: Tensor | None = None,
    *,
    lent: bool = False,
) -> Tensor:
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


# ---- the same for PyTorch's compiler and exporter


def _geometry(sizes: _Sizes) -> Geometry:
    pairs: list[Pair] = [(sizes[place], sizes[place + 1]) for place in range(2, 10, 2)]
    kernel, stride, padding, dilation = pairs
    return Geometry(sizes[0], sizes[1], kernel, stride, padding, dilation)


@torch.library.custom_op("tombola::sparse_product", mutates_args=(), device_types="cpu")
def sparse_product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pointers: Tensor,
    entries: Tensor,
    back_pointers: Tensor,
    back_entries: Tensor,
    order: Tensor,
    sizes: _Sizes,
    relu: bool,
) -> Tensor:
    """(C, H, W, N) -> (O, H', W', N)."""
    return _forward(x, values, bias, pointers, entries, _geometry(sizes), relu)


@torch.library.custom_op("tombola::sparse_input_gradient", mutates_args=(), device_types="cpu")
def sparse_input_gradient(
    gradient: Tensor,
    values: Tensor,
    pointers: Tensor,
    entries: Tensor,
    order: Tensor,
    sizes: _Sizes,
    height: int,
    width: int,
) -> Tensor:
    """(O, H', W', N) -> (C, H, W, N)."""
    return _by_input(gradient.contiguous(), values, pointers, entries, order, _geometry(sizes), height, width)


@torch.library.custom_op("tombola::sparse_value_gradient", mutates_args=(), device_types="cpu")
def sparse_value_gradient(gradient: Tensor, x: Tensor, pointers: Tensor, entries: Tensor, sizes: _Sizes) -> Tensor:
    """(O, H', W', N) and (C, H, W, N) -> (nnz,)."""
    # a compiled graph may use the memory of both for something else afterwards
    return _by_values(gradient.contiguous(), x, pointers, entries, _geometry(sizes), lent=True)


@sparse_product.register_fake
def _(*arguments: Any) -> Tensor:
    x, geometry = arguments[0], _geometry(arguments[8])
    return x.new_empty(geometry.outputs, *geometry.result_size(x.shape[1], x.shape[2]), x.shape[3])  # type: ignore[no-any-return]


@sparse_input_gradient.register_fake
def _(*arguments: Any) -> Tensor:
    gradient, *_, sizes, height, width = arguments
    return gradient.new_empty(sizes[0], height, width, gradient.shape[3])  # type: ignore[no-any-return]


@sparse_value_gradient.register_fake
def _(*arguments: Any) -> Tensor:
    return arguments[1].new_empty(arguments[3].numel())  # type: ignore[no-any-return]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, *structure, sizes, relu = inputs
    ctx.save_for_backward(x, values, *structure, output if relu else None)
    ctx.sizes = sizes


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, values, pointers, entries, back_pointers, back_entries, order, output = ctx.saved_tensors
    gradient = _through_relu(gradient, output)
    by_x = by_values = by_bias = None
    if ctx.needs_input_grad[0]:
        back = back_pointers, back_entries, order
        by_x = sparse_input_gradient(gradient, values, *back, ctx.sizes, x.shape[1], x.shape[2])
    if ctx.needs_input_grad[1]:
        by_values = sparse_value_gradient(gradient, x, pointers, entries, ctx.sizes)
    if ctx.needs_input_grad[2]:
        by_bias = gradient.sum((1, 2, 3))
    return by_x, by_values, by_bias, *[None] * 7


sparse_product.register_autograd(_gradients, setup_context=_keep)
