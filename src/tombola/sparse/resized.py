"""Values that have another number since they were loaded: no optimiser may step with state of the old number.

The fused optimisers do not compare sizes, and would read and write beyond the end of their state.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

_resized: dict[int, weakref.ref[Tensor]] = {}  # by identity
_hooks: list[RemovableHandle] = []


def watch(values: Tensor) -> None:
    """Look at ``values`` before the first step of an optimiser that holds them, and never again."""
    _resized[id(values)] = weakref.ref(values)
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_check))


def _check(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        parameters: list[Tensor] = group["params"]
        for parameter in parameters:
            if id(parameter) not in _resized or _resized[id(parameter)]() is not parameter:
                continue
            for key, entry in optimizer.state.get(parameter, {}).items():
                if isinstance(entry, Tensor) and entry.ndim == 1 and entry.shape != parameter.shape:
                    raise RuntimeError(
                        f"the optimiser's {key!r} of a sparse layer is for {entry.numel()} values, but it was loaded "
                        f"with {parameter.numel()}; load the optimiser's state_dict() of then too, or make a new one"
                    )
            del _resized[id(parameter)]
    for key in [key for key, values in _resized.items() if values() is None]:
        del _resized[key]
    if not _resized:
        while _hooks:
            _hooks.pop().remove()
