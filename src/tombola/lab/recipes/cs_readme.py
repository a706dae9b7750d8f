"""Continuous Sparsification, the run of the authors' README: ResNet-20 on CIFAR-10, three rounds.

The code of arXiv 1912.04427 as its README starts it, with everything in which the code differs from the paper: masks
σ(βs)/σ(s₀), β = 200^(e/84) raised once an epoch, and scores between rounds min(s, s₀) at the temperature 1, so that
removed weights come back. s₀ = 0; the README recommends 0.1 for denser tickets and −0.1 for "high sparsity".

Departs from the code in:
  * it trains on 45,000 images and starts tickets from step 704; here 50,000 and 780, also the end of epoch two;
  * its penalty is summed over the scaled mask and the momentum of both optimisers lives on from round to round; the
    former is so here too, the latter not;
  * it stops with an error under Python 3 when it comes to the ticket; here it is trained. There the ticket computes
    with b(s)/σ(s₀)⊙w (twice w at s₀ = 0), here with plain b(s)⊙w, from the same w. Batch norm follows each masked layer
    of this net and takes such a factor out again, but for its epsilon; so loss and steps of w are the same;
  * three seeds; the paper's own rules beside it; dense nets, controls of tickets of each round, and a cosine for both
    sets of rules at s₀ = 0, are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, other_schedules
from tombola.lab.recipes.nets import RESNET20, REWIND_STEP, SCORES
from tombola.methods.continuous import ContinuousSparsification

CODE = ContinuousSparsification(
    penalty=1e-8, final_temperature=200.0, anneal="epoch", scale="initial", round_rule="code"
)
PAPER = ContinuousSparsification(penalty=1e-8, final_temperature=200.0)


def configs(scale: Scale) -> Sequence[RunConfig]:
    """The code's rules over three s₀, the paper's at s₀ = 0, and dense nets."""
    base = smaller(RESNET20, scale, epochs=8, width=0.25, examples=2500)
    rounds = by(scale, full=3, cpu=3, smoke=2)
    start = by(scale, full=REWIND_STEP, cpu=4, smoke=1)
    paper = replace(base, method=PAPER, score_optimizer=SCORES, rounds=rounds, rewind_step=start)
    code = [
        replace(paper, method=replace(CODE, initial_score=s0))
        for s0 in by(scale, full=(0.0, 0.1, -0.1), cpu=(0.0, 0.1, -0.1), smoke=(0.0,))
    ]
    searches = [controlled(run, *range(1, rounds + 1)) for run in (*code, paper)]
    return [*dense(code), *searches, *other_schedules(code[:1]), *other_schedules([paper])]


RECIPE = Recipe(
    name="cs-readme",
    paper="Savarese et al. 2020",
    where="the run of the authors' README",
    about="Three rounds of CS by the authors' code, and by the paper's rules where the code has others.",
    departures="50,000 images to train where the code takes 45,000; tickets compute without its factor 1/σ(s₀), which "
    "batch norm takes out.",
    data="CIFAR-10",
    model="ResNet-20",
    methods="CS, dense",
    cpu="8 of 85 epochs on 2,500 images, a quarter of the channels.",
    configs=configs,
)
