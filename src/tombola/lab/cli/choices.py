"""From the search that a person asks for on the command line to the configs of the runs that answer it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tombola.lab.cli.recipes import Training
from tombola.lab.config import Control, Dense, Method, RunConfig
from tombola.lab.errors import LabError
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP
from tombola.methods.stochastic import StochasticSparsification

CONTROLS: tuple[Control, ...] = ("shuffled", "reinitialised")
DEFAULT_ROUNDS = {"cs": 3, "asked": 1, "imp": 12, "iss": 5}


@dataclass(frozen=True, kw_only=True)
class Choices(Training):
    """What was asked for; None (or an empty tuple) leaves a setting to the recipe."""

    methods: tuple[str, ...] = ()
    rounds: int | None = None
    densities: tuple[float, ...] = ()
    initial_scores: tuple[float, ...] = ()
    penalty: float | None = None
    final_temperature: float | None = None
    keep: float | None = None
    rewind_epochs: float | None = None
    rewind_step: int | None = None
    controls: bool = True


def configs_of(choices: Choices) -> list[RunConfig]:
    """The runs that answer `choices`: each method with each of its settings, and dense training, for each seed.

    Raises:
        LabError: choices that contradict each other, or data or a model that cannot be had.
    """
    methods = choices.methods or ("cs",)
    _check(choices, methods)
    base, make = choices.base()
    rewind_step = _rewind_step(choices, base, make.data.steps(base.batch_size))
    scores = choices.score_optimizer()
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


def _rewind_step(choices: Choices, base: RunConfig, steps: int) -> int:
    """Where tickets start from; ``steps`` are those of an epoch."""
    if choices.rewind_step is not None:
        rewind_step = choices.rewind_step
    else:
        recipe = choices.recipe
        usual = recipe.rewind_epochs * min(1.0, base.epochs / recipe.epochs)  # the same share of a shorter training
        rewind_step = round((usual if choices.rewind_epochs is None else choices.rewind_epochs) * steps)
    if rewind_step >= base.epochs * steps:
        given = "--rewind-step" if choices.rewind_step is not None else "--rewind-epochs"
        raise LabError(f"{given}: step {rewind_step} must come before the end of a round, {base.epochs * steps} steps")
    return rewind_step


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
