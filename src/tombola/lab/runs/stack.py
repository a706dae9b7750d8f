"""Several models of one build computed as one, while each stays a model with parameters and buffers of its own.

These come to lie in common tensors, members in front: what is written into a parameter in place (by an optimiser, a
sparse method, ``load_state_dict``) is written into the common one, and no step gathers weights. The way forward is one
``torch.func.vmap``; the way back hands each parameter its part of the gradients through autograd, so that they
accumulate and hooks run as they do for a model alone. Losses and gradients are those but for rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tombola.lab.data import Batch
from tombola.lab.runs.train import ModelObjective


class Stack:
    """The models of ``objectives``, in training mode and of one :func:`layout`, as one.

    Raises:
        ValueError: a parameter or buffer does not lie in memory in the usual order.
    """

    def __init__(self, objectives: Sequence[ModelObjective]) -> None:
        self.models = [objective.model for objective in objectives]
        first = objectives[0]
        # channels-last is about the memory of a batch, which here has one dimension more
        self._objective = replace(first, mode=replace(first.mode, channels_last=False))
        self._whole = _Whole(self._objective)
        self._tied = _count(first.model, remove_duplicate=False) != _count(first.model)
        self._learnt: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}  # buffers, and parameters that do not learn
        self._members: list[Tensor] = []  # parameters that learn: of the first name those of all models, and so on
        self._places: list[tuple[Tensor, int]] = []
        for (name, first_one), *others in zip(*(_tensors(model) for model in self.models), strict=True):
            tensors = [first_one, *(tensor for _, tensor in others)]
            stacked = _moved(name, tensors)
            if first_one.requires_grad:
                self._learnt[f"model.{name}"] = stacked
                self._members += tensors
            else:
                self._fixed[f"model.{name}"] = stacked
            self._places += [(tensor, tensor.data_ptr()) for tensor in tensors]

    def holds(self, models: Sequence[nn.Module]) -> bool:
        """Whether it is of these models, and their parameters and buffers still lie where it put them."""
        same = len(models) == len(self.models) and all(a is b for a, b in zip(models, self.models, strict=True))
        return same and all(tensor.data_ptr() == place for tensor, place in self._places)

    def step(self, batches: Sequence[Batch]) -> tuple[Tensor, ...]:
        """The losses of the models on their batches, one for each, all of one shape; gradients are in place."""
        x, y = (torch.stack(part) for part in zip(*batches, strict=True))
        joined = _Joined.apply(len(self.models), *self._learnt.values(), *self._members)  # type: ignore[no-untyped-call]
        losses = vmap(self._loss)(dict(zip(self._learnt, joined, strict=True)), self._fixed, x, y)
        losses.sum().backward()
        return losses.detach().unbind()

    def _loss(self, learnt: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = functional_call(self._whole, learnt | fixed, (x, y), tie_weights=self._tied)
        return loss


def layout(model: nn.Module) -> Hashable:
    """What models have alike that can be stacked: modules, parameters and buffers by name, kind and shape."""
    modules = tuple((name, type(module), module.training) for name, module in model.named_modules())
    kinds = ((name, type(t), t.shape, t.dtype, t.device, t.requires_grad) for name, t in _tensors(model))
    return modules, tuple(kinds)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside it nothing is said of operations that vmap computes member by member: what that costs is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


class _Whole(nn.Module):
    """An objective as a module, so that what its model computes with can be exchanged in a call."""

    def __init__(self, objective: ModelObjective) -> None:
        super().__init__()
        self.model, self.objective = objective.model, objective

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        return self.objective(x, y)


class _Joined(torch.autograd.Function):
    """From parameters to the stacked ones that they are parts of: nothing to do forwards, and views backwards."""

    @staticmethod
    def forward(ctx: Any, members: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Of each name the stacked parameter, then of each name those of all members; the first are returned."""
        ctx.set_materialize_grads(False)
        ctx.members = members
        return tuple(stacked.view_as(stacked) for stacked in tensors[: len(tensors) // (members + 1)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """None for what was stacked, and for each parameter its part."""
        parts = ((None,) * ctx.members if stacked is None else stacked.unbind() for stacked in gradients)
        return (None, *(None for _ in gradients), *chain.from_iterable(parts))


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _count(model: nn.Module, *, remove_duplicate: bool = True) -> int:
    """Parameters and buffers by all of their names, or once each."""
    parameters = model.named_parameters(remove_duplicate=remove_duplicate)
    return sum(1 for _ in chain(parameters, model.named_buffers(remove_duplicate=remove_duplicate)))


@torch.no_grad()
def _moved(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one new tensor, whose parts they are from now on."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError(f"{name} does not lie in memory in the usual order")
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, stacked.unbind(), strict=True):
        tensor.data = part
    return stacked
