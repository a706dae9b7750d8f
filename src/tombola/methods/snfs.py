"""Sparse Networks From Scratch (SNFS). Dettmers & Zettlemoyer, arXiv 1907.04840; as a baseline of arXiv 1911.11134.

Like RigL, but connections grow where the exponential mean of the dense gradients is largest, which takes the gradient
of all weights at every step; a move comes after an update. Connections are not moved from one layer to another, as in
the RigL authors' code and unlike in the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tombola.masks import Masks
from tombola.methods.moves import Moves
from tombola.methods.protocol import Moment, Plan, is_number


@dataclass(frozen=True, kw_only=True)
class SNFS(Moves):
    """Drop by magnitude, grow by the momentum of the gradient.

    Args:
        momentum: μ of the mean m ← μ·m + (1 − μ)·g.

    For the other arguments see :class:`~tombola.methods.moves.Moves`. Needs memory for one more copy of the weights.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum must be 0 or more and below 1, not {self.momentum!r}")

    def plan(self, moment: Moment) -> Plan:
        """Dense gradients as long as there is a move to come; moves after the update."""
        return Plan(gradient=moment.step < self.until * moment.steps, after=self.due(moment, period=self.every))

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """m ← μ·m + (1 − μ)·g."""
        for name, gradient in gradients.items():
            if name in memory:
                memory[name].lerp_(gradient, 1 - self.momentum)
            else:
                memory[name] = gradient * (1 - self.momentum)

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
        return self.moved(weights, masks, lambda name: memory[name].abs(), moment, generator)
