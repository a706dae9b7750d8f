"""RigL. Evci, Gale, Menick, Castro & Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
arXiv 1911.11134, algorithm 1.

Every ΔT updates each layer drops its smallest weights and grows as many where the gradient of the loss is largest. The
gradient is that of the step's own batch, at the masked weights. A move *replaces* the update of that step.

Where paper and code differ, the default is the code's: dropped connections may grow again in the same move (and are
then as if nothing had happened), and the first move comes before any training (``move_at_start=False``: not).
Differs from the authors' code in: ties are settled by a seeded generator instead of noise of 1e-5 on the magnitudes;
dropped weights are zeroed at once, not when they grow again; the cosine does not depend on a first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tombola.budgets import Budget, erk
from tombola.masks import Masks
from tombola.methods.moves import Moves, start_beside
from tombola.methods.protocol import Connections, Moment, Plan, Sparse


@dataclass(frozen=True, kw_only=True)
class RigL(Moves):
    """Drop by magnitude, grow by gradient.

    Args:
        average: mean of the gradients of this many steps up to the move instead of that of the move's own (1). Needs
            memory for the gradients of all layers for as long.

    For the other arguments see :class:`~tombola.methods.moves.Moves`.
    """

    average: int = 1

    @classmethod
    def itop(cls, *, density: float, budget: Budget = erk, every: int = 4000) -> RigL:
        """The settings of RigL-ITOP: fewer and larger moves, better with small batches, where steps are many.

        Liu et al., "Do We Actually Need Dense Over-Parameterization?", ICML 2021, arXiv 2102.02887: for ResNet-50 on
        ImageNet in batches of 128 ΔT is 4,000 and the drop fraction 0.5.
        """
        return cls(density=density, budget=budget, every=every, drop_fraction=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.average, int) and 1 <= self.average <= self.every + 1):
            raise ValueError(
                f"average is a number of steps from 1 to {self.every + 1} (every + 1), not {self.average!r}"
            )

    def plan(self, moment: Moment) -> Plan:
        """Move instead of the update, once in ``every + 1`` steps; the gradients of the steps before are of use too."""
        ahead = -moment.step % (self.every + 1)
        window = ahead < self.average and self.due(moment.later(ahead), period=self.every + 1)
        return Plan(gradient=window, instead=window and ahead == 0)

    def observe(self, gradients: Mapping[str, Tensor], memory: dict[str, Tensor], moment: Moment) -> None:
        """Add up the gradients of the window; ranks do not depend on its length."""
        for name, gradient in gradients.items():
            if self.average == 1:
                memory[name] = gradient
            elif name in memory:
                memory[name].add_(gradient)
            else:
                memory[name] = gradient.clone()

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
        moved = self.moved(weights, masks, lambda name: memory.pop(name).abs(), moment, generator)
        memory.clear()  # of layers that grew nothing
        return moved

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """Random masks with the budget's counts for dense parameters; sparse layers have theirs.

        Raises:
            ValueError: ``average`` or a pattern, which sparse layers do not go with.
        """
        if self.average > 1:
            raise ValueError(
                f"attach: RigL(average={self.average}) adds up gradients of all weights, which sparse layers never "
                "hold; leave average=1, and accumulate the gradients of several batches if one is too small"
            )
        return start_beside(self, self.pattern, parameters, layers, generator)

    def rewire(self, layers: Mapping[str, Connections], moment: Moment, *, generator: torch.Generator) -> None:
        """Each layer keeps its count."""
        self.rewired(layers, "gradient", moment, generator)
