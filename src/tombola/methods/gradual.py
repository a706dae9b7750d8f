"""Gradual magnitude pruning (GMP). Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878.

From dense to sparse: after every ΔT-th update the smallest of the surviving weights go, so many that the density
follows d(t) = d + (d₀ − d)·(1 − p)³, where p is the share of the pruning phase that is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.budgets import Budget, global_
from tombola.masks import Masks
from tombola.methods.moves import best_masks
from tombola.methods.protocol import Moment, Plan, check_density, is_number
from tombola.patterns import NM, Pattern
from tombola.schedules import cubic


@dataclass(frozen=True, kw_only=True)
class GradualMagnitude:
    """Prune the smallest weights bit by bit while training.

    Args:
        density: share of the weights that is kept in the end, all masked layers together.
        budget: ``(shapes, density) -> counts``; ``global_`` ranks the weights of all layers together.
        initial_density: d₀, that of the first pruning. Below 1 the schedule begins with a jump (accelerated).
        every: ΔT, updates from one pruning to the next.
        begin: share of the steps after which pruning begins.
        until: share of the steps at which the density is reached.
        pattern: what masks must fit, with a budget for single layers; not N:M, which has but one density.

    Raises:
        ValueError: a value outside its range.
    """

    shards: ClassVar[bool] = True

    density: float
    budget: Budget = global_
    initial_density: float = 1.0
    every: int = 100
    begin: float = 0.25
    until: float = 0.75
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        check_density(self.initial_density, name="initial_density")
        if self.initial_density < self.density:
            raise ValueError(f"initial_density {self.initial_density} is below density {self.density}")
        if self.pattern is not None and (self.budget is global_ or isinstance(self.pattern, NM)):
            raise ValueError("a pattern needs a budget for single layers, budget=uniform or erk, and cannot be N:M")
        if not (isinstance(self.every, int) and self.every >= 1):
            raise ValueError(f"every is a number of steps, at least 1, not {self.every!r}")
        if not (is_number(self.begin) and is_number(self.until) and 0 <= self.begin < self.until <= 1):
            shares = f"begin={self.begin!r}, until={self.until!r}"
            raise ValueError(f"begin and until are shares of the steps, 0 ≤ begin < until ≤ 1, not {shares}")

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Everything."""
        return Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()})

    def density_at(self, moment: Moment) -> float:
        """d(t), after the update that follows ``moment``."""
        begin, end = self._phase(moment)
        return cubic(self.initial_density, self.density, end, begin=begin)(moment.step + 1)

    def plan(self, moment: Moment) -> Plan:
        """Prune after the first update of the phase, every ``every`` from then on, and after its last."""
        begin, end = self._phase(moment)
        done = moment.step + 1
        return Plan(after=(begin <= done < end and (done - begin) % self.every == 0) or done == end)

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """Nothing to remember."""

    def move(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        memory: dict[str, Tensor],
        moment: Moment,
        *,
        generator: torch.Generator,
    ) -> Masks:
        """The largest of the surviving weights."""
        magnitudes = {name: torch.where(mask, weights[name].detach().abs(), -1.0) for name, mask in masks.items()}
        return best_masks(magnitudes, self.budget, self.density_at(moment), generator, self.pattern)

    def _phase(self, moment: Moment) -> tuple[int, int]:
        """The updates after which pruning begins and ends."""
        end = max(1, round(self.until * moment.steps))
        return min(max(1, round(self.begin * moment.steps)), end), end
