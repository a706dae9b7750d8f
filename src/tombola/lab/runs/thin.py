"""A run's model with its masked layers really sparse: while it trains, nothing of their dense size is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tombola.lab.errors import LabError
from tombola.sparse.convert import convertible
from tombola.sparse.swap import make_dense, make_sparse, weights


def check_device(device: torch.device | str) -> None:
    """Raise LabError unless sparse layers can compute there."""
    if torch.device(device).type != "cpu":
        raise LabError(f"--sparse: sparse layers compute on the CPU, not on {device}; leave it or --device out")


def check_thin(model: nn.Module, masked: Iterable[str], name: str) -> None:
    """Raise LabError unless each of these parameters of the model ``name`` can be that of a sparse layer."""
    able = {f"{name}.{weight}" for name, layer in convertible(model).items() for weight in weights(layer)}
    bad = [parameter for parameter in masked if parameter not in able]
    if not bad:
        return
    if not able.intersection(masked):
        missing = ", ".join(bad)
        raise LabError(f"--sparse: model {name!r} has no masked layer that can be sparse ({missing}); leave it out")
    raise LabError(
        f"--sparse: {bad[0]!r} of model {name!r} cannot be sparse, as only Linear, Conv1d, Conv2d and GRU can that pad "
        f"with zeros, on both sides alike, and share no weights; leave it dense with --unmasked {','.join(bad)}, or "
        "leave --sparse out"
    )


def thin(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Exchange the masked layers of ``model`` for sparse ones with the weights under the masks, in place."""
    with torch.random.fork_rng(devices=[]):  # layers draw weights before they take those that they are given
        make_sparse(model, masks)


def thicken(model: nn.Module) -> None:
    """The inverse."""
    with torch.random.fork_rng(devices=[]):
        make_dense(model)
