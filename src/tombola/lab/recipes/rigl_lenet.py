"""RigL, compressing LeNet-300-100 on MNIST.

Evci, Gale, Menick, Castro & Elsen, arXiv 1911.11134, appendix B: SGD at 0.2 with Nesterov momentum, batches of 100, 200
epochs, a third after epochs 75 and 95, weight decay 1e-4, ΔT = 100, α = 0.3, moves until step 50,000 of 120,000; the
first layer keeps 1 %, the second 11 %, the output stays dense. Published: 1.44 % error at best, 1.48 % at the end.

Departs from the paper in:
  * MNIST is read as an image folder (`--data-dir`, train/CLASS and test/CLASS), in grey;
  * neurons that lost all connections are not removed; RigL+, which starts anew from the smaller net that is then left,
    is not done;
  * SET and static masks, three seeds, dense nets as long and for as much arithmetic, and a cosine are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.lab.config import BUDGETS, Dense, RunConfig
from tombola.lab.inputs import Images
from tombola.lab.recipes.base import SMOKE_EXAMPLES, Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import dense, schedules
from tombola.lab.settings import SGD, Drops
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.static import Static

BASE = RunConfig(
    data="folder/mnist",
    model="lenet_300_100",
    method=Dense(),
    epochs=200,
    batch_size=100,
    optimizer=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Drops(epochs=(75, 95), by=1 / 3),
    unmasked=("fc3.weight",),
    inputs=Images(channels=1),
)
BUDGET = BUDGETS["rigl-lenet"]  # 1 % of fc1, 11 % of fc2, whatever density is asked for
MOVING: tuple[type[RigL] | type[SET], ...] = (RigL, SET)
UNTIL = 50_000 / 120_000


def configs(scale: Scale) -> Sequence[RunConfig]:
    """RigL, SET, static masks and dense nets."""
    base = smaller(BASE, scale, epochs=40, width=1.0)
    if scale != "full":
        base = replace(
            base, data="digits", inputs=None, width=1.0, examples=by(scale, full=None, cpu=None, smoke=SMOKE_EXAMPLES)
        )
    first, second = 300 * by(scale, full=784, cpu=64, smoke=64), 100 * 300
    density = round((0.01 * first + 0.11 * second) / (first + second), 4)  # what that comes to
    every = by(scale, full=100, cpu=10, smoke=1)
    methods = (
        *(kind(density=density, budget=BUDGET, every=every, until=UNTIL, drop_fraction=0.3) for kind in MOVING),
        Static(density=density, budget=BUDGET),
    )
    runs = [replace(base, method=method) for method in methods]
    return [*dense(runs), *runs, *schedules(runs[0])[1:]]


RECIPE = Recipe(
    name="rigl-lenet",
    paper="Evci et al. 2020",
    where="appendix B, MNIST",
    about="A small fully connected net with 1 % of its first layer and 11 % of its second.",
    departures="MNIST is read as an image folder; RigL+ is not done.",
    data="MNIST",
    model="LeNet-300-100",
    methods="RigL, SET, static, dense",
    cpu="40 of 200 epochs on scikit-learn's 8×8 digits instead of MNIST.",
    configs=configs,
)
