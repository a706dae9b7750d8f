"""A model with some of its layers sparse, and back: modules are exchanged in place, names and everything else stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from tombola.sparse.around import make_aware, make_plain
from tombola.sparse.conv import SparseConv1d, SparseConv2d
from tombola.sparse.layer import SparseLayer
from tombola.sparse.linear import SparseLinear

SPARSE: dict[type[nn.Module], Callable[..., SparseLayer]] = {
    nn.Linear: SparseLinear.from_dense,
    nn.Conv1d: SparseConv1d.from_dense,
    nn.Conv2d: SparseConv2d.from_dense,
}


def make_sparse(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Exchange the layers whose weights have one of these ``masks``; what stands between them keeps their layout.

    Args:
        model: changed in place.
        masks: parameter name -> bool tensor.
    """
    layers = {model.get_submodule(name.rpartition(".")[0]): mask for name, mask in masks.items()}
    _exchange(model, {layer: SPARSE[type(layer)](layer, mask) for layer, mask in layers.items()})
    for module in model.modules():
        make_aware(module)


def make_dense(model: nn.Module) -> None:
    """The inverse: sparse layers become dense ones with zeros, in place."""
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    _exchange(model, {layer: layer.to_dense() for layer in layers})  # type: ignore[operator]
    for module in model.modules():
        make_plain(module)


def _exchange(model: nn.Module, exchanged: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in exchanged:
                setattr(parent, name, exchanged[child])
