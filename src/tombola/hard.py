"""Holding weights at zero under fixed masks, whatever the optimiser does. Part of ``attach``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tombola.masks import Masks


class HardState:
    """Masks on parameters: gradients are masked as they accumulate, dropped weights are zeroed after each step."""

    def __init__(self, parameters: Mapping[str, Parameter], optimizer: Optimizer, masks: Masks) -> None:
        self.parameters = {name: parameters[name] for name in masks}
        self.optimizer = optimizer
        self.masks = masks
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.hold(masks)

    @torch.no_grad()
    def hold(self, masks: Masks) -> None:
        """Take ``masks``: clear weights, gradients and optimiser state where they are False, and keep them so."""
        self.release()
        self.masks = masks
        # a layer that keeps every weight needs no work at all
        self._dropped = {name: ~mask for name, mask in masks.items() if not bool(mask.all())}
        for name, dropped in self._dropped.items():
            parameter = self.parameters[name]
            parameter.masked_fill_(dropped, 0)
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dropped, 0)
            for entry in self.optimizer.state.get(parameter, {}).values():
                if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                    entry.masked_fill_(dropped, 0)
            hook = partial(_mask_gradient, dropped=dropped)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    @torch.no_grad()
    def after_step(self) -> None:
        """Zero the dropped weights again: weight decay, momentum or a foreign optimiser may have moved them."""
        for name, dropped in self._dropped.items():
            self.parameters[name].masked_fill_(dropped, 0)

    def release(self) -> None:
        """Remove the hooks; the weights stay as they are."""
        while self._hooks:
            self._hooks.pop().remove()

    def __del__(self) -> None:
        self.release()


def _mask_gradient(parameter: Tensor, *, dropped: Tensor) -> None:
    # masked_fill and not a product: an overflow (inf, NaN) at a dropped weight must not reach anything
    if parameter.grad is not None:
        parameter.grad.masked_fill_(dropped, 0)
