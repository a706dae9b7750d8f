"""Static: a random mask that never moves, the weakest baseline of arXiv 1911.11134 (``scratch`` in its code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.budgets import Budget, erk
from tombola.masks import Masks
from tombola.methods.moves import random_masks, start_beside
from tombola.methods.protocol import Sparse, check_density
from tombola.patterns import Pattern


@dataclass(frozen=True, kw_only=True)
class Static:
    """Train under random masks.

    Args:
        density: share of the weights that is kept, all masked layers together.
        budget: ``(shapes, density) -> counts``, how many each layer keeps.
        pattern: what masks must fit, for instance ``NM(2, 4)``.
    """

    shards: ClassVar[bool] = True

    density: float
    budget: Budget = erk
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        check_density(self.density)

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Random masks with the budget's counts."""
        return random_masks(parameters, self.budget, self.density, generator, self.pattern)

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """Random masks with the budget's counts for dense parameters; sparse layers have theirs."""
        return start_beside(self, self.pattern, parameters, layers, generator)
