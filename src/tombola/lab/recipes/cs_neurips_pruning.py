"""Continuous Sparsification as pruning, of the NeurIPS version: VGG-16 and ResNet-20 on CIFAR-10.

Savarese, Silva & Maire, NeurIPS 2020. Nothing is rewound: the mask hardens and the trained weights are fine-tuned. The
paper compares with AMC, magnitude pruning, network slimming and GMP in a plot; of these GMP is here.

From memory, and so to be doubted: s₀ from −0.3 to 0.3, β up to 200, λ = 1e-8. Departs from the paper in: how many
epochs are soft and how many fine-tune was not found; here the mask hardens after 80 % of 85, as in a code base derived
from theirs. GMP at the densities 0.1, 0.05, 0.02, static random masks and CS with these densities asked for, three
seeds, dense nets, and a cosine for CS at s₀ = 0 and for each method at the first density, are added. What is pruned
keeps its trained weights and is no ticket, so that there are no controls of tickets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import dense, other_schedules
from tombola.lab.recipes.cs_resnet20 import INITIAL_SCORES
from tombola.lab.recipes.nets import RESNET20, SCORES, VGG16
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.static import Static

HARDEN_AT = 0.8
DENSITIES = (0.1, 0.05, 0.02)


def configs(scale: Scale) -> Sequence[RunConfig]:
    """Everything for VGG-16, and for ResNet-20."""
    vgg = smaller(VGG16, scale, epochs=8, width=0.125, examples=5000)
    resnet = smaller(RESNET20, scale, epochs=8, width=0.25, examples=2500)
    return [*_of(vgg, scale), *_of(resnet, scale)]


def _of(base: RunConfig, scale: Scale) -> list[RunConfig]:
    soft = replace(base, method=ContinuousSparsification(harden_at=HARDEN_AT), score_optimizer=SCORES)
    every, densities = by(scale, full=390, cpu=8, smoke=1), by(scale, full=DENSITIES, cpu=DENSITIES, smoke=(0.2,))
    cs = [
        replace(soft, method=ContinuousSparsification(initial_score=s0, harden_at=HARDEN_AT))
        for s0 in by(scale, full=INITIAL_SCORES, cpu=(-0.2, -0.1, 0.0), smoke=(0.0,))
    ]
    asked = [replace(soft, method=ContinuousSparsification(density=d, harden_at=HARDEN_AT)) for d in densities]
    gmp = [replace(base, method=GradualMagnitude(density=d, every=every)) for d in densities]
    static = [replace(base, method=Static(density=d)) for d in densities]
    runs = [*cs, *asked, *gmp, *static]
    return [*dense(runs), *runs, *other_schedules([soft, *gmp, *static]), *other_schedules(asked)]


RECIPE = Recipe(
    name="cs-neurips-pruning",
    paper="Savarese et al. 2020",
    where="the NeurIPS version, pruning",
    about="One sparse network in one training: CS over s₀ and with a density asked for, beside gradual pruning.",
    departures="s₀, β and λ are from memory, unverified; 80 % of soft epochs are a derived code base's.",
    data="CIFAR-10",
    model="VGG-16, ResNet-20",
    methods="CS, GMP, static, dense",
    cpu="8 of 85 epochs on 5,000 and 2,500 images, an eighth and a quarter of the channels, three s₀.",
    configs=configs,
)
