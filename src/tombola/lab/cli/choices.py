"""From what a person asks for on the command line to the configs of the runs that answer it.

Whatever is not asked for comes from a recipe: the published one for the networks of the papers, the digits study's for
everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tombola.lab import models
from tombola.lab.config import Control, Dense, Method, RunConfig
from tombola.lab.data import load
from tombola.lab.errors import LabError
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Cosine, Drops, Optimizer, Schedule
from tombola.lab.study import BASE, SCORE_OPTIMIZER
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP
from tombola.methods.stochastic import StochasticSparsification

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine"]
CONTROLS: tuple[Control, ...] = ("shuffled", "reinitialised")
OPTIMIZERS: dict[str, type[SGD] | type[Adam] | type[AdamW]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained unless told otherwise."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    score_optimizer: Optimizer | None = None
    schedule: Schedule = Constant()  # noqa: RUF009 - frozen
    augment: bool = False
    rewind_epochs: float = 0.0


# Conv-2/4/6: Frankle & Carbin, ICLR 2019. ResNet-20: Savarese et al., whose code adds Nesterov momentum.
_CONV = Recipe(epochs=40, batch_size=60, optimizer=Adam(lr=3e-4))
_RESNET = Recipe(
    epochs=85,
    batch_size=128,
    optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Drops(epochs=(56, 71), by=0.1),
    augment=True,
    rewind_epochs=2.0,
)
_SMALL = Recipe(
    epochs=BASE.epochs,
    batch_size=BASE.batch_size,
    optimizer=BASE.optimizer,
    score_optimizer=SCORE_OPTIMIZER,
    schedule=BASE.schedule,
)
RECIPES = {"conv2": _CONV, "conv4": _CONV, "conv6": _CONV, "resnet20": _RESNET}
DEFAULT_MODEL = {"digits": "lenet_300_100", "cifar10": "resnet20"}
DEFAULT_ROUNDS = {"cs": 3, "asked": 1, "imp": 12, "iss": 5}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What was asked for; None (or an empty tuple) leaves a setting to the recipe."""

    methods: tuple[str, ...] = ()
    data: str = "digits"
    data_dir: Path | None = None
    model: str | None = None
    rounds: int | None = None
    seeds: tuple[int, ...] = (0,)
    densities: tuple[float, ...] = ()
    initial_scores: tuple[float, ...] = ()
    penalty: float | None = None
    final_temperature: float | None = None
    keep: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: OptimizerName | None = None
    weight_decay: float | None = None
    schedule: ScheduleName | None = None
    rewind_epochs: float | None = None
    rewind_step: int | None = None
    controls: bool = True
    dense: bool = True


def configs_of(choices: Choices) -> list[RunConfig]:
    """The runs that answer `choices`: each method with each of its settings, and dense training, for each seed.

    Raises:
        LabError: choices that contradict each other, or data or a model that cannot be had.
    """
    methods = choices.methods or ("cs",)
    _check(choices, methods)
    model = choices.model or DEFAULT_MODEL.get(choices.data, "lenet_300_100")
    if choices.model is None and ":" in choices.data:
        raise LabError("--model: is needed with data of your own; give a built-in one or your own as module:function")
    recipe = RECIPES.get(model, _SMALL)
    base, rewind_step = _base(choices, model, recipe)
    scores = recipe.score_optimizer if choices.optimizer is None else None
    controls = CONTROLS if choices.controls else ()
    wanted = [(method, rounds) for name in methods for method, rounds in _methods(choices, name)]
    if choices.dense and "dense" not in methods:
        wanted.insert(0, (Dense(), 1))
    runs = []
    for method, rounds in wanted:
        if isinstance(method, Dense):
            run = replace(base, method=method)
        else:
            run = replace(
                base,
                method=method,
                rounds=rounds,
                score_optimizer=None if isinstance(method, IMP) else scores,
                rewind_step=rewind_step,
                controls=controls,
                control_rounds=(rounds,) if controls else (),
            )
        runs += [replace(run, seed=seed) for seed in choices.seeds]
    return runs


