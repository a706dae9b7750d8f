"""From the sparse training that a person asks for on the command line to the configs of the runs that answer it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import nn

from tombola.lab import models
from tombola.lab.arithmetic import count, training_cost
from tombola.lab.cli.recipes import Training
from tombola.lab.config import BUDGETS, METHODS, Dense, Pruning, RunConfig
from tombola.lab.data import Dataset
from tombola.lab.errors import LabError
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.moves import Anneal, Moves, checked_counts
from tombola.patterns import NM, Pattern
from tombola.selection import maskable

MOVES = 30  # a training of few steps has at least so many times ΔT
SETTINGS = ("budget", "pattern", "every", "until", "drop_fraction", "anneal", "harden_at")
"""Options that are settings of some methods, by their names there."""


@dataclass(frozen=True, kw_only=True)
class SparseTraining(Training):
    """What was asked for; None (or an empty tuple) leaves a setting to the method or the recipe."""

    methods: tuple[str, ...] = ("rigl",)
    densities: tuple[float, ...] = ()
    budget: str | None = None
    pattern: Pattern | None = None
    every: int | None = None
    until: float | None = None
    drop_fraction: float | None = None
    anneal: Anneal | None = None
    harden_at: float | None = None
    equal_arithmetic: bool = False
    small_dense: bool = False

    def configs(self) -> list[RunConfig]:
        """Dense training, each method at each density, and the dense baselines that were asked for, for each seed.

        Raises:
            LabError: choices that contradict each other or do not fit the model, or data or a model that cannot be had.
        """
        self._check()
        base, data = self.base()
        model = _builder(base, data)(base.width)
        masked = maskable(model, lambda name, parameter: name not in base.unmasked)
        of_epoch = data.steps(base.batch_size)
        steps, usual = base.epochs * of_epoch, min(base.epochs, self.recipe.epochs) * of_epoch
        sparse = [self._method(name, d, usual) for name in self.methods if name != "dense" for d in self._densities]
        for method in sparse:
            _try(method, masked)
        runs = [replace(base, method=Dense())] if self.dense or "dense" in self.methods else []
        for method in sparse:
            scores = self.score_optimizer() if isinstance(method, ContinuousSparsification) else None
            runs.append(replace(base, method=method, score_optimizer=scores))
        if self.equal_arithmetic:
            for method in sparse:
                share = training_cost(method, count(model, data), masked, steps=steps)
                runs.append(replace(base, method=Dense(times=max(1, round(share * base.epochs)) / base.epochs)))
        if self.small_dense:
            runs += [replace(base, method=Dense(), width=_narrow(base, data, masked, d)) for d in self._densities]
        different = [run for place, run in enumerate(runs) if run not in runs[:place]]
        return [replace(run, seed=seed) for run in different for seed in self.seeds]

    @property
    def _densities(self) -> tuple[float, ...]:
        if isinstance(self.pattern, NM):
            return self.densities or (self.pattern.n / self.pattern.m,)
        return self.densities or (0.1,)

    def _check(self) -> None:
        sparse = [name for name in self.methods if name != "dense"]
        for name in SETTINGS:
            takers = [method for method, kind in METHODS.items() if name in _defaults(kind)]
            if getattr(self, name) is not None and not set(takers) & set(sparse):
                option = f"--{name.replace('_', '-')}"
                raise LabError(f"{option}: is for --method {' or '.join(takers)}, not {', '.join(self.methods)}")
        for name in ("densities", "equal_arithmetic", "small_dense"):
            if getattr(self, name) and not sparse:
                option = "--density" if name == "densities" else f"--{name.replace('_', '-')}"
                raise LabError(f"{option}: is for sparse methods, not {', '.join(self.methods)}")

    def _method(self, name: str, density: float, steps: int) -> Pruning:
        """The method with what was asked for; ``steps`` are those of a training that is not prolonged."""
        kind = METHODS[name]
        defaults = _defaults(kind)
        asked = {key: getattr(self, key) for key in SETTINGS if key in defaults and getattr(self, key) is not None}
        if "budget" in asked:
            asked["budget"] = BUDGETS[asked["budget"]]
        elif isinstance(self.pattern, NM) and "budget" in defaults:
            asked["budget"] = BUDGETS["uniform"]  # N:M knows no other
        if "every" in defaults:
            asked.setdefault("every", min(defaults["every"], max(1, steps // MOVES)))
        for earlier in ("begin", "prune_until"):  # stay at the same share of what ends with ``until``
            if earlier in defaults and self.until is not None:
                asked[earlier] = round(defaults[earlier] * self.until / defaults["until"], 6)
        if "harden_at" in defaults:
            asked.setdefault("harden_at", 0.8)
        try:
            method: Pruning = kind(density=density, **asked)
        except ValueError as error:
            raise LabError(f"--method {name}: {error}") from None
        return method


def _defaults(kind: type) -> dict[str, Any]:
    """The settings of a method, with their defaults; without ``anneal`` where that is not of a drop fraction."""
    return {f.name: f.default for f in fields(kind) if f.name != "anneal" or issubclass(kind, Moves)}


def _builder(base: RunConfig, data: Dataset) -> Callable[[float], nn.Module]:
    """Width -> model."""
    build = partial(models.build, base.model, input_shape=data.input_shape, classes=data.classes, seed=0)
    return lambda width: build(width=width)


def _try(method: Pruning, masked: dict[str, nn.Parameter]) -> None:
    """Raise LabError if the method's budget and pattern cannot be had with these parameters."""
    if isinstance(method, ContinuousSparsification):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will say it
            checked_counts(masked, method.budget, method.density, method.pattern)
    except ValueError as error:
        raise LabError(f"{error} (here: --unmasked NAME,...)" if "select=" in str(error) else str(error)) from None


def _narrow(base: RunConfig, data: Dataset, masked: dict[str, nn.Parameter], density: float) -> float:
    """The width at which the dense net has as many parameters as the sparse one."""
    build = _builder(base, data)
    dropped = sum(p.numel() - round(density * p.numel()) for p in masked.values())
    parameters = sum(p.numel() for p in build(base.width).parameters())
    return models.width_for(build, parameters - dropped)
