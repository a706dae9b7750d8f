"""Continuous Sparsification, figure 3 left: winning tickets of Conv-6 on CIFAR-10, found by IMP, ISS and CS.

Savarese, Silva & Maire, arXiv 1912.04427, section 4 of the ICLR-2020 submission. IMP and ISS: 30 rounds of 40 epochs.
CS: 4 rounds for each s₀ from −0.03 to 0.03, β up to 100, λ = 1e-10, Adam at 3e-4 for weights and scores. IMP prunes
each layer on its own: convolutions 15 %, linear layers 20 %, the output 10 % a round, as Frankle & Carbin (ICLR 2019).
ISS: s₀ = 1, SGD at 20, λ = 1e-8. Tickets are trained from the initial weights.

Departs from the paper in:
  * whether CS rewinds its weights between rounds is not said there; here it goes on with them;
  * which s₀ within the range were tried is not printed, nor whether SGD had momentum (here not);
  * three seeds; retraining of every ticket is counted; dense nets are added, controls of tickets of some rounds, and a
    cosine and a step schedule for IMP, for ISS and for CS at two s₀.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, other_schedules
from tombola.lab.recipes.nets import CONV6
from tombola.lab.settings import SGD, Adam
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP
from tombola.methods.stochastic import StochasticSparsification

SCORES = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)
MIDDLE = -0.01  # at every scale
IMP_CONTROLS = (5, 10, 15, 20, 30)  # 39, 15, 6.2, 2.5 and 0.45 % of the weights
KEEP = {f"conv{n}.weight": 0.85 for n in range(1, 7)} | {"fc1.weight": 0.8, "fc2.weight": 0.8, "out.weight": 0.9}


def configs(scale: Scale) -> Sequence[RunConfig]:
    """IMP, ISS, CS over s₀, and dense nets."""
    base = smaller(CONV6, scale, epochs=4, width=0.25, examples=5000)
    rounds, cs_rounds = by(scale, full=30, cpu=6, smoke=2), by(scale, full=4, cpu=2, smoke=2)
    imp = replace(base, method=IMP(keep=KEEP), rounds=rounds)
    iss = replace(
        base,
        method=StochasticSparsification(initial_score=1.0, penalty=1e-8),
        score_optimizer=SGD(lr=20.0, momentum=0.0),
        rounds=by(scale, full=30, cpu=4, smoke=2),
    )
    method = ContinuousSparsification(penalty=1e-10, final_temperature=100.0)
    cs = [
        replace(base, method=replace(method, initial_score=s0), score_optimizer=Adam(lr=3e-4), rounds=cs_rounds)
        for s0 in by(scale, full=SCORES, cpu=(-0.03, -0.01, 0.0), smoke=(-0.01,))
    ]
    some = by(scale, full=IMP_CONTROLS, cpu=(rounds,), smoke=(rounds,))
    searches = [
        controlled(imp, *some),
        controlled(iss, *by(scale, full=IMP_CONTROLS, cpu=(iss.rounds,), smoke=(iss.rounds,))),
        *(controlled(run, *by(scale, full=(1, 2, 4), cpu=(cs_rounds,), smoke=(cs_rounds,))) for run in cs),
    ]
    middle = [run for run in cs if run.method == replace(method, initial_score=MIDDLE)]
    return [*dense([imp, iss, cs[0]]), *searches, *other_schedules([imp, iss, cs[0]]), *other_schedules(middle)]


RECIPE = Recipe(
    name="cs-figure-3-left",
    paper="Savarese et al. 2020",
    where="figure 3 left (of the ICLR-2020 submission)",
    about="Winning tickets: accuracy after retraining against density, round by round, for IMP, ISS and CS over s₀.",
    departures="Whether CS rewinds between rounds is not printed (here not), nor are the s₀ within −0.03 … 0.03.",
    data="CIFAR-10",
    model="Conv-6",
    methods="IMP, ISS, CS, dense",
    cpu="4 of 40 epochs on 5,000 images, a quarter of the channels; IMP 6, ISS 4, CS 2 rounds, three s₀.",
    configs=configs,
)
