"""What the methods that move connections during training have in common: when, how many, which.

Evci et al., "Rigging the Lottery", arXiv 1911.11134, sections 3 (2)–(4).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tombola.budgets import Budget, erk, global_
from tombola.masks import Masks, largest, largest_of
from tombola.methods.protocol import Connections, HardMethod, Moment, Sparse, check_density, is_number
from tombola.patterns import ConstantFanIn, Pattern, choose, complete, fitted
from tombola.sharded import drawn, is_sharded, placed, whole
from tombola.sharded import total as total_of

Anneal = Literal["cosine", "constant", "linear", "inverse_power"]


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Settings that RigL, SET, SNFS and GraNet share; a base class of theirs.

    Args:
        density: share of the weights that is kept, all masked layers together.
        budget: ``(shapes, density) -> counts``, how many each layer keeps: ``uniform``, ``erdos_renyi``, ``erk``, …
        every: ΔT, updates of the weights from one move to the next.
        until: share of the steps after which connections no longer move; the drop fraction is annealed until then.
        drop_fraction: α, share of a layer's connections that the first move drops.
        anneal: how it falls: ``"cosine"`` α/2·(1 + cos πp), ``"linear"`` α(1 − p), ``"inverse_power"`` α(1 − p)³, or
            not at all, ``"constant"``; p is the share of ``until`` that is over.
        move_at_start: move before any training already, as the authors' code; False: first after ``every`` updates.
        pattern: what masks must fit, for instance ``NM(2, 4)``; counts are then the nearest that it allows.

    Raises:
        ValueError: a value outside its range.
    """

    prunes: ClassVar[bool] = False
    shards: ClassVar[bool] = True

    density: float
    budget: Budget = erk
    every: int = 100
    until: float = 0.75
    drop_fraction: float = 0.3
    anneal: Anneal = "cosine"
    move_at_start: bool = True
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        if not (isinstance(self.every, int) and self.every >= 1):
            raise ValueError(f"every is a number of steps, at least 1, not {self.every!r}")
        if not (is_number(self.until) and 0 < self.until <= 1):
            raise ValueError(f"until is a share of the steps, above 0 and at most 1, not {self.until!r}")
        if not (is_number(self.drop_fraction) and 0 <= self.drop_fraction <= 1):
            raise ValueError(f"drop_fraction must be from 0 to 1, not {self.drop_fraction!r}")
        if self.anneal not in ("cosine", "constant", "linear", "inverse_power"):
            allowed = "'cosine', 'constant', 'linear' or 'inverse_power'"
            raise ValueError(f"anneal must be {allowed}, not {self.anneal!r}")

    def fraction(self, moment: Moment) -> float:
        """The share of its connections that a layer drops in a move at ``moment``."""
        progress = min(moment.step / (self.until * moment.steps), 1.0)
        if self.anneal == "cosine":
            return self.drop_fraction / 2 * (1 + math.cos(math.pi * progress))
        power = {"constant": 0, "linear": 1, "inverse_power": 3}[self.anneal]
        return float(self.drop_fraction * (1 - progress) ** power)

    def due(self, moment: Moment, *, period: int) -> bool:
        """Whether connections move at ``moment``, if a move comes round each ``period`` steps."""
        early = moment.step == 0 and not self.move_at_start
        return moment.step % period == 0 and moment.step < self.until * moment.steps and not early

    def moved(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        growth: Callable[[str], Tensor],
        moment: Moment,
        generator: torch.Generator,
    ) -> Masks:
        """The masks after each layer has dropped its smallest weights and grown as many where ``growth`` is best.

        It is asked for one layer at a time, and then only if there is something to grow.
        """
        fraction, pattern, moved = self.fraction(moment), self.pattern, {}
        totals = masks.counts()
        if isinstance(pattern, ConstantFanIn) and pattern.ablate:  # fewer outputs may not divide the budget's count
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were heard at the start
                totals = checked_counts(weights, self.budget, self.density, pattern)
        last = list(masks)[-1]
        for name, mask in masks.items():
            if name == last and isinstance(pattern, ConstantFanIn):
                pattern = ConstantFanIn()
            n = int(fraction * int(total_of(mask)))
            moved[name] = drop_and_grow(
                weights[name],
                mask,
                partial(growth, name),
                n=n,
                total=totals[name],
                generator=generator,
                pattern=pattern,
            )
        return Masks(moved)

    def rewired(
        self,
        layers: Mapping[str, Connections],
        by: Literal["gradient", "chance"],
        moment: Moment,
        generator: torch.Generator,
    ) -> None:
        """The same for layers that hold no masks."""
        for layer in layers.values():
            n = int(self.fraction(moment) * layer.count)
            layer.keep(largest(layer.magnitudes(), layer.count - n, generator=generator))
            layer.grow(n, by=by, generator=generator)

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """Random masks with the budget's counts."""
        return random_masks(parameters, self.budget, self.density, generator, self.pattern)


