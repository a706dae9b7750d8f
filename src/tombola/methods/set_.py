"""Sparse Evolutionary Training (SET). Mocanu et al., Nature Communications 2018; as a baseline of arXiv 1911.11134.

After every ΔT-th update each layer drops its smallest weights and grows as many at random among those that are missing
then; as in the RigL authors' code, one that was just dropped may be among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tombola.masks import Masks
from tombola.methods.moves import Moves, start_beside
from tombola.methods.protocol import Connections, Moment, Plan, Sparse
from tombola.sharded import drawn


@dataclass(frozen=True, kw_only=True)
class SET(Moves):
    """Drop by magnitude, grow at random. For the arguments see :class:`~tombola.methods.moves.Moves`."""

    def plan(self, moment: Moment) -> Plan:
        """Move after the update; no gradient of missing connections is ever needed."""
        return Plan(after=self.due(moment, period=self.every))

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
        """Each layer keeps its count."""

        def growth(name: str) -> Tensor:
            return drawn(masks[name], generator)

        return self.moved(weights, masks, growth, moment, generator)

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """Random masks with the budget's counts for dense parameters; sparse layers have theirs."""
        return start_beside(self, self.pattern, parameters, layers, generator)

    def rewire(self, layers: Mapping[str, Connections], moment: Moment, *, generator: torch.Generator) -> None:
        """Each layer keeps its count."""
        self.rewired(layers, "chance", moment, generator)
