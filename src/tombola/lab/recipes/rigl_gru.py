"""RigL, a character-level language model: a GRU on WikiText-103 at 75 % sparsity.

Evci, Gale, Menick, Castro & Elsen, arXiv 1911.11134, section 4.2: bytes, embedding 128, GRU 512, readout 256 and 128;
Adam at 7e-4, L2 5e-4, sequences of 512 in batches of 32, gradients clipped to 10, 200,000 steps; each layer alike;
ΔT = 100, α = 0.1 and moves to the end; pruning from step 50,000 to 150,000 every 1,000. No number is printed: pruning
is best, then RigL and SNFS, then SET; RigL does not reach pruning. From memory, the figure shows validation losses;
here those stand beside the ones on the test part, so that neither has to serve for choosing and for reporting.

Departs from the paper in:
  * six epochs of WikiText-103 instead of 200,000 steps (about 33,000 steps an epoch);
  * the embedding, which serves for the output too, is never masked here, and neither are biases;
  * static masks, three seeds, dense nets as long and for as much arithmetic, and for each method a cosine and a step
    schedule are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tombola.budgets import uniform
from tombola.lab.config import RunConfig
from tombola.lab.inputs import Text
from tombola.lab.methods import Dense
from tombola.lab.recipes.base import Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import dense, other_schedules
from tombola.lab.settings import Adam
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snfs import SNFS
from tombola.methods.static import Static

BASE = RunConfig(
    data="text/wikitext-103",
    model="gru_lm",
    method=Dense(),
    epochs=6,
    batch_size=32,
    inputs=Text(unit="bytes", length=512),
    optimizer=Adam(lr=7e-4, weight_decay=5e-4),
    clip=10.0,
)
DENSITY = 0.25
MOVING: tuple[type[RigL] | type[SET] | type[SNFS], ...] = (RigL, SET, SNFS)


def configs(scale: Scale) -> Sequence[RunConfig]:
    """All methods at one density, and dense nets."""
    base = smaller(BASE, scale, epochs=3, width=0.25)
    base = replace(base, inputs=by(scale, full=base.inputs, cpu=Text(length=128), smoke=Text(length=16)))
    every, prunings = by(scale, full=100, cpu=20, smoke=2), by(scale, full=1000, cpu=20, smoke=2)
    methods = (
        *(kind(density=DENSITY, budget=uniform, every=every, until=1.0, drop_fraction=0.1) for kind in MOVING),
        Static(density=DENSITY, budget=uniform),
        GradualMagnitude(density=DENSITY, budget=uniform, every=prunings, begin=0.25, until=0.75),
    )
    runs = [replace(base, method=method) for method in methods]
    return [*dense(runs), *runs, *other_schedules(runs)]


RECIPE = Recipe(
    name="rigl-gru",
    paper="Evci et al. 2020",
    where="section 4.2, the language model",
    about="A character-level GRU that keeps a quarter of its weights: bits per byte. The paper prints no number.",
    departures="Six epochs of WikiText-103 instead of 200,000 steps; the shared embedding carries no mask.",
    data="WikiText-103",
    model="GRU",
    methods="RigL, SET, SNFS, static, GMP, dense",
    cpu="3 of 6 epochs of any text of about a megabyte, sequences of 128, a quarter of the width.",
    configs=configs,
)
