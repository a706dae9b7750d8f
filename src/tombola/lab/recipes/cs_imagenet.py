"""Continuous Sparsification as pruning on ImageNet: ResNet-50.

Savarese, Silva & Maire, NeurIPS 2020; published: 75.5 % top-1 at about 90 % sparsity. 90 epochs, a tenth after 30 and
60, no Nesterov momentum, one round: a port of the authors' code to ImageNet in a pull request.

From memory, and so to be doubted: the s₀ 0, −0.01, −0.02, −0.03, −0.05, β = 200, λ = 1e-8. Departs from what is known
in: batches of 256 at a rate of 0.1 (the port has 64, its rate is not known); the mask hardens after 80 % of the epochs,
as in a code base derived from the authors'; scores learn by SGD at 0.1. GMP at 90 % and 95 %, densities asked of CS,
three seeds, dense nets, and a cosine for CS at s₀ = 0 and for CS and GMP at 90 %, are added. What is pruned keeps its
trained weights and is no ticket, so that there are no controls of tickets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by
from tombola.lab.recipes.baselines import dense, other_schedules
from tombola.lab.recipes.imagenet import reduced
from tombola.lab.recipes.nets import RESNET50
from tombola.lab.settings import SGD, Drops
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude

BASE = replace(
    RESNET50,
    epochs=90,
    batch_size=256,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
    schedule=Drops(epochs=(30, 60), by=0.1),
    label_smoothing=0.0,
    micro_batch=None,
)
INITIAL_SCORES = (0.0, -0.01, -0.02, -0.03, -0.05)
HARDEN_AT = 0.8


def configs(scale: Scale) -> Sequence[RunConfig]:
    """CS over s₀ and densities, GMP, and dense nets."""
    base = reduced(BASE, scale)
    soft = replace(base, method=ContinuousSparsification(), score_optimizer=SGD(lr=0.1, momentum=0.9))
    densities = by(scale, full=(0.1, 0.05), cpu=(0.1,), smoke=(0.2,))
    cs = [
        replace(soft, method=ContinuousSparsification(initial_score=s0, harden_at=HARDEN_AT))
        for s0 in by(scale, full=INITIAL_SCORES, cpu=(0.0, -0.03), smoke=(0.0,))
    ]
    asked = [replace(soft, method=ContinuousSparsification(density=d, harden_at=HARDEN_AT)) for d in densities]
    every = by(scale, full=1000, cpu=8, smoke=1)
    gmp = [replace(base, method=GradualMagnitude(density=d, every=every)) for d in densities]
    return [*dense([*cs, *asked, *gmp]), *cs, *asked, *gmp, *other_schedules([*cs, *gmp]), *other_schedules(asked)]


RECIPE = Recipe(
    name="cs-imagenet",
    paper="Savarese et al. 2020",
    where="the NeurIPS version, ImageNet",
    about="Pruning ResNet-50 in one training: CS over s₀ and with a density asked for, beside gradual pruning.",
    departures="s₀, β and λ are from memory, unverified; epochs and drops are those of a port of the authors' code.",
    data="ImageNet",
    model="ResNet-50",
    methods="CS, GMP, dense",
    cpu="6 of 90 epochs on 2,500 images of CIFAR-10 instead of ImageNet, a quarter of the channels, two s₀.",
    configs=configs,
)
