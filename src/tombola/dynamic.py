"""Moving masks while training: dense gradients when a method wants them, moves instead of or after a step. Part of
``attach``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tombola.hard import HardState
from tombola.methods.protocol import DynamicMethod, Moment, Plan
from tombola.scaling import undo_loss_scale
from tombola.sharded import placed, whole
from tombola.states import check_generator, check_keys, check_tensors


def moving_seed(seed: int) -> int:
    """The seed of the moves: another than that of the start, so that what is drawn does not depend on the start."""
    return seed ^ 0x6D6F7665  # PyTorch's generator on the CPU looks at the lowest 32 bits


class DynamicState(HardState):
    """Masks that a method moves. ``memory`` is what it keeps from one step to another."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        optimizer: Optimizer,
        method: DynamicMethod,
        generator: torch.Generator,
    ) -> None:
        super().__init__(parameters, optimizer)
        self.method = method
        self.generator = generator
        self.memory: dict[str, Tensor] = {}
        self._plan = Plan()
        self._set_aside: list[tuple[Parameter, Tensor]] = []

    def prepare(self, moment: Moment) -> None:
        """Get ready for the backward passes that follow ``moment``."""
        self._plan = self.method.plan(moment)
        self.backward.dense = self._plan.gradient

    @property
    def turns(self) -> bool:
        """Whether masks move around the step that follows."""
        return self._plan.instead or self._plan.after

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """Show the method the dense gradients; if it moves instead of the step, leave the optimiser nothing to do."""
        if self._plan.gradient:
            self._check_frozen()
            undo_loss_scale(self.optimizer)
            self.method.observe({n: _gradient(p) for n, p in self.parameters.items()}, self.memory, moment)
        if self._plan.instead:
            self._move(moment)
            # every optimiser passes over parameters without a gradient, and does not count the step for them
            everything = [p for group in self.optimizer.param_groups for p in group["params"]]
            self._set_aside = [(p, p.grad) for p in everything if p.grad is not None]
            for parameter in everything:
                parameter.grad = None
        elif self._plan.gradient:
            self.mask_gradients()

    @torch.no_grad()
    def after_move_or_step(self, moment: Moment) -> bool:
        """Whether masks have moved. ``moment`` is that before the step."""
        plan = self._plan
        for parameter, gradient in self._set_aside:
            parameter.grad = gradient
        self._set_aside = []
        if not self._plan.instead:
            self.after_step()
        if self._plan.after:
            self._move(moment)
        self.prepare(moment.later(1))
        return plan.instead or plan.after

    def marks(self) -> dict[str, object]:
        """See :class:`HardState`."""
        return super().marks() | {"the state of the random generator": self.generator.get_state()}

    def _check_frozen(self) -> None:
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                raise RuntimeError(
                    f"{name!r} was frozen after attach, but {type(self.method).__name__} needs its gradient to grow "
                    "connections; unfreeze it, or detach() and attach anew without it"
                )

    def _move(self, moment: Moment) -> None:
        self.hold(self.method.move(self.parameters, self.masks, self.memory, moment, generator=self.generator))

    def state_dict(self, *, full: bool = False) -> dict[str, Any]:
        """What it takes to go on, besides the masks; with ``full`` nothing is sharded."""
        memory = {name: (whole(tensor) if full else tensor).clone() for name, tensor in self.memory.items()}
        return {"memory": memory, "generator": self.generator.get_state()}

    def check(self, state: object) -> None:
        """Raise ValueError unless ``state`` is one of :meth:`state_dict` that fits."""
        check_keys(state, ("memory", "generator"), "an attachment")
        assert isinstance(state, Mapping)
        if not isinstance(state["memory"], Mapping) or state["memory"]:
            check_tensors("memory", state["memory"], {n: p.detach() for n, p in self.parameters.items()})
        check_generator("generator", state["generator"], self.generator)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.memory = {n: placed(tensor, self.parameters[n]).clone() for n, tensor in state["memory"].items()}
        self.generator.set_state(state["generator"].cpu())


def _gradient(parameter: Parameter) -> Tensor:
    return torch.zeros_like(parameter, requires_grad=False) if parameter.grad is None else parameter.grad
