"""The operators of sparse layers and their gradients: ``tombola::sparse_product``, ``…_input_gradient``,
``…_value_gradient``, ``…_relu_gradient``.

They take and give float32 arrays on the CPU with the batch innermost, ``(channels, height, width, batch)``;
:func:`product`, which layers call, takes and gives shapes as PyTorch has them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tombola.sparse import execution
from tombola.sparse.geometry import Geometry, Pair
from tombola.sparse.layout import empty, innermost, inside, outside, usual
from tombola.sparse.positions import Positions, Rows
from tombola.sparse.rectified import through_relu

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
        x: (N, C), (N, C, W) or (N, C, H, W), float32; an image of one row has no need to say so.
        values: (nnz,), float32.
        bias: (O,), float32, or None.
        positions: where the values stand.
        geometry: the shape of the layer.
        relu: whether negative outputs become 0.
        added: (N, O, …), of the output's shape, float32: what is added to it, before the ReLU.

    Returns:
        (N, O, …), with the batch innermost.
    """
    if torch.compiler.is_compiling():
        pairs = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
        sizes = [geometry.inputs, geometry.outputs, *(number for pair in pairs for number in pair)]
        pointers, _, *structure, _, _ = positions
        fused = relu and added is None
        turned = inside(x)
        images = turned.view(turned.shape[0], *(1,) * (4 - x.ndim), *turned.shape[1:])
        y = sparse_product(images, values, bias, pointers, *structure, sizes, fused)
        y = outside(y.view(y.shape[0], *y.shape[5 - x.ndim :]))
        y = y if added is None else y + added
        return y.relu() if relu and not fused else y
    # the same without the operator's bookkeeping, which takes longer than a small layer
    if torch.is_grad_enabled():
        return _Product.apply(x, values, bias, added, positions, geometry, relu)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(innermost(x), values, bias, added, positions, geometry, relu)


class _Product(torch.autograd.Function):
    """Its output and gradients are no views: PyTorch adds up the gradients of a tensor that is used twice in place if
    nobody else has a part of their memory."""

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
        seen = innermost(x)
        output = _forward(seen, values, bias, added, positions, geometry, relu)
        ctx.save_for_backward(seen, values, output if relu else None)
        ctx.copied, ctx.positions, ctx.geometry = seen is not x, positions, geometry
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, values, output = ctx.saved_tensors  # which hooks may have moved
        x, gradient = innermost(x), innermost(gradient)
        positions, geometry, size = ctx.positions, ctx.geometry, _size(x)
        for_x, for_values, for_bias, for_added, *_ = ctx.needs_input_grad
        by_x = by_values = by_bias = None
        if output is not None:
            gradient, by_bias = through_relu(gradient, innermost(output), geometry.outputs)
        if for_x:
            by_x = empty(x, x.shape)
            execution.input_gradient(gradient, by_x, size, values, positions.back, geometry)
            by_x = usual(by_x) if ctx.copied else by_x
        if for_values:
            by_values = execution.value_gradient(gradient, x, size, positions.forth, geometry)
        if for_bias and by_bias is None:
            by_bias = gradient.sum((0, *range(2, gradient.ndim)))
        return by_x, by_values, by_bias if for_bias else None, gradient if for_added else None, None, None, None


def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    positions: Positions,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    y, more = empty(x, _result_shape(geometry, x.shape)), None if added is None else innermost(added)
    execution.product(x, y, _size(x), values, bias, positions.forth, geometry, relu=relu, added=more)
    return y


@lru_cache(maxsize=1024)
def _result_shape(geometry: Geometry, shape: tuple[int, ...]) -> tuple[int, ...]:
    return geometry.result_shape(shape)


def _size(x: Tensor) -> execution.Size:
    """(N, C, …) -> height, width and batch."""
    height, width = (1, 1, *x.shape[2:])[-2:]
    return height, width, x.shape[0]


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
    geometry, (channels, height, width, batch) = _geometry(sizes), x.shape
    _, *there = geometry.result_shape((batch, channels, height, width))
    result, rows = x.new_empty(*there, batch), Rows(pointers, entries)
    execution.product(x.contiguous(), result, x.shape[1:], values, bias, rows, geometry, relu=relu)
    return result


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
    geometry, size = _geometry(sizes), (height, width, gradient.shape[3])
    result, back = gradient.new_empty(geometry.inputs, *size), Rows(pointers, entries, order)
    execution.input_gradient(gradient.contiguous(), result, size, values, back, geometry)
    return result


@torch.library.custom_op("tombola::sparse_value_gradient", mutates_args=(), device_types="cpu")
def sparse_value_gradient(gradient: Tensor, x: Tensor, pointers: Tensor, entries: Tensor, sizes: _Sizes) -> Tensor:
    """(O, H', W', N) and (C, H, W, N) -> (nnz,)."""
    # a compiled graph may use the memory of both for something else afterwards
    rows, geometry = Rows(pointers, entries), _geometry(sizes)
    return execution.value_gradient(gradient.contiguous(), x.contiguous(), x.shape[1:], rows, geometry, lent=True)


@torch.library.custom_op("tombola::sparse_relu_gradient", mutates_args=(), device_types="cpu")
def sparse_relu_gradient(gradient: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """(O, H', W', N) both -> (O, H', W', N), and (O,)."""
    return through_relu(gradient.contiguous(), output.contiguous(), output.shape[0])


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


@sparse_relu_gradient.register_fake
def _(gradient: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    return gradient.new_empty(gradient.shape), gradient.new_empty(gradient.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, *structure, sizes, relu = inputs
    ctx.save_for_backward(x, values, *structure, output if relu else None)
    ctx.sizes = sizes


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, values, pointers, entries, back_pointers, back_entries, order, output = ctx.saved_tensors
    by_x = by_values = by_bias = None
    if output is not None:
        gradient, by_bias = sparse_relu_gradient(gradient, output)
    if ctx.needs_input_grad[0]:
        back = back_pointers, back_entries, order
        by_x = sparse_input_gradient(gradient, values, *back, ctx.sizes, x.shape[1], x.shape[2])
    if ctx.needs_input_grad[1]:
        by_values = sparse_value_gradient(gradient, x, pointers, entries, ctx.sizes)
    if not ctx.needs_input_grad[2]:
        by_bias = None
    elif by_bias is None:
        by_bias = gradient.sum((1, 2, 3))
    return by_x, by_values, by_bias, *[None] * 7


sparse_product.register_autograd(_gradients, setup_context=_keep)
