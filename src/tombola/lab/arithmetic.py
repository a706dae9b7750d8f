"""What a training costs beside dense training of as many epochs: before it has begun, and when it is done."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from tombola import flops
from tombola.budgets import global_
from tombola.flops import Count
from tombola.lab.data import Dataset
from tombola.lab.methods import Pruning
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.moves import checked_counts
from tombola.methods.protocol import Moment
from tombola.methods.rigl import RigL
from tombola.methods.snfs import SNFS
from tombola.methods.stochastic import StochasticSparsification

POINTS = 1000  # at which an average over the steps looks, at most


def count(model: nn.Module, data: Dataset, masked: Mapping[str, Tensor]) -> Count | None:
    """Multiply-adds of ``model`` for one example of ``data``; None if those of a masked layer cannot be counted."""
    x, _ = next(iter(data.test()))
    counted = flops.count(model, x[:1].to(next(model.parameters()).device))
    return counted if masked.keys() <= counted.layers.keys() else None


def planned_counts(method: Pruning, masked: Mapping[str, Tensor], density: float | None = None) -> dict[str, int]:
    """How many weights each layer is to keep at ``density``, or at the one that the method's budget is for.

    That is the final one, for GraNet the initial one. Where weights of all layers are ranked together nobody knows
    before, and each layer counts as equally dense; as dense where no density is asked for.

    Raises:
        ValueError: the budget or the pattern cannot be had with these parameters.
    """
    if isinstance(method, StochasticSparsification):
        return checked_counts(masked, global_, 1.0 if density is None else density)
    if isinstance(method, ContinuousSparsification):
        wanted = method.density if density is None else density
        return checked_counts(masked, global_, wanted if isinstance(wanted, float | int) else 1.0)
    if isinstance(method, GraNet):
        initial = density is None or density == method.initial_density
        return checked_counts(masked, method.budget if initial else global_, density or method.initial_density)
    return checked_counts(masked, method.budget, method.density if density is None else density, method.pattern)


def training_cost(
    method: Pruning,
    counted: Count,
    masked: Mapping[str, Tensor],
    *,
    steps: int,
    counts: Mapping[str, int] | None = None,
) -> float:
    """Multiply-adds of training with ``method``, relative to dense training, by appendix H of the RigL paper.

    How the weights of a globally ranked network spread over its layers is not known before it is trained: they count as
    if each layer had the same density. Continuous Sparsification counts as dense until its mask is hard, then as what
    is left, which nobody knows before either: without ``counts`` and without a density it counts as dense to the end.
    Stochastic Sparsification always does.

    Args:
        method: that trains one network in one go.
        counted: of the dense network.
        masked: name -> parameter of what carries a mask.
        steps: of the whole training.
        counts: weights that each masked layer has kept, once it is trained.
    """
    full = counted.dense

    def planned(density: float | None = None) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever trains is told
            return forward(counted, planned_counts(method, masked, density))

    points = range(0, steps, -(-steps // POINTS))
    moments = [Moment(step=point, steps=steps, steps_per_epoch=None, weights=0) for point in points]

    match method:
        case RigL(every=every):
            cost = flops.rigl_cost(planned(), full, every=every)
        case SNFS():
            cost = flops.snfs_cost(planned(), full)
        case GradualMagnitude(begin=begin):
            thinning = [full if m.step < begin * steps else planned(method.density_at(m)) for m in moments]
            cost = flops.average_cost(thinning.__getitem__, steps=len(moments))
        case GraNet(every=every, until=until):
            thinning = [planned(method.density_at(m)) for m in moments]
            gradients = sum(
                full - sparse for sparse, m in zip(thinning, moments, strict=True) if m.step < until * steps
            )
            cost = flops.average_cost(thinning.__getitem__, steps=len(moments)) + gradients / every / len(moments)
        case ContinuousSparsification(harden_at=float() | int() as share):
            left = planned() if counts is None else forward(counted, counts)
            cost = share * flops.static_cost(full) + (1 - share) * flops.static_cost(left)
        case ContinuousSparsification() | StochasticSparsification():
            cost = flops.static_cost(full)
        case _:
            cost = flops.static_cost(planned())
    return cost / flops.static_cost(full)


def forward(counted: Count, counts: Mapping[str, int]) -> float:
    """Multiply-adds for one example with so many weights in the masked layers that ``counts`` names."""
    return sum(
        layer.dense * counts[name] / layer.weights if name in counts else layer.dense
        for name, layer in counted.layers.items()
    )