def _check(choices: Choices, methods: Iterable[str]) -> None:
    needs = {
        "--density": (bool(choices.densities), {"cs"}),
        "--initial-score": (bool(choices.initial_scores), {"cs", "iss"}),
        "--penalty": (choices.penalty is not None, {"cs", "iss"}),
        "--final-temperature": (choices.final_temperature is not None, {"cs"}),
        "--keep": (choices.keep is not None, {"imp"}),
        "--rounds": (choices.rounds is not None, {"cs", "imp", "iss"}),
    }
    for option, (given, takers) in needs.items():
        if given and not takers & set(methods):
            raise LabError(f"{option}: is for --method {' or '.join(sorted(takers))}, not {', '.join(methods)}")
    if choices.rewind_epochs is not None and choices.rewind_step is not None:
        raise LabError("--rewind-epochs: give it or --rewind-step, not both")


def _base(choices: Choices, model: str, recipe: Recipe) -> tuple[RunConfig, int]:
    """What all runs have in common, and the rewind step. Data and model are made once, so that a mistake shows now."""
    epochs, batch_size = choices.epochs or recipe.epochs, choices.batch_size or recipe.batch_size
    data = load(choices.data, data_dir=choices.data_dir)
    models.build(model, input_shape=data.input_shape, classes=data.classes, seed=0)
    steps = data.steps(batch_size)
    if choices.rewind_step is not None:
        rewind_step = choices.rewind_step
    else:
        usual = recipe.rewind_epochs * min(1.0, epochs / recipe.epochs)  # the same share of a shorter training
        wish = usual if choices.rewind_epochs is None else choices.rewind_epochs
        rewind_step = round(wish * steps)
    if rewind_step >= epochs * steps:
        given = "--rewind-step" if choices.rewind_step is not None else "--rewind-epochs"
        raise LabError(f"{given}: step {rewind_step} must come before the end of a round, {epochs * steps} steps")
    base = RunConfig(
        data=choices.data,
        model=model,
        method=Dense(),
        epochs=epochs,
        batch_size=batch_size,
        augment=recipe.augment and choices.data == "cifar10",
        optimizer=_optimizer(choices, recipe),
        schedule=_schedule(choices, recipe, epochs),
        unmasked=models.unmasked(model),
    )
    return base, rewind_step


def _optimizer(choices: Choices, recipe: Recipe) -> Optimizer:
    same = choices.optimizer is None or isinstance(recipe.optimizer, OPTIMIZERS[choices.optimizer])
    optimizer = recipe.optimizer if same or choices.optimizer is None else OPTIMIZERS[choices.optimizer]()
    if choices.lr is not None:
        optimizer = replace(optimizer, lr=choices.lr)
    return optimizer if choices.weight_decay is None else replace(optimizer, weight_decay=choices.weight_decay)


def _schedule(choices: Choices, recipe: Recipe, epochs: int) -> Schedule:
    """The asked-for schedule, or the recipe's with its drops at the same shares of the training."""
    if choices.schedule is not None:
        return Cosine() if choices.schedule == "cosine" else Constant()
    if isinstance(recipe.schedule, Drops) and epochs != recipe.epochs:
        drops = {max(1, math.floor(drop * epochs / recipe.epochs)) for drop in recipe.schedule.epochs}
        return replace(recipe.schedule, epochs=tuple(sorted(drops)))
    return recipe.schedule


def _methods(choices: Choices, name: str) -> list[tuple[Method, int]]:
    """Each method of that name that was asked for, with its number of rounds."""

    def rounds(kind: str) -> int:
        return choices.rounds or DEFAULT_ROUNDS[kind]

    if name == "dense":
        return [(Dense(), 1)]
    if name == "imp":
        return [(IMP() if choices.keep is None else IMP(keep=choices.keep), rounds("imp"))]
    if name == "iss":
        iss = StochasticSparsification()
        if choices.penalty is not None:
            iss = replace(iss, penalty=choices.penalty)
        scores = choices.initial_scores or (iss.initial_score,)
        return [(replace(iss, initial_score=score), rounds("iss")) for score in scores]
    cs = ContinuousSparsification()
    if choices.penalty is not None:
        cs = replace(cs, penalty=choices.penalty)
    if choices.final_temperature is not None:
        cs = replace(cs, final_temperature=choices.final_temperature)
    swept = choices.initial_scores or (() if choices.densities else (cs.initial_score,))
    asked = [(replace(cs, density=density), rounds("asked")) for density in choices.densities]
    return [*((replace(cs, initial_score=score), rounds("cs")) for score in swept), *asked]
