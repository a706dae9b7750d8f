"""Continuous Sparsification. Savarese, Silva & Maire, "Winning the Lottery with Continuous Sparsification",
arXiv 1912.04427 (Algorithm 3 of the ICLR-2020 submission; NeurIPS 2020).

Each weight w has a score s; training minimises L(f(x; σ(βs)⊙w)) + λ·‖σ(βs)‖₁ over w and s together while the
temperature β rises exponentially from 1, so that the soft mask σ(βs) hardens into 1[s > 0]. Between rounds
s ← min(β_T·s_T, s₀) and β ← 1.

Differs from the authors' code, unless asked otherwise, in:
  * the mask is σ(βs), as in the paper; the code's mask σ(βs)/σ(s₀) is ``scale="initial"``. It trains like the dense
    network at first, but survivors end as w/σ(s₀), twice w at s₀ = 0, which only batch norm forgives;
  * β rises at each step; in the code once an epoch, as β_T^(e/(E−1)): ``anneal="epoch"``;
  * between rounds the code forgets the temperature and computes min(1·s_T, s₀), so that removed weights come back:
    ``round_rule="code"``;
  * weights left are counted as s > 0; the code counts non-zeros of the last soft mask, which is fewer zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tombola.masks import Masks
from tombola.methods.density import steer
from tombola.methods.protocol import Moment, ScoreOptimizer, is_number
from tombola.schedules import exponential, staircase
from tombola.sharded import total
from tombola.sigmoid import Sigmoid


@dataclass(frozen=True, kw_only=True)
class ContinuousSparsification:
    """Learn which weights to keep by annealing a sigmoid of one score per weight.

    Args:
        initial_score: s₀. The dial of ticket search: below 0 sparser, above 0 denser. The papers use −0.3 … 0.3.
        penalty: λ. In the papers' units (``penalty_on="sum"``) 1e-8 and practically inert, or, with
            ``penalty_on="mean"``, the price of a mask that is 1 everywhere, of the order of the loss.
        penalty_on: λ times the sum of the mask over all weights, or times its mean.
        final_temperature: β at the last step (of the soft part).
        anneal: raise β at each ``"step"`` or each ``"epoch"`` (then attach needs ``steps_per_epoch``).
        scale: ``"none"``: mask σ(βs). ``"initial"``: mask σ(βs)/σ(s₀), as the authors' code.
        round_rule: scores between rounds: ``"paper"`` min(β_T·s_T, s₀), ``"code"`` min(s_T, s₀).
        rewind: bring the weights back to the rewind point between rounds (not done in the papers' ResNet runs).
        density: share d of weights to keep: at the end of a round (or at ``harden_at``) exactly
            max(1, round(d·weights)) of them are kept, whatever s₀ and λ; a tuple gives each round's. While training,
            one offset for all scores holds the density between d and a ceiling that falls from 1 to d over 70 % of the
            steps; no layer is emptied that need not be. How, and what it costs (next to nothing):
            :mod:`tombola.methods.density`. None: what s₀, λ and the loss lead to.
        harden_at: make the mask hard after this share of the steps and fine-tune the survivors (pruning).
        train_weights: False freezes the masked weights: the supermask task.
        score_optimizer: makes the optimiser of the scores from parameter groups, for instance
            ``functools.partial(torch.optim.SGD, lr=0.1)``. Schedules of the user's do not reach it; it takes its own,
            as ``attachment.score_optimizer``. None: the class of the user's, with its settings and learning rate
            (followed step by step) but no weight decay.

    Raises:
        ValueError: a value outside its range.
    """

    draws: ClassVar[bool] = False
    shards: ClassVar[bool] = True

    initial_score: float = 0.0
    penalty: float = 1e-8
    penalty_on: Literal["sum", "mean"] = "sum"
    final_temperature: float = 200.0
    anneal: Literal["step", "epoch"] = "step"
    scale: Literal["none", "initial"] = "none"
    round_rule: Literal["paper", "code"] = "paper"
    rewind: bool = False
    density: float | tuple[float, ...] | None = None
    harden_at: float | None = None
    train_weights: bool = True
    score_optimizer: ScoreOptimizer | None = None

    def __post_init__(self) -> None:
        if not is_number(self.initial_score):
            raise ValueError(f"initial_score must be a finite number, not {self.initial_score!r}")
        if not (is_number(self.penalty) and self.penalty >= 0):
            raise ValueError(f"penalty must be a number, 0 or more, not {self.penalty!r}")
        if not (is_number(self.final_temperature) and self.final_temperature >= 1):
            raise ValueError(f"final_temperature must be a number, 1 or more, not {self.final_temperature!r}")
        if self.harden_at is not None and not (is_number(self.harden_at) and 0 < self.harden_at <= 1):
            raise ValueError(f"harden_at is a share of the steps, above 0 and at most 1, not {self.harden_at!r}")
        choices = {"penalty_on": ("sum", "mean"), "anneal": ("step", "epoch")}
        choices |= {"scale": ("none", "initial"), "round_rule": ("paper", "code")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be {' or '.join(map(repr, allowed))}, not {getattr(self, field)!r}")
        if self.density == ():
            raise ValueError("density must be a number, or a tuple with one for each round, not an empty tuple")
        for density in self._densities():
            if not (is_number(density) and 0 < density <= 1):
                raise ValueError(f"density must be a number above 0 and at most 1, not {density!r}")

    def _densities(self) -> tuple[float, ...]:
        if self.density is None:
            return ()
        return self.density if isinstance(self.density, tuple) else (self.density,)

    # ---- one step

    def scores(self, weight: Tensor) -> Tensor:
        """s₀ for each weight, in float32 or wider."""
        return torch.full_like(weight, self.initial_score, dtype=torch.promote_types(weight.dtype, torch.float32))

    def temperature(self, moment: Moment) -> float:
        """β_T^(t/T); by epochs β_T^(e/(E−1)), as the authors' code."""
        steps = self.harden_step(moment.steps) or moment.steps
        if self.anneal == "step":
            return exponential(1.0, self.final_temperature, steps)(moment.step)
        if moment.steps_per_epoch is None:
            raise ValueError('anneal="epoch" needs attach(…, steps_per_epoch=…)')
        epochs = max(math.ceil(steps / moment.steps_per_epoch) - 1, 1)
        return staircase(exponential(1.0, self.final_temperature, epochs), moment.steps_per_epoch)(moment.step)

    def sigmoid(self, moment: Moment) -> Sigmoid:
        """σ(βs), times 1/σ(s₀) if scaled; λ is its price."""
        return Sigmoid(self.temperature(moment), self.surviving_scale(), self._price(moment))

    def mask(self, score: Tensor, moment: Moment, *, generator: torch.Generator, out: Tensor) -> Tensor:
        """The same as a tensor."""
        torch.mul(score, self.temperature(moment), out=out).sigmoid_()
        return out if self.scale == "none" else out.mul_(self.surviving_scale())

    def pull_back(
        self, grad: Tensor, weight: Tensor, score: Tensor, mask: Tensor, moment: Moment, *, scratch: Tensor
    ) -> Tensor:
        """(g·w + λ)·∂m/∂s with m = c·σ(βs) and ∂m/∂s = β·m·(1 − m/c)."""
        scale, beta = self.surviving_scale(), self.temperature(moment)
        price = torch.full((), beta * scale * self._price(moment), dtype=scratch.dtype, device=scratch.device)
        torch.addcmul(price, grad, weight, value=beta * scale, out=scratch)
        grad.mul_(mask)
        if scale != 1.0:
            mask.mul_(1 / scale)
        return torch.ops.aten.sigmoid_backward.grad_input(scratch, mask, grad_input=mask)  # type: ignore[no-any-return]

    def penalty_of(self, scores: Mapping[str, Tensor], moment: Moment) -> float:
        """λ·Σm, or λ·mean(m)."""
        beta = self.temperature(moment)
        everything = sum(float(total(torch.sigmoid(score * beta))) for score in scores.values())
        return self._price(moment) * self.surviving_scale() * everything

    def _price(self, moment: Moment) -> float:
        return self.penalty if self.penalty_on == "sum" else self.penalty / moment.weights

    def surviving_scale(self) -> float:
        """1, or 1/σ(s₀) if scaled."""
        return 1.0 if self.scale == "none" else 1.0 + math.exp(-self.initial_score)

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        """Steer the scores toward the asked-for density, if any."""
        if self.density is not None:
            steps = self.harden_step(moment.steps) or moment.steps
            if moment.step <= steps:
                steer(scores, self._densities()[0], replace(moment, steps=steps))

    # ---- the outcome

    def kept(self, scores: Mapping[str, Tensor], *, seed: int) -> Masks:
        """1[s > 0]."""
        return Masks({name: score > 0 for name, score in scores.items()})

    def harden_step(self, steps: int) -> int | None:
        """``harden_at`` as a step."""
        return None if self.harden_at is None else max(1, round(self.harden_at * steps))

    # ---- rounds of a ticket search

    def in_round(self, index: int) -> ContinuousSparsification:
        """The method as it is in round ``index`` (from 1): its own density, the last one from then on."""
        densities = self._densities()
        return replace(self, density=densities[min(index, len(densities)) - 1]) if densities else self

    def next_scores(self, score: Tensor, first: Tensor) -> Tensor:
        """Scores to begin the next round with, from those at the end of this one and those of the very first step."""
        beta = self.final_temperature if self.round_rule == "paper" else 1.0
        return torch.minimum(score * beta, first)
