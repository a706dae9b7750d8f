"""The operators of sparse layers and their gradients: ``tombola::sparse_product``, ``…_input_gradient``,
``…_value_gradient``.

They take and give float32 arrays on the CPU with the batch innermost, ``(channels, height, width, batch)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tombola.sparse import execution
from tombola.sparse.geometry import Geometry, Pair
from tombola.sparse.positions import Positions

_Sizes = list[int]  # a Geometry's numbers one after the other


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
    return execution.forward(x, values, bias, pointers, entries, geometry, relu, blocks, added)


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
        output = execution.forward(x, values, bias, pointers, entries, geometry, relu, blocks, added)
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
            by_x = execution.by_input(gradient, values, *back, geometry, x.shape[1], x.shape[2], positions.back_blocks)
        if ctx.needs_input_grad[1]:
            by_values = execution.by_values(
                gradient, x, positions.pointers, positions.entries, geometry, positions.blocks
            )
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum((1, 2, 3))
        return by_x, by_values, by_bias, gradient if ctx.needs_input_grad[3] else None, None, None, None


def _through_relu(gradient: Tensor, output: Tensor | None) -> Tensor:
    gradient = gradient.contiguous()
    return gradient if output is None else torch.ops.aten.threshold_backward(gradient, output, 0)


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
    return execution.forward(x, values, bias, pointers, entries, _geometry(sizes), relu)


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
    return execution.by_input(gradient.contiguous(), values, pointers, entries, order, _geometry(sizes), height, width)


@torch.library.custom_op("tombola::sparse_value_gradient", mutates_args=(), device_types="cpu")
def sparse_value_gradient(gradient: Tensor, x: Tensor, pointers: Tensor, entries: Tensor, sizes: _Sizes) -> Tensor:
    """(O, H', W', N) and (C, H, W, N) -> (nnz,)."""
    # a compiled graph may use the memory of both for something else afterwards
    return execution.by_values(gradient.contiguous(), x, pointers, entries, _geometry(sizes), lent=True)


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
