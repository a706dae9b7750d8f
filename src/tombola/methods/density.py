"""The controller behind ``ContinuousSparsification(density=…)``: it shifts scores so that the asked share is positive.

A score counts by its sign, so adding one number to all scores moves the density and leaves their order, which is what
training learns, as it is. The controller holds the share of positive scores in a band: never below the asked density d,
never above a ceiling that falls from 1 to d along a cubic (Zhu & Gupta 2017) over the first 70 % of the steps. Inside
the band s₀, λ and the loss decide. What an earlier round of a search removed lies far below and stays out, since
scores are raised only when fewer than d would be positive. At the last step (of the soft part, under ``harden_at``)
exactly ``max(1, round(d·weights))`` scores are made positive: the largest; of equal ones, those that come first.

One offset serves all layers, so that layers compete for weights. But none dies that need not: the best score of a
layer never sinks below 0, and is kept at the end, unless there are more layers than weights to keep.

There is no state but scores and step, so a resumed run is bitwise the uninterrupted one.

Other ways to the same count, on three networks (``benchmarks/density_controllers.py``), are as good down to d = 0.2 and
worse at 0.02, in points of accuracy: an offset for each layer by 5, dual ascent on λ by 3, nothing but the choice at
the end by 3.5, a ceiling that falls to the last step by 2.5; settling after 30 or 50 % of the steps is as good.

Cost: a run is steered 200 to 400 times (or at each step, if it has fewer), by quantiles of 65,536 to 131,071 scores
drawn evenly (or of all, if there are fewer), and at its end once by all of them. For Conv-6 that is less than 0.1 % of
a training step in a run of the papers' length; ``benchmarks/density_control.py`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tombola.masks import largest, largest_of
from tombola.methods.protocol import Moment
from tombola.schedules import cubic
from tombola.sharded import every, greatest, like, local

TIMES = 200  # steerings of a run, at least, if it has as many steps
SAMPLE = 2**16  # scores that a quantile is taken of, at least, if there are as many; at d = 0.02 it errs by 3 % of d
SETTLED = 0.7  # share of the steps after which the ceiling is the asked density


@torch.no_grad()
def steer(scores: Mapping[str, Tensor], density: float, moment: Moment) -> None:
    """Move ``scores``, in place, to where they should be after ``moment.step`` steps.

    Args:
        scores: parameter name -> score, of any shape, dense in memory.
        density: share of them to be positive at ``moment.steps``, above 0 and at most 1; then exact.
        moment: steps done, and steps until the density must be reached.
    """
    layers = [score for score in scores.values() if score.numel()]
    if not layers:
        return
    if moment.step >= moment.steps:
        _settle(layers, max(1, round(density * sum(layer.numel() for layer in layers))))
    elif moment.step % max(1, moment.steps // TIMES) == 0:
        _hold(layers, density, ceiling(density, moment), phase=moment.step)


def ceiling(density: float, moment: Moment) -> float:
    """The largest share of positive scores that is let be."""
    return cubic(1.0, density, max(1, round(SETTLED * moment.steps)))(moment.step)


def _hold(layers: Sequence[Tensor], low: float, high: float, *, phase: int) -> None:
    """Shift all scores so that a share from ``low`` to ``high`` of them is positive; not at all if it is."""
    sample = _sample(layers, phase)
    # at most one of the two is not 0, as the first is never above the second
    shift = _quantile(sample, high).clamp_min(0) + _quantile(sample, low).clamp_max(0)
    for layer in layers:
        part = local(layer)
        part.sub_(shift.to(part))
        part.sub_(greatest(layer).clamp_max(0))  # a layer all of whose weights are off has no gradient to come back by


def _sample(layers: Sequence[Tensor], phase: int) -> Tensor:
    """Every n-th score of all layers one behind the other, in the order they have in memory; beginning at ``phase``."""
    stride = max(1, sum(layer.numel() for layer in layers) // SAMPLE)
    begin, parts = phase % stride, []
    for layer in layers:
        parts.append(every(layer, stride, begin=begin).to(layers[0].device))
        begin = (begin - layer.numel()) % stride
    return torch.cat(parts)


def _quantile(sample: Tensor, share: float) -> Tensor:
    """The value that ``share`` of the sample lies above."""
    count = sample.numel()
    return sample.kthvalue(max(1, count - max(1, round(share * count)))).values


def _settle(layers: Sequence[Tensor], keep: int) -> None:
    """Shift all scores so that the ``keep`` largest are positive, and push those that still are not, or still are."""
    device, best = layers[0].device, keep >= len(layers)
    ranked = {str(i): s.masked_fill(largest(s, 1), math.inf) if best else s for i, s in enumerate(layers)}
    chosen = largest_of({name: score.to(device) for name, score in ranked.items()}, keep)
    kept = [local(mine).to(layer.device) for mine, layer in zip(chosen.values(), layers, strict=True)]
    if keep < sum(layer.numel() for layer in layers):
        others = [layer.masked_fill(like(mine, layer), -math.inf) for layer, mine in zip(layers, kept, strict=True)]
        level = torch.stack([greatest(score).to(device) for score in others]).amax()
    else:
        level = torch.stack([-greatest(-layer).to(device) for layer in layers]).amin().clamp_max(0)
    for layer, mine in zip(layers, kept, strict=True):
        part = local(layer)
        part.sub_(level.to(part))
        smallest = torch.finfo(part.dtype).tiny
        part.copy_(torch.where(mine, part.clamp_min(smallest), part.clamp_max(0)))
