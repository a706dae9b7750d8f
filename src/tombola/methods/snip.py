"""SNIP. Lee, Ajanthan & Torr, ICLR 2019, arXiv 1810.02340; as a baseline of arXiv 1911.11134.

The gradients of the first step decide once and for all: the weights with the largest |g·w| stay. That step makes no
update. |g| alone, a mistake that the RigL authors report of themselves, does worse than random masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.budgets import Budget, erk
from tombola.masks import Masks
from tombola.methods.moves import best_masks
from tombola.methods.protocol import Moment, Plan, check_density
from tombola.patterns import Pattern


@dataclass(frozen=True, kw_only=True)
class SNIP:
    """Prune once, before training, by the effect on the loss.

    Args:
        density: share of the weights that is kept, all masked layers together.
        budget: ``(shapes, density) -> counts``. ``global_`` ranks the weights of all layers together, as SNIP's
            authors do; the default ranks within layers, as the comparison of the RigL paper.
        pattern: what masks must fit, with a budget for single layers.
    """

    shards: ClassVar[bool] = True

    density: float
    budget: Budget = erk
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        check_density(self.density)

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Everything, until the first gradient is there."""
        return Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()})

    def plan(self, moment: Moment) -> Plan:
        """The first step prunes instead of updating."""
        return Plan(gradient=moment.step == 0, instead=moment.step == 0)

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """The gradients of the first step."""
        memory.update(gradients)

    def move(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        memory: dict[str, Tensor],
        moment: Moment,
        *,
        generator: torch.Generator,
    ) -> Masks:
        """The largest |g·w|."""
        saliency = {name: (memory.pop(name) * weight.detach()).abs() for name, weight in weights.items()}
        return best_masks(saliency, self.budget, self.density, generator, self.pattern)
