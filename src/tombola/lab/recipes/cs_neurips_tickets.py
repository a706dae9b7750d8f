"""Continuous Sparsification, tickets of the NeurIPS version: VGG-16 and ResNet-20 on CIFAR-10, IMP, IMP-C and CS.

Savarese, Silva & Maire, NeurIPS 2020. 85 epochs a round as in nets.py; IMP and IMP-C (which goes on with its weights)
remove 20 % of all weights together a round, 18 rounds (1.8 % left); CS: 5 rounds for eleven s₀ from −0.3 to 0.3, β up
to 200, λ = 1e-8; tickets of all are trained from step 780.

From memory, and so to be doubted: R = 5, the eleven s₀, β, λ, that both nets train alike, and every number of the
table. Departs from the paper in: where tickets start on VGG-16 is not known, here as on ResNet-20; its classifier is
without a mask here, as in Frankle & Carbin's VGG-19; three seeds; dense nets are added, controls of tickets of some
rounds, and a cosine for IMP, for IMP-C and for CS at s₀ = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, other_schedules
from tombola.lab.recipes.cs_resnet20 import INITIAL_SCORES, PLAIN
from tombola.lab.recipes.nets import RESNET20, REWIND_STEP, SCORES, VGG16
from tombola.methods.magnitude import IMP

ROUNDS, CS_ROUNDS = 18, 5
IMP_CONTROLS = (4, 8, 13, 18)  # 41, 17, 5.5 and 1.8 % of the weights, at which the table has tickets


def configs(scale: Scale) -> Sequence[RunConfig]:
    """Everything for VGG-16, and for ResNet-20."""
    vgg = smaller(VGG16, scale, epochs=4, width=0.125, examples=5000)
    resnet = smaller(RESNET20, scale, epochs=4, width=0.25, examples=2500)
    return [*_of(vgg, scale), *_of(resnet, scale)]


def _of(base: RunConfig, scale: Scale) -> list[RunConfig]:
    start = by(scale, full=REWIND_STEP, cpu=2, smoke=1)
    rounds, cs_rounds = by(scale, full=ROUNDS, cpu=4, smoke=2), by(scale, full=CS_ROUNDS, cpu=2, smoke=1)
    imp = replace(base, method=IMP(keep=0.8), rounds=rounds, rewind_step=start)
    soft = replace(imp, method=PLAIN, score_optimizer=SCORES, rounds=cs_rounds)
    continued = replace(imp, method=IMP(keep=0.8, rewind=False))
    cs = [
        replace(soft, method=replace(PLAIN, initial_score=s0))
        for s0 in by(scale, full=INITIAL_SCORES, cpu=(-0.1, 0.0), smoke=(0.0,))
    ]
    searches = [
        *(controlled(run, *by(scale, full=IMP_CONTROLS, cpu=(2, 4), smoke=(2,))) for run in (imp, continued)),
        *(controlled(run, *by(scale, full=(1, 2, 5), cpu=(1, 2), smoke=(1,))) for run in cs),
    ]
    others = [*other_schedules([imp, soft]), *other_schedules([continued])]
    return [*dense([imp, cs[0]]), *searches, *others]


RECIPE = Recipe(
    name="cs-neurips-tickets",
    paper="Savarese et al. 2020",
    where="the NeurIPS version, table of tickets",
    about="Tickets of two nets, round by round: IMP, IMP-C, which goes on with its weights, and CS over s₀.",
    departures="Rounds, s₀, β, λ and how VGG-16 is trained are from memory, unverified.",
    data="CIFAR-10",
    model="VGG-16, ResNet-20",
    methods="IMP, IMP-C, CS, dense",
    cpu="4 of 85 epochs on 5,000 and 2,500 images, an eighth and a quarter of the width; IMP 4, CS 2 rounds, two s₀.",
    configs=configs,
)
