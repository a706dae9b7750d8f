"""Continuous Sparsification, figure 3 right: winning tickets of ResNet-20 on CIFAR-10, found by IMP and CS.

Savarese, Silva & Maire, arXiv 1912.04427, section 4 of the ICLR-2020 submission, which calls the net ResNet-18. SGD at
0.1, momentum 0.9, weight decay 1e-4 (none on the scores), a tenth after epochs 56 and 71 of 85. IMP: 30 rounds of
20 % of all weights together, rewound. CS: 5 rounds without rewinding between them. Tickets of both are trained from
step 780, the end of the second epoch. Shortcuts and classifier carry no mask.

Departs from the paper in:
  * the s₀: they are not printed. These are eleven from −0.3 to 0.3, which the NeurIPS version is remembered to have;
  * β rises to 200, as in the authors' code (the text: "500 suffices"); λ = 1e-8 is the code's too;
  * momentum is Nesterov's, and the scores' optimiser that of the weights, as in the code; the text says neither;
  * three seeds; dense nets are added, controls of tickets of some rounds, and a cosine for IMP and for CS at s₀ = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, other_schedules
from tombola.lab.recipes.nets import RESNET20, REWIND_STEP, SCORES
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP

IMP_CONTROLS = (5, 10, 15, 20, 30)  # 33, 11, 3.5, 1.2 and 0.12 % of the weights
INITIAL_SCORES = (-0.3, -0.25, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)

PLAIN = ContinuousSparsification(initial_score=0.0)


def configs(scale: Scale) -> Sequence[RunConfig]:
    """IMP, CS over s₀, and dense nets."""
    base = smaller(RESNET20, scale, epochs=8, width=0.25, examples=2500)
    start = by(scale, full=REWIND_STEP, cpu=4, smoke=1)  # at cpu scale about as large a share of a round
    rounds, cs_rounds = by(scale, full=30, cpu=6, smoke=2), by(scale, full=5, cpu=2, smoke=2)
    imp = replace(base, method=IMP(keep=0.8), rounds=rounds, rewind_step=start)
    soft = replace(imp, method=PLAIN, score_optimizer=SCORES, rounds=cs_rounds)
    cs = [
        replace(soft, method=replace(PLAIN, initial_score=s0))
        for s0 in by(scale, full=INITIAL_SCORES, cpu=(-0.1, 0.0), smoke=(0.0,))
    ]
    searches = [
        controlled(imp, *by(scale, full=IMP_CONTROLS, cpu=(3, 6), smoke=(2,))),
        *(controlled(run, *by(scale, full=(1, 2, 5), cpu=(1, 2), smoke=(2,))) for run in cs),
    ]
    return [*dense([imp, cs[0]]), *searches, *other_schedules([imp, soft])]


RECIPE = Recipe(
    name="cs-figure-3-right",
    paper="Savarese et al. 2020",
    where="figure 3 right (of the ICLR-2020 submission)",
    about="Winning tickets: accuracy after retraining against density, round by round, for IMP and CS over s₀.",
    departures="The s₀ are from memory, as the paper does not print them; β, λ and Nesterov's momentum are the code's.",
    data="CIFAR-10",
    model="ResNet-20",
    methods="IMP, CS, dense",
    cpu="8 of 85 epochs on 2,500 images, a quarter of the channels; IMP 6 rounds, CS 2, two s₀.",
    configs=configs,
)
