"""RigL on ImageNet: ResNet-50 and MobileNet-v1, once and five times as long.

Evci, Gale, Menick, Castro & Elsen, arXiv 1911.11134: figure 2, appendix L and the MobileNet table. SGD with Nesterov
momentum and weight decay 1e-4, batches of 4,096 at 1.6, label smoothing 0.1, ΔT = 100, α = 0.3, moves until step 25,000
of 32,000; uniform with a dense first layer, or ERK; pruning from step 10,000 to 25,000 every 1,000, also half as long
again. ResNet-50: a tenth after epochs 30, 70 and 90. MobileNet-v1: warm-up to epoch 8, a tenth after 40, 75 and 95;
first and depthwise layers dense and outside the budget, so that what is left is plainly uniform. Small dense nets and
big sparse ones (as many weights as the dense net, or nearly) have the widths of the authors' code.

Departs from the paper in:
  * 100 epochs are 31,200 whole batches, not 32,000; the warm-up rises from epoch to epoch, not from step to step,
    and is as long in a longer training;
  * a step is computed in parts of 256 images, which batch norm sees; how many the authors' saw is not known;
  * with uniform budgets other layers make up for the dense first one, so that the density is the one asked for; the
    authors' code does not;
  * MobileNet-v1's last drop (to 0.0003 at epoch 120) lies behind the end of 100 epochs and is left out. The paper has
    densities of 0.25 and 0.1 for it, and the same as for ResNet-50 are added. No width of small dense nets is printed
    for 0.2 and 0.035; these two have as many weights as the rule of the others gives;
  * of big sparse nets the paper prints MobileNet-v1 at a density of 0.25 alone, five times as long, and so they are
    trained here at full scale;
  * DNW and DSR, which the paper has from others, are not done, and neither are its 99 % and its longest trainings;
  * three seeds; dense nets as long (also five times) and for as much arithmetic, and a cosine for each method at one
    density, are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from tombola.budgets import Budget, uniform
from tombola.lab.config import RunConfig
from tombola.lab.methods import BUDGETS, Dense, Sparse
from tombola.lab.models import unmasked
from tombola.lab.recipes.base import Recipe, Scale, by, stretched
from tombola.lab.recipes.baselines import dense, other_schedules
from tombola.lab.recipes.imagenet import reduced
from tombola.lab.recipes.nets import RESNET50
from tombola.lab.settings import Drops, WarmUp
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snfs import SNFS
from tombola.methods.snip import SNIP
from tombola.methods.static import Static

MOBILENET = replace(
    RESNET50,
    model="mobilenet_v1",
    schedule=WarmUp(epochs=8, then=Drops(epochs=(40, 75, 95), by=0.1)),
    unmasked=unmasked("mobilenet_v1"),
)
BEGIN, UNTIL = 10_000 / 32_000, 25_000 / 32_000
# Density -> width. A small dense net takes as many bytes as the sparse one with a bit for each masked weight.
RESNET50_SMALL = {0.2: 0.465, 0.1: 0.34, 0.05: 0.26, 0.035: 0.231}
MOBILENET_SMALL = {0.25: 0.47, 0.2: 0.414, 0.1: 0.285, 0.05: 0.204, 0.035: 0.176}
RESNET50_BIG = {0.2: 2.1, 0.1: 2.8}
MOBILENET_BIG = {0.25: 1.98, 0.1: 3.0, 0.05: 3.98}
LONGER = 5


def configs(
    scale: Scale, *, base: RunConfig, flat: Budget, small: Mapping[float, float], big: Mapping[float, float]
) -> list[RunConfig]:
    """All methods at all densities, RigL five times and pruning 1.5 times as long too, small dense and big sparse nets,
    other schedules at one density, and dense nets.

    Args:
        flat: the uniform budget of this net.
        small, big: density -> width; those of ``small`` are the densities at full scale.
    """
    densities = by(scale, full=tuple(small), cpu=(0.1,), smoke=(0.1,))
    usual = reduced(base, scale)
    longer, half_again = (_longer(usual, epochs) for epochs in (LONGER * usual.epochs, -(-3 * usual.epochs // 2)))
    once = [replace(usual, method=method) for d in densities for method in _methods(d, flat, scale)]
    long = [replace(longer, method=run.method) for run in once if isinstance(run.method, RigL)]
    long += [replace(half_again, method=run.method) for run in once if isinstance(run.method, GradualMagnitude)]
    narrow = [
        replace(one, method=Dense(), width=usual.width * small[d]) for d in densities for one in (usual, longer)
    ]  # fmt: skip
    wide = [
        replace(by(scale, full=longer, cpu=usual, smoke=usual), method=run.method, width=usual.width * big[d])
        for d in densities if d in big for run in once if isinstance(run.method, RigL) and run.method.density == d
    ]  # fmt: skip
    tenth = [replace(usual, method=method) for method in _methods(0.1, flat, scale)]
    return [*dense([*once, *long]), *once, *long, *narrow, *wide, *other_schedules(tenth)]


def _longer(run: RunConfig, epochs: int) -> RunConfig:
    return replace(run, epochs=epochs, schedule=stretched(run.schedule, run.epochs, epochs))


def _methods(density: float, flat: Budget, scale: Scale) -> list[Sparse]:
    every, prunings = by(scale, full=100, cpu=4, smoke=1), by(scale, full=1000, cpu=8, smoke=1)
    erk = BUDGETS["erk"]
    return [
        RigL(density=density, budget=flat, every=every, until=UNTIL, drop_fraction=0.3),
        RigL(density=density, budget=erk, every=every, until=UNTIL, drop_fraction=0.3),
        SET(density=density, budget=flat, every=every, until=UNTIL, drop_fraction=0.3),
        SNFS(density=density, budget=erk, every=every, until=UNTIL, drop_fraction=0.3),
        SNIP(density=density, budget=flat),
        Static(density=density, budget=flat),
        Static(density=density, budget=erk),
        GradualMagnitude(density=density, budget=uniform, every=prunings, begin=BEGIN, until=UNTIL),
    ]


RESNET50_RECIPE = Recipe(
    name="rigl-resnet50",
    paper="Evci et al. 2020",
    where="figure 2 and appendix L",
    about="Sparse from the first step at 80, 90, 95 and 96.5 % sparsity; RigL also five times as long, and wider.",
    departures="Uniform budgets make up for the dense first layer; the warm-up rises by epochs; batch norm sees 256 "
    "images at a time; no DNW or DSR.",
    data="ImageNet",
    model="ResNet-50",
    methods="RigL, SET, SNFS, SNIP, static, GMP, dense",
    cpu="90 % alone, 6 of 100 epochs (30 of 500) on 2,500 images of CIFAR-10 for ImageNet, a quarter of the channels; "
    "wider nets only once as long.",
    configs=partial(
        configs, base=RESNET50, flat=BUDGETS["uniform-first-dense"], small=RESNET50_SMALL, big=RESNET50_BIG
    ),
)
MOBILENET_RECIPE = replace(
    RESNET50_RECIPE,
    name="rigl-mobilenet",
    where="the MobileNet table",
    about="Sparse from the first step at 75, 80, 90, 95 and 96.5 % sparsity; RigL also five times as long and "
    "in wider nets.",
    departures="The paper has 75 and 90 % alone, and wider nets at 75 %; the warm-up rises by epochs; batch "
    "norm sees 256 images at a time.",
    model="MobileNet-v1",
    configs=partial(configs, base=MOBILENET, flat=uniform, small=MOBILENET_SMALL, big=MOBILENET_BIG),
)
