"""What a method must offer so that ``attach`` can run it. A method is a frozen dataclass; state lives in ``attach``.

A *hard* method is a set of masks, which a *dynamic* one changes while training. A *soft* method multiplies each weight
w by a mask m(s, t) of a learned score s; its effective weight is w·m. The chain rule gives the two gradients from g,
that of the effective weight: g·m for w, and ``pull_back`` for s.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from tombola.masks import Masks
from tombola.sigmoid import Sigmoid

ScoreOptimizer: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]


def is_number(value: object) -> bool:
    """Whether a setting is a finite number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_density(density: object, *, name: str = "density") -> None:
    """Raise ValueError unless ``density`` is a number above 0 and at most 1."""
    if not (is_number(density) and 0 < density <= 1):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number above 0 and at most 1, not {density!r}")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where training stands: ``step`` optimiser steps of ``steps`` are done; ``weights`` weights have a score."""

    step: int
    steps: int
    steps_per_epoch: int | None
    weights: int

    def later(self, steps: int) -> Moment:
        """The moment ``steps`` optimiser steps from here."""
        return replace(self, step=self.step + steps)


@runtime_checkable
class HardMethod(Protocol):
    """A method whose masks are bits from the first step on.

    Sharded parameters, and their gradients and masks, are DTensors; :mod:`tombola.sharded` tells what to do with them.
    A method that can has ``shards = True``; others are refused a sharded model.
    """

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Masks to begin with, for exactly these parameters; random ones are drawn from the (CPU) ``generator``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a dynamic method does around one optimiser step.

    Attributes:
        gradient: it wants the gradient of all weights, missing ones too; ``p.grad`` is dense before this step.
        instead: masks move instead of the step, which leaves weights and optimiser as they are.
        after: masks move after the step.
    """

    gradient: bool = False
    instead: bool = False
    after: bool = False


@runtime_checkable
class DynamicMethod(HardMethod, Protocol):
    """A hard method whose masks change while training."""

    def plan(self, moment: Moment) -> Plan:
        """What to do around the optimiser step that follows ``moment``."""

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """Take note, in ``memory``, of the dense gradients that the plan asked for; they are not copied for it."""

    def move(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        memory: dict[str, Tensor],
        moment: Moment,
        *,
        generator: torch.Generator,
    ) -> Masks:
        """The masks from now on. What ``memory`` holds any longer than needed is stored and saved."""


class Sparse(Protocol):
    """A sparse layer as far as methods know it.

    Attributes:
        shape: of the dense layer's weight.
    """

    shape: torch.Size

    def mask(self) -> Tensor:
        """Where it has connections: bool, of this shape."""


class Connections(Protocol):
    """The connections of one layer, sparse or under a mask, as a method moves them: nothing of the dense layer's size.

    Attributes:
        size: weights of the layer when dense.
    """

    size: int

    @property
    def count(self) -> int:
        """Connections that there are."""

    def magnitudes(self) -> Tensor:
        """(count,): their absolute weights; before anything is grown."""

    def keep(self, chosen: Tensor) -> None:
        """Drop those that are False in ``chosen``, (count,)."""

    def grow(self, number: int, *, by: Literal["gradient", "chance"], generator: torch.Generator) -> None:
        """Add the ``number`` best of the missing ones; what was dropped is among the candidates.

        One that was there before keeps its weight and its optimiser state.
        """


@runtime_checkable
class SparseMethod(HardMethod, Protocol):
    """A hard method that also works on sparse layers, which begin with the connections that they have."""

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """Masks to begin with for the dense ``parameters``, and None for each sparse layer that it works on.

        Args:
            parameters: the dense ones that are to be masked; maybe none.
            layers: the sparse ones, by the names that their weights would have if they were dense.
            generator: on the CPU.
        """


@runtime_checkable
class RewiringMethod(DynamicMethod, SparseMethod, Protocol):
    """A dynamic method that can move the connections of sparse layers, for which its plans are as for masks.

    Attributes:
        prunes: whether layers lose connections for good.
    """

    prunes: ClassVar[bool]

    def rewire(self, layers: Mapping[str, Connections], moment: Moment, *, generator: torch.Generator) -> None:
        """Move the connections of all layers, as ``move`` does."""


@runtime_checkable
class SoftMethod(Protocol):
    """A method that learns a score for each weight.

    ``mask`` and ``pull_back`` are elementwise: of a sharded parameter they get this rank's part, all else a DTensor
    (see :class:`HardMethod`).
    """

    @property
    def draws(self) -> bool:
        """Whether ``mask`` draws random numbers; of a sharded parameter it is then called with all of it."""

    @property
    def train_weights(self) -> bool:
        """False: the weights stay as they are and only scores (and unmasked parameters) learn."""

    @property
    def score_optimizer(self) -> ScoreOptimizer | None:
        """Makes the scores' optimiser from their parameter groups; None: the sibling of the user's."""

    def scores(self, weight: Tensor) -> Tensor:
        """Scores of ``weight``'s shape to begin with, float32 or wider."""

    def mask(self, score: Tensor, moment: Moment, *, generator: torch.Generator, out: Tensor) -> Tensor:
        """Write the multiplier of each weight at ``moment`` into ``out`` and return it."""

    def sigmoid(self, moment: Moment) -> Sigmoid | None:
        """The same as a sigmoid of the score, if it is one: it is then computed in fewer sweeps where possible."""

    def pull_back(
        self, grad: Tensor, weight: Tensor, score: Tensor, mask: Tensor, moment: Moment, *, scratch: Tensor
    ) -> Tensor:
        """Turn ``grad``, the loss's at the effective weight, into that of w in place; return that of the score.

        The penalty's gradient is in the returned one. ``mask`` and ``scratch`` may be overwritten, and the result may
        be in the memory of ``mask``, not of ``scratch``.
        """

    def penalty_of(self, scores: Mapping[str, Tensor], moment: Moment) -> float:
        """The penalty's value."""

    def temperature(self, moment: Moment) -> float:
        """What scores are multiplied by inside the sigmoid at ``moment``."""

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        """Change the scores in place after each step, for instance to steer them toward a density."""

    def kept(self, scores: Mapping[str, Tensor], *, seed: int) -> Masks:
        """The hard masks that these scores stand for."""

    def surviving_scale(self) -> float:
        """What a kept weight is multiplied by once the mask is hard."""

    def harden_step(self, steps: int) -> int | None:
        """The step from which on the mask is hard and only the surviving weights train; None: never."""


@runtime_checkable
class PruningMethod(Protocol):
    """A method that trains under fixed masks and prunes between rounds: IMP."""

    @property
    def rewind(self) -> bool:
        """Whether weights go back to the rewind point between rounds."""

    def check(self, masks: Masks) -> None:
        """Raise ValueError if the method does not go with these layers."""

    def prune(self, weights: Mapping[str, Tensor], masks: Masks) -> Masks:
        """The masks after a round."""


@runtime_checkable
class RoundMethod(SoftMethod, Protocol):
    """A method with scores that goes through rounds: Continuous and Stochastic Sparsification."""

    @property
    def rewind(self) -> bool:
        """Whether weights go back to the rewind point between rounds."""

    def in_round(self, index: int) -> RoundMethod:
        """The method as it is in round ``index``, from 1."""

    def next_scores(self, score: Tensor, first: Tensor) -> Tensor:
        """Scores to begin the next round with."""


SearchMethod: TypeAlias = PruningMethod | RoundMethod
