"""What a method does to masks and scores while it trains, as the records of epochs tell it. Looked at when the network
is measured, and never between."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tombola.attach import Attachment
from tombola.methods.protocol import DynamicMethod
from tombola.selection import maskable

EDGES = torch.arange(-10.0, 10.5, 0.5)
"""Between the bins of a histogram of β·s, whose first and last have no other end."""


class Watch:
    """The connections of a network, compared with those when it was last measured.

    Masks are remembered at one bit a weight, the connections of sparse layers as their places.

    Args:
        model: that is trained.
        run: the method at work on it.
        saved: what :meth:`state` was when the run stopped; None: the connections as they are now.
    """

    def __init__(self, model: nn.Module, run: Attachment, saved: Mapping[str, Tensor] | None = None) -> None:
        self._run = run
        found = maskable(model).sparse if isinstance(run.method, DynamicMethod) else {}
        self._sparse = {name: layer for name, layer in found.items() if name in run.parameters}
        self._seen = self._now() if saved is None else {name: places.cpu() for name, places in saved.items()}

    def state(self) -> dict[str, Tensor]:
        """What it takes to go on; empty for a method that moves nothing."""
        return self._seen

    def moved(self) -> dict[str, dict[str, int]]:
        """Parameter name -> its connections: kept now, and dropped and grown since this was last asked.

        Empty for a method that moves nothing.
        """
        before, self._seen = self._seen, self._now()
        return {name: _moved(before[name], now, sparse=name in self._sparse) for name, now in self._seen.items()}

    def _now(self) -> dict[str, Tensor]:
        if not isinstance(self._run.method, DynamicMethod):
            return {}
        packed = self._run.state_dict()["hard"]["masks"]  # not .masks: nothing of a sparse layer's dense size is made
        places = {name: layer.places for name, layer in self._sparse.items()}
        return {name: (packed | places)[name] for name in self._run.parameters}


def _moved(before: Tensor, now: Tensor, *, sparse: bool) -> dict[str, int]:
    if sparse:
        both = np.intersect1d(before.numpy(), now.numpy(), assume_unique=True).size
        kept, had = now.numel(), before.numel()
    else:
        both, kept, had = (_ones(bits) for bits in (before & now, now, before))
    return {"kept": kept, "dropped": had - both, "grown": kept - both}


def _ones(packed: Tensor) -> int:
    return int(np.unpackbits(packed.numpy()).sum(dtype=np.int64))


def histogram(scores: Mapping[str, Tensor], temperature: float) -> list[int]:
    """How many scores s have β·s below −10, from there to −9.5, and so on, and above 10; β is the temperature."""
    counts = torch.zeros(len(EDGES) + 1, dtype=torch.int64)
    for score in scores.values():
        places = torch.bucketize(score.detach().cpu().flatten() * temperature, EDGES, right=True)
        counts += places.bincount(minlength=len(counts))
    return counts.tolist()
