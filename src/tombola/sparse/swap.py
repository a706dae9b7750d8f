"""A model with some of its layers sparse, and back: modules are exchanged in place, names and everything else stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tombola.sparse.around import make_aware, make_plain
from tombola.sparse.conv import SparseConv1d, SparseConv2d
from tombola.sparse.gru import SparseGRU
from tombola.sparse.linear import SparseLinear

SPARSE: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.GRU: SparseGRU,
}


def weights(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a dense layer that could be sparse, by their names in it."""
    return {name: parameter for name, parameter in layer.named_parameters() if name.startswith("weight")}


def sparse(layer: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The sparse form of a dense layer; ``masks`` go by the names of its weights."""
    made: nn.Module = SPARSE[type(layer)].from_dense(layer, masks if isinstance(layer, nn.GRU) else masks["weight"])
    return made


def make_sparse(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Exchange the layers whose weights have one of these ``masks``; what stands between them keeps their layout.

    Args:
        model: changed in place.
        masks: parameter name -> bool tensor.
    """
    layers: dict[nn.Module, dict[str, Tensor]] = {}
    for name, mask in masks.items():
        path, _, weight = name.rpartition(".")
        layers.setdefault(model.get_submodule(path), {})[weight] = mask
    _exchange(model, {layer: sparse(layer, given) for layer, given in layers.items()})
    for module in model.modules():
        make_aware(module)


def make_dense(model: nn.Module) -> None:
    """The inverse: sparse layers become dense ones with zeros, in place."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, tuple(SPARSE.values()))]
    _exchange(model, {layer: layer.to_dense() for layer in layers})
    for module in model.modules():
        make_plain(module)


def _exchange(model: nn.Module, exchanged: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in exchanged:
                setattr(parent, name, exchanged[child])
