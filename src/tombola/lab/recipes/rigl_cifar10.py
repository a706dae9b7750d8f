"""RigL, WRN-22-2 on CIFAR-10 at four densities, trained once and twice as long.

Evci, Gale, Menick, Castro & Elsen, "Rigging the Lottery", arXiv 1911.11134, the CIFAR-10 figure; its exact numbers were
posted by an author. 250 epochs (97,656 steps of 128), SGD at 0.1 with Nesterov momentum and weight decay 5e-4, a fifth
after each 30,000 steps; ERK; ΔT = 100, α = 0.3, moves until step 75,000; pruning from step 20,000 to 75,000, every
1,000. The first convolution carries no mask. Twice as long: drops and end of moves at twice the steps, ΔT as it is.

Departs from the paper in:
  * an epoch has 390 whole batches: 97,500 steps, and drops at the ends of epochs 77, 154 and 230;
  * how pruning shares its weights out among the layers is not said; here each layer alike;
  * SET, three seeds, dense nets as long and for as much arithmetic are added, and a cosine for each method at one
    density, a tenth, and for RigL at the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.budgets import erk, uniform
from tombola.lab.config import RunConfig
from tombola.lab.methods import Dense
from tombola.lab.models import unmasked
from tombola.lab.recipes.base import Recipe, Scale, by, smaller, stretched
from tombola.lab.recipes.baselines import dense, other_schedules
from tombola.lab.settings import SGD, Drops
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.static import Static

BASE = RunConfig(
    data="cifar10",
    model="wrn_22_2",
    method=Dense(),
    epochs=250,
    batch_size=128,
    augment=True,
    optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Drops(epochs=(77, 154, 230), by=0.2),
    unmasked=unmasked("wrn_22_2"),
)
DENSITIES = (0.5, 0.2, 0.1, 0.05)
OTHERS_AT = 0.1  # where each method has another schedule, too
STEPS = 97_656
BEGIN, UNTIL = 20_000 / STEPS, 75_000 / STEPS


def configs(scale: Scale) -> Sequence[RunConfig]:
    """All methods at all densities, once and twice as long, and dense nets."""
    base = smaller(BASE, scale, epochs=6, width=0.25, examples=2500)
    twice = replace(base, epochs=2 * base.epochs, schedule=stretched(base.schedule, base.epochs, 2 * base.epochs))
    once, moves = _of(base, scale), [run for run in _of(twice, scale) if isinstance(run.method, RigL | Static)]
    return [
        *dense([*once, *moves]),
        *once,
        *moves,
        *other_schedules(once[:1]),
        *other_schedules(_at(base, OTHERS_AT, scale)),
    ]


def _of(base: RunConfig, scale: Scale) -> list[RunConfig]:
    densities = by(scale, full=DENSITIES, cpu=DENSITIES[1:], smoke=(OTHERS_AT,))
    return [run for density in densities for run in _at(base, density, scale)]


def _at(base: RunConfig, density: float, scale: Scale) -> list[RunConfig]:
    every, prunings = by(scale, full=100, cpu=4, smoke=1), by(scale, full=1000, cpu=8, smoke=1)
    methods = (
        RigL(density=density, budget=erk, every=every, until=UNTIL, drop_fraction=0.3),
        SET(density=density, budget=erk, every=every, until=UNTIL, drop_fraction=0.3),
        Static(density=density, budget=erk),
        GradualMagnitude(density=density, budget=uniform, every=prunings, begin=BEGIN, until=UNTIL),
    )
    return [replace(base, method=method) for method in methods]


RECIPE = Recipe(
    name="rigl-cifar10",
    paper="Evci et al. 2020",
    where="the CIFAR-10 figure",
    about="Sparse from the first step: RigL, SET and static masks (ERK), and gradual pruning, once and twice as long.",
    departures="How pruning shares its weights out among the layers is not said there; here each layer alike.",
    data="CIFAR-10",
    model="WRN-22-2",
    methods="RigL, SET, static, GMP, dense",
    cpu="6 of 250 epochs (and 12 of 500) on 2,500 images, a quarter of the channels, three densities.",
    configs=configs,
)
