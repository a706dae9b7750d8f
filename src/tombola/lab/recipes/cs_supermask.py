"""Continuous Sparsification, figure 2: supermasks of Conv-6 on CIFAR-10, by CS and by Stochastic Sparsification.

Savarese, Silva & Maire, arXiv 1912.04427, the ICLR-2020 submission. The weights stay as they were drawn and only a mask
over them is learnt, for 100 epochs. CS: Adam at 3e-4 on the scores, sparsity by λ from 1e-11 to 1e-7, as the authors
found a sweep of s₀ unstable here. SS: SGD at 100, sparsity by s₀ from −5 to 5.

Departs from the paper in:
  * which λ and s₀ within the ranges are tried, s₀ of CS (0), λ (1e-8) and momentum (none) of SS: they are not printed;
  * three seeds; dense nets that do learn their weights, which show what the masks miss, are added; so are, at one
    setting of each method, a cosine and a step schedule of the scores, and for every mask two controls, which are
    measured as they are: as many weights of each layer at shuffled places, and the same places over fresh weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, schedules
from tombola.lab.recipes.nets import CONV6
from tombola.lab.settings import SGD, Adam
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.stochastic import StochasticSparsification

PENALTIES = (1e-11, 1e-10, 1e-9, 1e-8, 1e-7)
SCORES = (-5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0)


def configs(scale: Scale) -> Sequence[RunConfig]:
    """CS over λ, SS over s₀, and dense nets."""
    base = smaller(replace(CONV6, epochs=100), scale, epochs=12, width=0.25, examples=5000)
    frozen = replace(base, retrain=())
    cs = [
        replace(
            frozen,
            method=ContinuousSparsification(penalty=penalty, final_temperature=100.0, train_weights=False),
            score_optimizer=Adam(lr=3e-4),
        )
        for penalty in by(scale, full=PENALTIES, cpu=PENALTIES[::2], smoke=PENALTIES[-1:])
    ]
    ss = [
        replace(
            frozen,
            method=StochasticSparsification(initial_score=score, train_weights=False),
            score_optimizer=SGD(lr=100.0, momentum=0.0),
        )
        for score in by(scale, full=SCORES, cpu=SCORES[::3], smoke=SCORES[3:4])
    ]
    masks = [*cs[:-1], *schedules(cs[-1]), *ss[:-1], *schedules(ss[-1])]
    return [*dense([*cs, *ss]), *(controlled(run, 1) for run in masks)]


RECIPE = Recipe(
    name="cs-figure-2",
    paper="Savarese et al. 2020",
    where="figure 2 (of the ICLR-2020 submission)",
    about="Masks over weights that never change: CS over λ beside Stochastic Sparsification over s₀.",
    departures="Which λ and s₀ were tried is not printed, but their ranges are. Dense nets learn their weights.",
    data="CIFAR-10",
    model="Conv-6",
    methods="CS, SS, dense",
    cpu="12 of 100 epochs on 5,000 images, a quarter of the channels, three λ and three s₀.",
    configs=configs,
)
