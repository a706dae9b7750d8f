"""Iterative Magnitude Pruning (IMP). Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; rewinding to an
early step: Frankle et al., "Stabilizing the Lottery Ticket Hypothesis", 2019. Algorithm 1 of arXiv 1912.04427.

Each round trains, removes the smallest surviving weights, and goes back to step k (``rewind=True``) or on from where
it is (IMP-C). Counts are exact: of n surviving weights round(keep·n) stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tombola.masks import Masks, largest, largest_of
from tombola.methods.protocol import is_number


@dataclass(frozen=True, kw_only=True)
class IMP:
    """Remove the smallest weights, round by round. Works through :class:`tombola.TicketSearch`.

    Args:
        keep: share of the surviving weights that a round keeps; or parameter name -> share, each layer then ranked
            on its own and layers that are not named kept whole. (Conv-6 in the papers: convolutions 0.85, linear
            layers 0.8, the output layer 0.9.)
        scope: rank the weights of all layers together, or those of each ``"layer"``.
        rewind: go back to the rewind point after each round; False continues training (IMP-C).

    Raises:
        ValueError: a value outside its range.
    """

    keep: float | Mapping[str, float] = 0.8
    scope: Literal["global", "layer"] = "global"
    rewind: bool = True

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layer"):
            raise ValueError(f"scope must be 'global' or 'layer', not {self.scope!r}")
        shares = self.keep if isinstance(self.keep, Mapping) else {"": self.keep}
        for name, share in shares.items():
            if not (is_number(share) and 0 < share <= 1):
                where = f" for {name!r}" if name else ""
                raise ValueError(f"keep{where} must be a number above 0 and at most 1, not {share!r}")

    def check(self, masks: Masks) -> None:
        """Raise ValueError if ``keep`` names a parameter that is not masked."""
        if isinstance(self.keep, Mapping) and (unknown := [name for name in self.keep if name not in masks]):
            raise ValueError(f"IMP: keep names {unknown[0]!r}, which is not masked; masked are {', '.join(masks)}")

    def prune(self, weights: Mapping[str, Tensor], masks: Masks) -> Masks:
        """The masks after one more round, from the trained ``weights`` and the ``masks`` they were trained under.

        Raises:
            ValueError: ``keep`` names a parameter that is not masked.
        """
        self.check(masks)
        # −1 ranks a weight that is already gone below every survivor, be it exactly 0
        magnitudes = {n: torch.where(mask, weights[n].detach().abs(), -1.0) for n, mask in masks.items()}
        if isinstance(self.keep, Mapping):
            keep = {name: self.keep.get(name, 1.0) for name in masks}
        elif self.scope == "layer":
            keep = dict.fromkeys(masks, self.keep)
        else:
            return Masks(largest_of(magnitudes, round(self.keep * masks.kept)))
        return Masks({name: largest(magnitudes[name], round(keep[name] * int(m.sum()))) for name, m in masks.items()})
