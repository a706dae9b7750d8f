"""Optimisers and learning-rate schedules as plain data, with the names and meanings that they have in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Parameters: TypeAlias = Iterable[Tensor] | list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, ``torch.optim.SGD``."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be 0 or more and below 1, not {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false when momentum is 0")

    def make(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimiser of ``parameters`` (tensors, or groups of them)."""
        listed: list[Any] = list(parameters)
        return torch.optim.SGD(
            listed, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
            fused=_fusible(listed),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Adam:
    """``torch.optim.Adam``. Its epsilon is part of Continuous Sparsification where the loss's gradient vanishes."""

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        _check_adam(self.beta1, self.beta2, self.eps)

    def make(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimiser of ``parameters`` (tensors, or groups of them)."""
        listed: list[Any] = list(parameters)
        return torch.optim.Adam(
            listed, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=self.weight_decay,
            fused=_fusible(listed),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """``torch.optim.AdamW``: Adam with decoupled weight decay."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        _check_adam(self.beta1, self.beta2, self.eps)

    def make(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimiser of ``parameters`` (tensors, or groups of them)."""
        listed: list[Any] = list(parameters)
        return torch.optim.AdamW(
            listed, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=self.weight_decay,
            fused=_fusible(listed),
        )  # fmt: skip


Optimizer: TypeAlias = SGD | Adam | AdamW


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The optimiser's learning rate throughout."""

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in ``epoch`` (0, 1, …) of ``epochs``."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Drops:
    """The learning rate times ``by`` from each epoch of ``epochs`` (0, 1, …) on. ResNet-20 of the papers: 56, 71."""

    epochs: tuple[int, ...]
    by: float = 0.1

    def __post_init__(self) -> None:
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 1:
            raise ValueError(f"epochs must be rising whole numbers from 1 up, not {list(self.epochs)}")
        if not 0 < self.by < 1:
            raise ValueError(f"by must be between 0 and 1, not {self.by}")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in ``epoch`` (0, 1, …)."""
        return float(self.by ** sum(epoch >= drop for drop in self.epochs))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the optimiser's learning rate down to ``floor`` times it, an epoch at a time."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, not {self.floor}")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in ``epoch`` (0, 1, …) of ``epochs``."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """A straight line from 0 to the optimiser's learning rate over the first epochs, and ``then`` another schedule.

    The learning rate changes from one epoch to the next: each has that of the line at its middle.
    """

    epochs: int
    then: Constant | Drops | Cosine

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be 1 or more, not {self.epochs}")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by in ``epoch`` (0, 1, …) of ``epochs``."""
        return min(1.0, (epoch + 0.5) / self.epochs) * self.then.factor(epoch, epochs)


Schedule: TypeAlias = Constant | Drops | Cosine | WarmUp


def _fusible(parameters: list[Any]) -> bool:
    """Whether PyTorch has its optimisers as one kernel for these: fewer passes over memory, and over sparse state Adam
    is not ten times slower, as it is with a square root at a time of numbers that are mostly zeros."""
    tensors = [p for entry in parameters for p in (entry["params"] if isinstance(entry, dict) else [entry])]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)


def _check_rates(lr: float, weight_decay: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be above 0, not {lr}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be 0 or more, not {weight_decay}")


def _check_adam(beta1: float, beta2: float, eps: float) -> None:
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} must be 0 or more and below 1, not {beta}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be above 0, not {eps}")
