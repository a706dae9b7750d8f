"""What can be wrong with the arguments and gradients of an attachment, each with its message."""

from __future__ import annotations

import gc
import math
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tombola.methods.protocol import HardMethod, SoftMethod

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
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"attach: {name!r} holds NaN or infinite weights; load or initialise the model first")


def _taken(live: Iterable[Attachment]) -> dict[int, Attachment]:
    return {id(parameter): run for run in live for parameter in run.parameters.values()}


def check_gradients(parameters: Mapping[str, Parameter], step: int, *, last: bool) -> None:
    """Raise TypeError for a sparse gradient, FloatingPointError for one that is not finite."""
    for name, parameter in parameters.items():
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            raise TypeError(f"{name!r} has a sparse gradient, which a masked parameter cannot have; set sparse=False")
        # reading a value off an accelerator waits for it: there, look now and then and at the end
        if grad.is_cpu or step % 100 == 0 or last:
            total = float(grad.sum())
            if not math.isfinite(total) and not bool(grad.isfinite().all()):
                raise FloatingPointError(
                    f"the gradient of {name!r} is not finite at step {step}, so the loss went to NaN or infinity; "
                    "nothing was changed. Lower the learning rate, clip gradients or use a GradScaler"
                )
