"""Whether the gradients of a run are finite. Part of ``attach``.

On the CPU each step looks, before anything has changed. To read a value off an accelerator is to wait for it, so there
each step notes its largest gradient, on the device, and what was noted is read now and then, and before masks move.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from tombola.ranks import Ranks
from tombola.sharded import is_sharded, local

LOOK = 100
"""Steps from one reading of what was noted to the next."""
_WHY = "so the loss went to NaN or infinity"
_MEND = "Lower the learning rate, clip gradients or use a GradScaler"


def gradient_of(name: str) -> str:
    """What the gradient of this parameter is called in messages."""
    return f"the gradient of {name!r}"


def not_finite(gradient: str, step: int) -> FloatingPointError:
    """The error that says so, before ``step`` has changed a weight."""
    return FloatingPointError(f"{gradient} is not finite at step {step}, {_WHY}; no weight has changed. {_MEND}")


def is_near(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a device."""
    return tensor.is_cpu


class Gradients:
    """Those of masked parameters, as far as steps have looked at them."""

    def __init__(self, parameters: Mapping[str, Parameter], ranks: Ranks) -> None:
        self._parameters = parameters
        self._ranks = ranks
        self._noted: Tensor | None = None  # the largest of the steps that nobody has looked at
        self._since = 0  # the first of these steps

    @torch.no_grad()
    def check(self, step: int, *, look: bool, vouched_for: Container[str] = ()) -> None:
        """Check the gradients that ``step`` is about to take, but for those that somebody vouches for; with ``look``
        also those noted before.

        Raises:
            TypeError: one is sparse.
            FloatingPointError: one is not finite, on whichever rank; nothing has changed, or, on an accelerator, the
                message says since when.
        """
        every = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        gradients = {name: grad for name, grad in every.items() if name not in vouched_for}
        for name, grad in gradients.items():
            if grad.is_sparse:
                raise TypeError(
                    f"{name!r} has a sparse gradient, which a masked parameter cannot have; set sparse=False"
                )
        looked_at = {name: grad for name, grad in gradients.items() if look or is_near(grad)}
        earlier = self.overdue(step) if look else ""
        broken = next((gradient_of(name) for name, grad in looked_at.items() if not _finite(grad)), "")
        # a rank that stopped alone would leave the others waiting for it
        if any(map(is_sharded, looked_at.values())):
            if self._ranks.any(bool(broken)):
                broken = broken or "a gradient on another rank"
            if look and self._ranks.any(bool(earlier)):
                earlier = earlier or f"a gradient on another rank was not finite before step {step}, {_WHY}. {_MEND}"
        if earlier:
            raise FloatingPointError(earlier)
        if broken:
            raise not_finite(broken, step)
        self._note(step, [local(grad) for name, grad in gradients.items() if name not in looked_at])

    def _note(self, step: int, gradients: list[Tensor]) -> None:
        """Remember the largest entry, which is NaN or infinite if one is, without waiting for it."""
        gradients = [grad for grad in gradients if grad.numel()]  # a shard may have no rows
        if not gradients:
            return
        largest = get_total_norm(gradients, math.inf)
        if self._noted is None:
            self._noted, self._since = largest, step
        else:
            self._noted = torch.maximum(self._noted, largest.to(self._noted.device))

    def overdue(self, step: int) -> str:
        """What was wrong with a step before ``step`` that nobody had looked at, or "". It is not said again."""
        noted, self._noted = self._noted, None
        if noted is None or math.isfinite(float(noted)):
            return ""
        steps = f"one of the steps {self._since} to {step - 1}" if self._since < step - 1 else f"step {self._since}"
        return (
            f"a gradient was not finite in {steps}, {_WHY}, and weights have taken it in: go on from a checkpoint of "
            f"before. {_MEND}"
        )

    def forget(self) -> None:
        """Let what was noted be: the weights are others now."""
        self._noted = None


def _finite(grad: Tensor) -> bool:
    total = float(local(grad).sum())  # which may also overflow
    return math.isfinite(total) or bool(local(grad).isfinite().all())
