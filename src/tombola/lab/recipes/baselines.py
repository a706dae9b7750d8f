"""What makes a comparison fair: dense nets trained as long, and for as much arithmetic; other schedules for both;
controls of tickets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from tombola import flops
from tombola.lab import models
from tombola.lab.arithmetic import training_cost
from tombola.lab.config import Control, RunConfig
from tombola.lab.methods import Dense
from tombola.lab.recipes.base import different, stretched
from tombola.lab.settings import Constant, Cosine, Drops, Schedule, WarmUp
from tombola.methods.magnitude import IMP
from tombola.selection import maskable

CONTROLS: tuple[Control, ...] = ("shuffled", "reinitialised")
STEP, STEP_EPOCHS = Drops(epochs=(50, 75), by=0.1), 100  # a tenth after a half and after three quarters
SHAPES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "digits": ((1, 8, 8), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tombola.lab.recipes.classes:cifar10_animals": ((3, 32, 32), 6),
    "tombola.lab.recipes.classes:cifar10_vehicles": ((3, 32, 32), 4),
    "tombola.lab.recipes.classes:digits_to_5": ((1, 8, 8), 6),
    "tombola.lab.recipes.classes:digits_from_6": ((1, 8, 8), 4),
    "folder/mnist": ((1, 28, 28), 10),
    "folder/imagenet": ((3, 224, 224), 1000),
    "text/wikitext-103": ((16,), 256),
}
"""Of the recipes' data: the shape of one example, and the number of classes; of texts the shape does not matter."""
POINTS = 100  # of a training, at which its arithmetic is looked at


def controlled(run: RunConfig, *rounds: int) -> RunConfig:
    """The same search, and its tickets of these rounds shuffled and re-initialised."""
    return replace(run, controls=CONTROLS, control_rounds=rounds)


def schedules(run: RunConfig) -> list[RunConfig]:
    """The run with its own schedule, which stands first, and with the others of cosine and step."""
    own, warm = run.schedule, run.schedule if isinstance(run.schedule, WarmUp) else None
    inner = own.then if isinstance(own, WarmUp) else own
    others: list[Cosine | Drops] = []
    if not isinstance(inner, Cosine):
        others.append(Cosine())
    if isinstance(inner, Constant | Cosine):
        step = stretched(STEP, STEP_EPOCHS, run.epochs)
        assert isinstance(step, Drops)
        others.append(step)
    made: list[Schedule] = [own, *(WarmUp(epochs=warm.epochs, then=other) if warm else other for other in others)]
    return [replace(run, schedule=schedule) for schedule in made]


def other_schedules(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """The first run of each method among ``runs`` with the others of cosine and step, without its controls."""
    first: dict[str, RunConfig] = {}
    for run in runs:
        first.setdefault(run.method_name, replace(run, controls=(), control_rounds=()))
    return [other for run in first.values() for other in schedules(run)[1:]]


def dense(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """The dense nets beside ``runs``: with every schedule for as many epochs as each one's training; for as many as a
    search and its last retraining; and for as many as pay for the arithmetic of each run."""
    found = []
    for run in runs:
        plain = replace(
            run, method=Dense(), rounds=1, rewind_step=0, retrain="all", controls=(), control_rounds=(),
            score_optimizer=None, sparse=False, transfer=None,
        )  # fmt: skip
        found += schedules(plain)
        if run.searches:
            found.append(replace(plain, method=Dense(times=run.rounds + 1)))
        found.append(replace(plain, method=Dense(times=max(1, round(arithmetic(run))) / run.epochs)))
    exact = [replace(run, method=Dense()) if run.method == Dense(times=1.0) else run for run in found]
    return different(exact)


def arithmetic(run: RunConfig) -> float:
    """Of a training, or of a search and the training of its last ticket, in epochs of the dense net.

    Scores are learnt at the cost of the dense net; the last ticket of such a search counts as dense too, as nobody
    knows its density before. Layers that are ranked together count as equally dense.
    """
    if not run.searches:
        counted, masked = _counted(run.model, run.width, run.data, run.unmasked)
        return run.epochs * training_cost(run.training_method, counted, masked, steps=POINTS)
    if not isinstance(run.method, IMP):
        return float(run.epochs * (run.rounds + 1))
    counted, masked = _counted(run.model, run.width, run.data, run.unmasked)
    keep = run.method.keep
    shares = keep if isinstance(keep, Mapping) else dict.fromkeys(masked, keep)
    forward = (
        sum(layer.dense * (shares.get(name, 1.0) ** round_) for name, layer in counted.layers.items())
        for round_ in range(run.rounds + 1)
    )
    return run.epochs * math.fsum(forward) / counted.dense


@cache
def _counted(
    model: str, width: float, data: str, unmasked: tuple[str, ...]
) -> tuple[flops.Count, Mapping[str, nn.Parameter]]:
    """Multiply-adds of the net, which is never given any memory, and its masked parameters."""
    shape, classes = SHAPES[data]
    with torch.device("meta"):
        net = models.build(model, input_shape=shape, classes=classes, seed=0, width=width)
        example = torch.zeros(1, *shape, dtype=torch.long if len(shape) == 1 else torch.float32)
    return flops.count(net, example), dict(maskable(net, lambda name, _: name not in unmasked))
