"""What can be wrong with the arguments of an attachment, each with its message."""

from __future__ import annotations

import gc
from collections.abc import Collection, Container, Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tombola.methods.protocol import HardMethod, SoftMethod
from tombola.sharded import is_sharded, local, rows, total

if TYPE_CHECKING:
    from tombola.attach import Attachment


def check_arguments(optimizer: Optimizer, method: object, steps: int, steps_per_epoch: int | None) -> None:
    """Raise TypeError or ValueError for what cannot be attached."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach: the second argument must be a torch optimiser, not {type(optimizer).__name__}")
    if isinstance(method, type):
        raise TypeError(f"attach: {method.__name__} is a class; pass a method, {method.__name__}()")
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "attach: LBFGS steps with a closure, which no sparse method can follow; use SGD, Adam, AdamW, …"
        )
    if hasattr(method, "prune"):
        raise TypeError(
            f"attach: {type(method).__name__} works in rounds; use TicketSearch(model, {method!r}, rounds=…)"
        )
    if not isinstance(method, (SoftMethod, HardMethod)):
        raise TypeError(f"attach: {method!r} is not a method; pass ContinuousSparsification(), Fixed(masks), …")
    for name, value in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
        if (value is not None or name == "steps") and (not isinstance(value, int) or value < 1):
            raise ValueError(f"attach: {name} must be a whole number of optimiser steps, at least 1, not {value!r}")
    if isinstance(method, SoftMethod) and any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("attach: maximize=True does not go with a penalty; minimise the negative objective instead")


def check_parameters(
    parameters: Mapping[str, Parameter],
    optimizer: Optimizer,
    live: Iterable[Attachment],
    *,
    sparse: Container[str] = (),
) -> None:
    """Raise ValueError for a parameter that the optimiser lacks, that another attachment has, or that is not finite.

    ``sparse`` are the names that stand for the values of sparse layers.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    taken = _taken(live)
    if any(id(parameter) in taken for parameter in parameters.values()):
        del taken
        gc.collect()  # the other attachment may be one whose optimiser nobody holds any more
        taken = _taken(live)
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            what = f"the parameter `values` of the sparse layer {name!r}" if name in sparse else repr(name)
            raise ValueError(
                f"attach: {what} is not in the optimiser; add it, or leave it out with select=lambda name, p: …"
            )
        if id(parameter) in taken:
            raise ValueError(
                f"attach: {name!r} is already attached ({taken[id(parameter)]!r}); call its detach() first"
            )
        if int(total(~parameter.isfinite())):
            raise ValueError(f"attach: {name!r} holds NaN or infinite weights; load or initialise the model first")


def check_sharding(parameters: Mapping[str, Parameter], method: object, *, sparse: Collection[str]) -> None:
    """Raise ValueError for parameters that lie over the ranks in a way that is not supported."""
    sharded = {name: parameter for name, parameter in parameters.items() if is_sharded(parameter)}
    if sharded and not getattr(method, "shards", False):
        raise ValueError(
            f"attach: {type(method).__name__} cannot work on sharded parameters, such as {next(iter(sharded))!r}; use "
            "DDP, or see tombola.methods.protocol.HardMethod for what it takes"
        )
    if sharded and sparse:
        raise ValueError(f"attach: {next(iter(sharded))!r} is sharded, which does not go with sparse layers; use DDP")
    meshes = {name: parameter.device_mesh for name, parameter in sharded.items()}
    for name, parameter in sharded.items():
        try:
            begin, end = rows(parameter)
        except ValueError as error:
            raise ValueError(f"attach: {name!r} cannot be masked: {error}; leave it out with select=…") from None
        if local(parameter).shape != (end - begin, *parameter.shape[1:]):
            raise ValueError(
                f"attach: this rank has {tuple(local(parameter).shape)} of {name!r}, not the rows {begin} to {end} "
                "that are its share; shard with fully_shard"
            )
        first = next(iter(meshes))
        if meshes[name] != meshes[first]:
            raise ValueError(
                f"attach: {first!r} and {name!r} are sharded over different ranks, {meshes[first]} and {meshes[name]}; "
                "shard all masked parameters alike, or attach to each part of the model with select=…"
            )


def check_membership(parameters: Mapping[str, Parameter], model: nn.Module) -> None:
    """Raise RuntimeError for a parameter that the model does not have any more."""
    there = {id(parameter) for parameter in model.parameters()}
    for name, parameter in parameters.items():
        if id(parameter) not in there:
            raise RuntimeError(
                f"{name!r} is no longer the model's parameter that attach() was given: it was replaced, sharded or "
                "moved since. Call attach() after fully_shard(), accelerator.prepare() or fabric.setup(), with what "
                "they return"
            )


def _taken(live: Iterable[Attachment]) -> dict[int, Attachment]:
    return {id(parameter): run for run in live for parameter in run.parameters.values()}
