"""Holding weights at zero under masks, whatever the optimiser does. Part of ``attach``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tombola.bits import PackedMask
from tombola.masks import Masks
from tombola.sharded import is_sharded, like, local, placed, total


class HardState:
    """Masks on parameters: gradients are masked as they accumulate, dropped weights are zeroed after each step.

    A mask takes one bit a weight. ``gate.dense`` lets gradients accumulate unmasked.
    """

    def __init__(self, parameters: Mapping[str, Parameter], optimizer: Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.gate = SimpleNamespace(dense=False)
        self._packed: dict[str, PackedMask] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._hooks: list[RemovableHandle] = []
        # not __del__: a handle in a reference cycle has forgotten its hook by the time that is called
        weakref.finalize(self, _remove, self._hooks).atexit = False

    @property
    def masks(self) -> Masks:
        """The masks that are held, sharded like their parameters."""
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        return Masks(masks | {name: like(packed.mask(), masks[name]) for name, packed in self._packed.items()})

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> weights that are kept, and all."""
        return self._counts

    def dead(self) -> list[str]:
        """Names of the layers that keep nothing."""
        return [name for name, (kept, size) in self.counts().items() if kept == 0 < size]

    def marks(self) -> dict[str, object]:
        """What all ranks must have alike, by what it is called."""
        marks: dict[str, object] = dict.fromkeys(map(mask_of, self.parameters), "everything")
        return marks | {mask_of(name): packed.bytes for name, packed in self._packed.items()}

    def parts(self) -> list[str]:
        """Those of the :meth:`marks` that are about a part that this rank has."""
        return [mask_of(name) for name, parameter in self.parameters.items() if is_sharded(parameter)]

    @torch.no_grad()
    def hold(self, masks: Mapping[str, Tensor]) -> None:
        """Take ``masks``: clear weights, gradients and optimiser state where they are False, and keep them so."""
        self.release()
        mine = {name: placed(mask, self.parameters[name]) for name, mask in masks.items()}
        self._counts = {name: (int(total(mask)), mask.numel()) for name, mask in mine.items()}
        # a layer that keeps every weight needs no work at all
        sparse = {name: mask for name, mask in mine.items() if self._counts[name][0] < self._counts[name][1]}
        self._packed = {name: PackedMask(local(mask), local(self.parameters[name])) for name, mask in sparse.items()}
        for name, packed in self._packed.items():
            parameter = self.parameters[name]
            for entry in (parameter, parameter.grad, *self.optimizer.state.get(parameter, {}).values()):
                if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                    packed.clear(local(entry))
            hook = partial(_mask_gradient, packed=packed, gate=self.gate)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Mask gradients that were let through."""
        for name, packed in self._packed.items():
            if (gradient := self.parameters[name].grad) is not None:
                packed.clear(local(gradient))

    @torch.no_grad()
    def after_step(self) -> None:
        """Zero the dropped weights again: weight decay, momentum or a foreign optimiser may have moved them."""
        for name, packed in self._packed.items():
            packed.clear(local(self.parameters[name]))

    def release(self) -> None:
        """Remove the hooks; the weights stay as they are."""
        _remove(self._hooks)

    def leave(self) -> None:
        """The same, for good."""
        self.release()


def mask_of(name: str) -> str:
    """What the mask of this parameter is called in messages."""
    return f"the mask of {name!r}"


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


@torch.no_grad()
def _mask_gradient(parameter: Tensor, *, packed: PackedMask, gate: SimpleNamespace) -> None:
    # inf and NaN at a dropped weight become 0 as well, so that an overflow there cannot reach anything
    # a sparse one is refused at the step, by name
    if not gate.dense and parameter.grad is not None and not parameter.grad.is_sparse:
        packed.clear(local(parameter.grad))
