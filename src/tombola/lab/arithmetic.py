"""What a training costs beside dense training of as many epochs, before it has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from tombola import flops
from tombola.budgets import Budget, global_
from tombola.flops import Count
from tombola.lab.config import Pruning
from tombola.lab.data import Dataset
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.protocol import Moment
from tombola.methods.rigl import RigL
from tombola.methods.snfs import SNFS

POINTS = 1000  # at which an average over the steps looks, at most


def count(model: nn.Module, data: Dataset) -> Count:
    """Multiply-adds of ``model`` for one example of ``data``."""
    x, _ = next(iter(data.test()))
    return flops.count(model, x[:1].to(next(model.parameters()).device))


def training_cost(method: Pruning, counted: Count, masked: Mapping[str, torch.Tensor], *, steps: int) -> float:
    """Multiply-adds of training with ``method``, relative to dense training, by appendix H of the RigL paper.

    How the weights of a globally ranked network spread over its layers is not known before it is trained: they count as
    if each layer had the same density. Continuous Sparsification counts as dense until its mask is hard.

    Args:
        method: that trains one network in one go.
        counted: of the dense network.
        masked: name -> parameter of what carries a mask.
        steps: of the whole training.
    """
    dense = flops.static_cost(counted.dense)
    shapes = {name: parameter.shape for name, parameter in masked.items()}

    def forward(density: float, budget: Budget) -> float:
        counts = budget(shapes, density)
        return sum(
            layer.dense * counts[name] / layer.weights if name in counts else layer.dense
            for name, layer in counted.layers.items()
        )

    def average(density_at: Callable[[Moment], float], budget: Budget) -> float:
        stride = -(-steps // POINTS)
        moments = [Moment(step=s, steps=steps, steps_per_epoch=None, weights=0) for s in range(0, steps, stride)]
        return flops.average_cost(lambda point: forward(density_at(moments[point]), budget), steps=len(moments))

    match method:
        case RigL():
            cost = flops.rigl_cost(forward(method.density, method.budget), counted.dense, every=method.every)
        case SNFS():
            cost = flops.snfs_cost(forward(method.density, method.budget), counted.dense)
        case GradualMagnitude(begin=begin):
            cost = average(lambda m: 1.0 if m.step < begin * steps else method.density_at(m), method.budget)
        case GraNet():
            cost = average(method.density_at, global_)
        case ContinuousSparsification(density=float() as density, harden_at=float() as share):
            cost = share * dense + (1 - share) * flops.static_cost(forward(density, global_))
        case ContinuousSparsification():
            cost = dense
        case _:
            cost = flops.static_cost(forward(method.density, method.budget))
    return cost / dense
