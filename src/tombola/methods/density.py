"""Steering the scores of a soft method toward an asked-for density."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tombola.masks import largest
from tombola.methods.protocol import Moment
from tombola.schedules import cubic


def steer(scores: Mapping[str, Tensor], density: float, moment: Moment) -> None:
    """Shift all scores by one number so that a cubic schedule's share of them is positive; at the end, exactly."""
    total = sum(score.numel() for score in scores.values())
    keep = max(1, round(total * cubic(1.0, density, moment.steps)(moment.step)))
    flat = torch.cat([score.flatten() for score in scores.values()])
    if moment.step < moment.steps:
        threshold = flat.kthvalue(total - keep).values if keep < total else flat.min() - 1e-3
        for score in scores.values():
            score.sub_(threshold)
        return
    chosen = largest(flat, keep)
    low = flat[chosen].min()
    tiny = torch.finfo(flat.dtype).tiny
    for score, mine in zip(scores.values(), chosen.split([s.numel() for s in scores.values()]), strict=True):
        score.sub_(low)
        kept = mine.view(score.shape)
        score.copy_(torch.where(kept, score.clamp_min(tiny), score.clamp_max(0.0)))