def start_beside(
    method: HardMethod,
    pattern: Pattern | None,
    parameters: Mapping[str, Tensor],
    layers: Mapping[str, Sparse],
    generator: torch.Generator,
) -> dict[str, Tensor | None]:
    """``method``'s masks for the dense parameters alone; the sparse layers keep the connections that they have.

    Raises:
        ValueError: it has a pattern.
    """
    if pattern is not None:
        raise ValueError(
            f"attach: {type(method).__name__}(pattern={pattern!r}) does not go with sparse layers, whose connections "
            "lie anywhere; leave the pattern out, or mask dense layers"
        )
    begun = method.start(parameters, generator=generator) if parameters else {}
    return {**dict.fromkeys(layers), **begun}


def random_masks(
    parameters: Mapping[str, Tensor],
    budget: Budget,
    density: float,
    generator: torch.Generator,
    pattern: Pattern | None = None,
) -> Masks:
    """Masks with exactly the budget's counts, at random positions."""
    draws = {name: drawn(parameter, generator) for name, parameter in parameters.items()}
    counts = checked_counts(parameters, budget, density, pattern)
    return Masks({name: choose(draw, counts[name], pattern, generator) for name, draw in draws.items()})


def best_masks(
    scores: Mapping[str, Tensor],
    budget: Budget,
    density: float,
    generator: torch.Generator,
    pattern: Pattern | None = None,
) -> Masks:
    """Masks of the highest ``scores``: in each layer as many as its budget says, or of all layers if it is global."""
    counts = checked_counts(scores, budget, density, pattern)
    if budget is not global_ or pattern is not None:
        return Masks({name: choose(score, counts[name], pattern, generator) for name, score in scores.items()})
    return Masks(largest_of(scores, sum(counts.values()), generator=generator))


def checked_counts(
    parameters: Mapping[str, Tensor], budget: Budget, density: float, pattern: Pattern | None = None
) -> dict[str, int]:
    """The budget's counts, or the nearest ones that the pattern allows.

    Raises:
        ValueError: a budget of the user's own leaves a layer out, or gives it more weights than it has; or a layer does
            not fit the pattern.
    """
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    counts = budget(shapes, density)
    for name, shape in shapes.items():
        count = counts.get(name)
        if not (isinstance(count, int) and 0 <= count <= shape.numel()):
            raise ValueError(f"budget: {name!r} is to keep {count!r} of its {shape.numel()} weights")
    return counts if pattern is None else fitted(counts, shapes, pattern)


def drop_and_grow(
    weight: Tensor,
    mask: Tensor,
    growth: Tensor | Callable[[], Tensor],
    *,
    n: int,
    total: int | None = None,
    generator: torch.Generator,
    pattern: Pattern | None = None,
) -> Tensor:
    """The mask of one layer after its ``n`` smallest weights are dropped and its ``n`` best positions grown.

    What was dropped is among the candidates: if it grows at once it keeps its value and its optimiser state.

    Args:
        weight: effective weights, of the layer's shape.
        mask: bool, the connections that there are.
        growth: 0 or more for each weight, what makes a missing connection worth having; or what gives it, which is not
            called if nothing grows.
        n: connections to move, at most as many as there are; under a pattern whole units.
        total: connections that there are to be after the move; None: as many as before.
        generator: settles ties.
        pattern: what the mask must fit, before and after. The smallest units of the whole layer are dropped, and each
            group grows back to its number.
    """
    before = int(total_of(mask))
    total = before if total is None else total
    magnitude = torch.where(mask, weight.detach().abs(), -1.0)
    if pattern is None:
        kept = largest(magnitude, before - n, generator=generator)
        grown = total - (before - n)
        return kept | largest(torch.where(kept, -1.0, _of(growth)), grown, generator=generator) if grown else kept
    if is_sharded(mask):  # a group may lie over several ranks
        parts = whole(weight), whole(mask), whole(_of(growth))
        return placed(drop_and_grow(*parts, n=n, total=total, generator=generator, pattern=pattern), mask)
    growth = _of(growth)
    groups, _, size = pattern.units(mask.shape)
    there = pattern.split(mask)
    stay = largest(pattern.split(magnitude).sum(2), before // size - n // size, generator=generator)
    needed = torch.full((groups,), total // (size * groups), device=mask.device)
    if isinstance(pattern, ConstantFanIn) and pattern.ablate:
        possible = ~stay & there.any(1, keepdim=True).squeeze(2)  # what was given up does not come back
        wanted = largest(torch.where(possible, pattern.split(growth).sum(2), -1.0), n, generator=generator)
        needed = pattern.fan_ins(there.squeeze(2), stay | wanted, total)
        stay &= needed.unsqueeze(1) > 0
    kept = pattern.join(stay.unsqueeze(2).expand(there.shape), mask.shape)
    return complete(kept, growth, needed, pattern, generator)


def _of(growth: Tensor | Callable[[], Tensor]) -> Tensor:
    return growth if isinstance(growth, Tensor) else growth()
