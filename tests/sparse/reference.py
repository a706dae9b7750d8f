"""What sparse layers are measured by: the dense operation in float64, and numbers whose sums are exact in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tombola.sparse import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear

MASKS = ["one", "none", "all", "few", "many", "whole outputs missing"]
LAYOUTS = ["usual", "channels_last", "innermost"]


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask_of(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if kind == "one":
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[torch.randint(mask.numel(), (), generator=draw)] = True
        return mask
    share = {"none": 0.0, "all": 1.0, "few": 0.1, "many": 0.6, "whole outputs missing": 0.6}[kind]
    mask = torch.rand(shape, generator=draw) < share
    if kind == "whole outputs missing":
        mask[torch.rand(shape[0], generator=draw) < 0.5] = False
    return mask


def whole_numbers(shape: tuple[int, ...], largest: int, draw: torch.Generator) -> Tensor:
    """Float32 between ± ``largest``. Sums of their products are exact, in whichever order, up to 2²⁴."""
    return torch.randint(-largest, largest + 1, shape, generator=draw).float()


def make_whole(layer: SparseLayer, draw: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(whole_numbers(tuple(parameter.shape), 4, draw))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in another order in memory."""
    if layout == "innermost":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def dense_output(layer: SparseLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, SparseLinear):
        return F.linear(x, weight, bias)
    assert isinstance(layer, SparseConv1d | SparseConv2d)
    g = layer.geometry
    pairs: list[Any] = [g.stride, g.padding, g.dilation]
    if isinstance(layer, SparseConv1d):
        return F.conv1d(x, weight, bias, *[pair[1:] for pair in pairs], g.groups)
    return F.conv2d(x, weight, bias, *pairs, g.groups)


def by_row(layer: SparseLayer, weight: Tensor) -> Tensor:
    """(nnz,): of a weight in the dense shape what stands where the layer has values, in their order."""
    return weight.movedim(1, -1)[layer.mask().movedim(1, -1)]


def sparse_products(layer: SparseLayer, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output, and gradients by everything, of a sparse layer."""
    x = x.detach().requires_grad_()
    y = layer(x)
    wanted = {"input": x, **dict(layer.named_parameters())}
    return {
        "output": y.detach(),
        **dict(zip(wanted, torch.autograd.grad(y, [*wanted.values()], gradient), strict=True)),
    }


def dense_products(layer: SparseLayer, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """The same by PyTorch, in float64."""
    x = x.detach().double().contiguous().requires_grad_()
    weight = layer.weight().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    y = dense_output(layer, x, weight, bias)
    wanted = [x, weight] if bias is None else [x, weight, bias]
    by_x, by_weight, *by_bias = torch.autograd.grad(y, wanted, gradient.double())
    found = {"output": y.detach(), "input": by_x, "values": by_row(layer, by_weight)}
    return found | ({"bias": by_bias[0]} if by_bias else {})


def agree(layer: SparseLayer, x: Tensor, gradient: Tensor) -> None:
    """For whole numbers: not a bit apart."""
    found, expected = sparse_products(layer, x, gradient), dense_products(layer, x, gradient)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype is torch.float32, name
        assert tensor.shape == expected[name].shape, name
        assert torch.equal(tensor.double(), expected[name]), name
