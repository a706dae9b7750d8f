"""From the search that a person asks for on the command line to the configs of the runs that answer it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tombola.lab.cli.recipes import AUGMENTED, INPUTS, Training
from tombola.lab.cli.values import Epochs
from tombola.lab.config import Control, RunConfig
from tombola.lab.errors import LabError
from tombola.lab.methods import Dense, Method
from tombola.lab.runs.transplant import check as check_fit
from tombola.lab.transfer import Transfer
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
    transfer_to: str | None = None
    transfer_dir: Path | None = None
    transfer_epochs: Epochs | None = None

    def here(self) -> Choices:
        """The same without a transfer, of options for data only those for its own."""
        assert self.transfer_to is not None
        return replace(self, **_NO_TRANSFER, **_unfit(self.data, self.transfer_to))

    def there(self) -> Choices:
        """The same search on the data that tickets are transferred to.

        Raises:
            LabError: it is not said where these lie.
        """
        assert self.transfer_to is not None
        data_dir = self.transfer_dir or self.data_dir
        if self.transfer_to in ("folder", "text") and data_dir is None:
            raise LabError(f"--transfer-to {self.transfer_to}: say which with --transfer-dir")
        return replace(
            self,
            data=self.transfer_to,
            data_dir=data_dir,
            model=self.model_name,
            epochs=self.transfer_epochs or self.epochs,
            **_NO_TRANSFER,
            **_unfit(self.transfer_to, self.data),
        )


_NO_TRANSFER: dict[str, Any] = {"transfer_to": None, "transfer_dir": None, "transfer_epochs": None}


def _unfit(data: str, other: str) -> dict[str, Any]:
    """Options that are for the ``other`` data alone, as if they had not been given."""
    takers = {**INPUTS, "cutout": AUGMENTED, "augment": AUGMENTED}
    names = [name for name, able in takers.items() if data not in able and other in able]
    return {f.name: f.default for f in fields(Choices) if f.name in names}


def configs_of(choices: Choices) -> list[RunConfig]:
    """The runs that answer `choices`: each method with each of its settings, and dense training, for each seed; with a
    transfer all of it on the other data too.

    Raises:
        LabError: choices that contradict each other, or data or a model that cannot be had.
    """
    _check(choices)
    if choices.transfer_to is None:
        return _of(choices, None)
    here, there = choices.here(), choices.there()
    if here.data_name == there.data_name:
        raise LabError(f"--transfer-to: {there.data_name} is what tickets are searched on already; give other data")
    (_, source), (base, target) = here.base(), there.base()
    check_fit(source, target)  # what it warns of the runs tell
    shared = {f.name: getattr(base, f.name) for f in fields(Transfer)}
    return [*_of(here, Transfer(**shared)), *_of(there, None)]


def _of(choices: Choices, transfer: Transfer | None) -> list[RunConfig]:
    """The runs on the data of `choices` itself."""
    methods = choices.methods or ("cs",)
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
                transfer=transfer,
            )
        runs += [replace(run, seed=seed) for seed in choices.seeds]
    return runs


def _check(choices: Choices) -> None:
    methods = choices.methods or ("cs",)
    needs = {
        "--density": (bool(choices.densities), {"cs"}),
        "--initial-score": (bool(choices.initial_scores), {"cs", "iss"}),
        "--penalty": (choices.penalty is not None, {"cs", "iss"}),
        "--final-temperature": (choices.final_temperature is not None, {"cs"}),
        "--keep": (choices.keep is not None, {"imp"}),
        "--rounds": (choices.rounds is not None, {"cs", "imp", "iss"}),
        "--transfer-to": (choices.transfer_to is not None, {"cs", "imp", "iss"}),
    }
    for option, (given, takers) in needs.items():
        if given and not takers & set(methods):
            raise LabError(f"{option}: is for --method {' or '.join(sorted(takers))}, not {', '.join(methods)}")
    if choices.rewind_epochs is not None and choices.rewind_step is not None:
        raise LabError("--rewind-epochs: give it or --rewind-step, not both")
    for name in ("transfer_dir", "transfer_epochs"):
        if getattr(choices, name) is not None and choices.transfer_to is None:
            raise LabError(f"--{name.replace('_', '-')}: is for --transfer-to, so give that too")


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
