"""GraNet. Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
arXiv 2106.10404.

Gradual magnitude pruning with RigL's moves: after every ΔT-th update the smallest weights of all layers together go, so
many that the density follows a cubic schedule, and then each layer drops its smallest and grows as many where the
gradient is largest. It begins at ``initial_density`` (0.5: sparse to sparser; 1: dense to sparse). As in the authors'
code a move comes after the update, with the gradient of that update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.budgets import global_
from tombola.masks import Masks, largest
from tombola.methods.moves import Moves, best_masks, random_masks, start_beside
from tombola.methods.protocol import Connections, Moment, Plan, Sparse, check_density, is_number
from tombola.schedules import cubic


@dataclass(frozen=True, kw_only=True)
class GraNet(Moves):
    """Prune gradually, drop by magnitude, grow by gradient.

    Args:
        initial_density: density of the random masks it begins with, by ``budget``; above ``density``.
        prune_until: share of the steps at which ``density`` is reached; connections move on until ``until``.

    For the other arguments see :class:`~tombola.methods.moves.Moves`. The budget shapes the beginning alone: pruning
    ranks the weights of all layers together.

    Raises:
        ValueError: a value outside its range.
    """

    prunes: ClassVar[bool] = True

    initial_density: float = 0.5
    prune_until: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.initial_density, name="initial_density")
        if self.pattern is not None:
            raise ValueError("GraNet ranks the weights of all layers together, so it takes no pattern")
        if self.initial_density < self.density:
            raise ValueError(f"initial_density {self.initial_density} is below density {self.density}")
        if not (is_number(self.prune_until) and 0 < self.prune_until <= self.until):
            raise ValueError(
                f"prune_until is a share of the steps, above 0 and at most until={self.until}, not {self.prune_until!r}"
            )

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Random masks of the initial density."""
        return random_masks(parameters, self.budget, self.initial_density, generator)

    def density_at(self, moment: Moment) -> float:
        """The density after a move at ``moment``."""
        end = max(1, round(self.prune_until * moment.steps))
        return cubic(self.initial_density, self.density, end)(moment.step + 1)

    def plan(self, moment: Moment) -> Plan:
        """A move after every ``every``-th update, and after the one at which the density is reached."""
        last = moment.step + 1 == max(1, round(self.prune_until * moment.steps))
        due = last or self.due(moment, period=self.every)
        return Plan(gradient=due, after=due)

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """The gradients of the update that a move follows."""
        memory.update({name: gradient.clone() for name, gradient in gradients.items()})

    def move(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        memory: dict[str, Tensor],
        moment: Moment,
        *,
        generator: torch.Generator,
    ) -> Masks:
        """Prune over all layers, then move within each."""
        magnitudes = {name: torch.where(mask, weights[name].detach().abs(), -1.0) for name, mask in masks.items()}
        left = best_masks(magnitudes, global_, min(self.density_at(moment), masks.density), generator)
        moved = self.moved(weights, left, lambda name: memory.pop(name).abs(), moment, generator)
        memory.clear()  # of layers that grew nothing
        return moved

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """Random masks of the initial density for dense parameters; sparse layers begin with what they have."""
        return start_beside(self, None, parameters, layers, generator)

    def rewire(self, layers: Mapping[str, Connections], moment: Moment, *, generator: torch.Generator) -> None:
        """Prune over all layers, down to the schedule, then move within each."""
        counts, size = [layer.count for layer in layers.values()], sum(layer.size for layer in layers.values())
        left = round(min(self.density_at(moment), sum(counts) / size) * size)
        everything = torch.cat([layer.magnitudes() for layer in layers.values()])
        chosen = largest(everything, left, generator=generator).split(counts)
        for layer, mine in zip(layers.values(), chosen, strict=True):
            layer.keep(mine)
        self.rewired(layers, "gradient", moment, generator)
