"""RigL, appendix E: do winning tickets' initial weights help RigL? ResNet-50 on ImageNet at 80 % sparsity.

Evci, Gale, Menick, Castro & Elsen, arXiv 1911.11134. RigL trains from random connections; then once more from the same
initial weights with the connections that it ended with, which stay ("Lottery + Static") or move on ("Lottery + RigL").
Published: 70.82 ± 0.07 and 73.93 ± 0.09, both at 0.46 of dense training; RigL alone 74.55 ± 0.06 at 0.23, and trained
twice as long 76.06 ± 0.09 at 0.46. Settings as in rigl_imagenet.py, with uniform budgets and a dense first layer.

Departs from the paper in: what rigl_imagenet.py departs in; a static random mask, three seeds, dense nets as long and
for as much arithmetic, and a cosine for each method, are added; so are controls of the tickets that both lottery runs
train: as many connections in each layer at shuffled places, and the same connections over fresh weights. The first
training is the same in both lottery runs and is shown twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.methods import BUDGETS
from tombola.lab.recipes.base import Recipe, Scale, by, stretched
from tombola.lab.recipes.baselines import controlled, dense, schedules
from tombola.lab.recipes.imagenet import reduced
from tombola.lab.recipes.nets import RESNET50
from tombola.lab.recipes.rigl_imagenet import UNTIL
from tombola.methods.rigl import RigL
from tombola.methods.static import Static

DENSITY = 0.2
BUDGET = BUDGETS["uniform-first-dense"]


def configs(scale: Scale) -> Sequence[RunConfig]:
    """Both lottery runs, RigL once and twice as long, static masks, and dense nets."""
    base = reduced(RESNET50, scale)
    twice = replace(base, epochs=2 * base.epochs, schedule=stretched(base.schedule, base.epochs, 2 * base.epochs))
    method = RigL(density=DENSITY, budget=BUDGET, every=by(scale, full=100, cpu=4, smoke=1), until=UNTIL)
    rigl, longer = replace(base, method=method), replace(twice, method=method)
    static = replace(base, method=Static(density=DENSITY, budget=BUDGET))
    lottery = [replace(rigl, lottery="fixed"), replace(rigl, lottery="moving")]
    others = [other for run in (rigl, static, *lottery) for other in schedules(run)[1:]]
    return [*dense([rigl, longer, static]), rigl, longer, static, *(controlled(run, 1) for run in lottery), *others]


RECIPE = Recipe(
    name="rigl-lottery",
    paper="Evci et al. 2020",
    where="appendix E",
    about="RigL's last connections over the first weights, trained again, fixed or moving, beside RigL twice as long.",
    departures="The warm-up rises from epoch to epoch; the first training is the same in both lottery runs.",
    data="ImageNet",
    model="ResNet-50",
    methods="RigL, static, dense",
    cpu="6 of 100 epochs (12 of 200) on 2,500 images of CIFAR-10 for ImageNet, a quarter of the channels.",
    configs=configs,
)
