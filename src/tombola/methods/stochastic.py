"""Stochastic Sparsification (SS) and its iterative form (ISS). Algorithm 2 of the ICLR-2020 submission of Savarese,
Silva & Maire, arXiv 1912.04427; one round of it with frozen weights is the supermask of Zhou et al. 2019.

The mask is a Bernoulli sample, m ~ Bernoulli(σ(s)), drawn anew for each optimiser step; its gradient passes straight
through to σ(s). Training minimises L(f(x; m⊙w)) + λ·‖σ(s)‖₁. Between rounds s ← −∞ wherever s_T < s₀, for good, and
the weights are rewound. The outcome is one more sample.

Differs from Zhou et al.'s code: they draw also at test time and average over 10 samples; here the outcome is one mask
drawn from the attachment's seed, the same each time it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.masks import Masks
from tombola.methods.protocol import Moment, ScoreOptimizer, is_number
from tombola.sharded import drawn, total

OUTCOME = 0x9E3779B97F4A7C15 >> 1  # turns a seed into that of another stream than the one masks of training come from


@dataclass(frozen=True, kw_only=True)
class StochasticSparsification:
    """Learn the probability of keeping each weight.

    Args:
        initial_score: s₀; weights start kept with probability σ(s₀). The paper's ticket search uses 1.
        penalty: λ on the sum of the probabilities.
        rewind: bring the weights back to the rewind point between rounds (Algorithm 2 does).
        train_weights: False freezes the masked weights: the supermask task.
        score_optimizer: makes the optimiser of the scores from parameter groups. The paper's is
            ``functools.partial(torch.optim.SGD, lr=20.0)`` for tickets, lr=100.0 for supermasks. Schedules of the
            user's do not reach it; it takes its own, as ``attachment.score_optimizer``. None: the class of the user's,
            with its settings and learning rate (followed step by step) but no weight decay.

    Raises:
        ValueError: a value outside its range.
    """

    draws: ClassVar[bool] = True
    shards: ClassVar[bool] = True

    initial_score: float = 1.0
    penalty: float = 1e-8
    rewind: bool = True
    train_weights: bool = True
    score_optimizer: ScoreOptimizer | None = None

    def __post_init__(self) -> None:
        if not is_number(self.initial_score):
            raise ValueError(f"initial_score must be a finite number, not {self.initial_score!r}")
        if not (is_number(self.penalty) and self.penalty >= 0):
            raise ValueError(f"penalty must be a number, 0 or more, not {self.penalty!r}")

    def scores(self, weight: Tensor) -> Tensor:
        """s₀ for each weight, in float32 or wider."""
        return torch.full_like(weight, self.initial_score, dtype=torch.promote_types(weight.dtype, torch.float32))

    def temperature(self, moment: Moment) -> float:
        """Always 1."""
        return 1.0

    def mask(self, score: Tensor, moment: Moment, *, generator: torch.Generator, out: Tensor) -> Tensor:
        """A sample of Bernoulli(σ(s))."""
        return torch.bernoulli(score.sigmoid(), generator=generator, out=out)

    def sigmoid(self, moment: Moment) -> None:
        """The mask is a sample."""

    def pull_back(
        self, grad: Tensor, weight: Tensor, score: Tensor, mask: Tensor, moment: Moment, *, scratch: Tensor
    ) -> Tensor:
        """(g·w + λ)·σ(s)·(1 − σ(s)): straight through the sample."""
        price = torch.full((), self.penalty, dtype=scratch.dtype, device=scratch.device)
        torch.addcmul(price, grad, weight, out=scratch)
        grad.mul_(mask)
        torch.sigmoid(score, out=mask)
        return torch.ops.aten.sigmoid_backward.grad_input(scratch, mask, grad_input=mask)  # type: ignore[no-any-return]

    def penalty_of(self, scores: Mapping[str, Tensor], moment: Moment) -> float:
        """λ·Σσ(s)."""
        return self.penalty * sum(float(total(score.sigmoid())) for score in scores.values())

    def surviving_scale(self) -> float:
        """Always 1."""
        return 1.0

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        """Nothing to adjust."""

    def kept(self, scores: Mapping[str, Tensor], *, seed: int) -> Masks:
        """One sample of Bernoulli(σ(s)), drawn on the CPU so that it depends on scores and seed alone."""
        generator = torch.Generator().manual_seed(seed ^ OUTCOME)
        return Masks({n: drawn(score, generator, dtype=score.dtype) < score.sigmoid() for n, score in scores.items()})

    def harden_step(self, steps: int) -> int | None:
        """Never."""
        return None

    def in_round(self, index: int) -> StochasticSparsification:
        """The same in every round."""
        return self

    def next_scores(self, score: Tensor, first: Tensor) -> Tensor:
        """−∞ wherever the score fell below its very first value; as it is elsewhere."""
        return torch.where(score < first, -torch.inf, score)
