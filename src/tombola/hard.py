"""Holding weights at zero under masks, whatever the optimiser does. Part of ``attach``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import cache, partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tombola.masks import Masks

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = {"cpu": 2**18}  # weights at a time: what they unpack to stays in a CPU's cache
_LARGE_CHUNK = 2**25


class HardState:
    """Masks on parameters: gradients are masked as they accumulate, dropped weights are zeroed after each step.

    A mask takes one bit a weight. ``gate.dense`` lets gradients accumulate unmasked.
    """

    def __init__(self, parameters: Mapping[str, Parameter], optimizer: Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.gate = SimpleNamespace(dense=False)
        self._packed: dict[str, PackedMask] = {}
        self._hooks: list[RemovableHandle] = []
        # not __del__: a handle in a reference cycle has forgotten its hook by the time that is called
        weakref.finalize(self, _remove, self._hooks).atexit = False

    @property
    def masks(self) -> Masks:
        """The masks that are held."""
        everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        return Masks(everything | {name: packed.mask() for name, packed in self._packed.items()})

    @torch.no_grad()
    def hold(self, masks: Masks) -> None:
        """Take ``masks``: clear weights, gradients and optimiser state where they are False, and keep them so."""
        self.release()
        # a layer that keeps every weight needs no work at all
        sparse = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        self._packed = {name: PackedMask(mask, self.parameters[name]) for name, mask in sparse.items()}
        for name, packed in self._packed.items():
            parameter = self.parameters[name]
            for entry in (parameter, parameter.grad, *self.optimizer.state.get(parameter, {}).values()):
                if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                    packed.clear(entry)
            hook = partial(_mask_gradient, packed=packed, gate=self.gate)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Mask gradients that were let through."""
        for name, packed in self._packed.items():
            if (gradient := self.parameters[name].grad) is not None:
                packed.clear(gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        """Zero the dropped weights again: weight decay, momentum or a foreign optimiser may have moved them."""
        for name, packed in self._packed.items():
            packed.clear(self.parameters[name])

    def release(self) -> None:
        """Remove the hooks; the weights stay as they are."""
        _remove(self._hooks)


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


class PackedMask:
    """The mask of one parameter, a bit for each weight in the order of its memory."""

    def __init__(self, mask: Tensor, parameter: Tensor) -> None:
        self.shape, self.stride = parameter.shape, _dense_stride(parameter)
        ordered = torch.empty_like(parameter, dtype=torch.bool, requires_grad=False).copy_(mask)
        bits = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
        bits[: mask.numel()] = _flat(ordered) if self.stride else mask.flatten()
        place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
        self.bytes = (bits.view(-1, 8) * place).sum(1, dtype=torch.uint8)

    def mask(self) -> Tensor:
        """The mask as a bool tensor."""
        bits = _unpacking(torch.int8, self.bytes.device)[self.bytes.int()].flatten()[: self.shape.numel()] != 0
        return bits.as_strided(self.shape, self.stride) if self.stride else bits.view(self.shape)

    def clear(self, tensor: Tensor) -> None:
        """Zero ``tensor``, of the parameter's shape, where the weight is dropped, also if it is inf or NaN there.

        A bitwise *and* with all bits or none does that in a fraction of the time of ``masked_fill_`` on a CPU.
        """
        if self.stride is None or _dense_stride(tensor) != self.stride:
            tensor.masked_fill_(~self.mask(), 0)
            return
        values = _flat(tensor)
        values = values.view(_INTEGERS[values.element_size()])
        table = _unpacking(values.dtype, values.device)
        chunk = _CHUNK.get(values.device.type, _LARGE_CHUNK)
        for begin in range(0, values.numel(), chunk):
            part = values[begin : begin + chunk]
            bits = torch.index_select(table, 0, self.bytes[begin // 8 : (begin + chunk) // 8].int())
            part.bitwise_and_(bits.flatten()[: part.numel()])


def _dense_stride(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor that fills its memory without gaps, in whatever order; None for any other."""
    strides = tuple(s if size > 1 else 0 for size, s in zip(tensor.shape, tensor.stride(), strict=True))
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1
    return strides if span == tensor.numel() else None


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


@cache
def _unpacking(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 8): for each byte its bits, lowest first, as integers of all bits or none."""
    byte = torch.arange(256, device=device).unsqueeze(1)
    return (byte >> torch.arange(8, device=device) & 1).to(dtype).neg_()


@torch.no_grad()
def _mask_gradient(parameter: Tensor, *, packed: PackedMask, gate: SimpleNamespace) -> None:
    # inf and NaN at a dropped weight become 0 as well, so that an overflow there cannot reach anything
    # a sparse one is refused at the step, by name
    if not gate.dense and parameter.grad is not None and not parameter.grad.is_sparse:
        packed.clear(parameter.grad)
