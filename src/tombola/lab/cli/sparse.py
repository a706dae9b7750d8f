"""From the sparse training that a person asks for on the command line to the configs of the runs that answer it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import nn

from tombola.lab import models
from tombola.lab.arithmetic import count, planned_counts, training_cost
from tombola.lab.cli.recipes import Training
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.methods import BUDGETS, METHODS, REALLY_SPARSE, Dense, Pruning, never_dense
from tombola.lab.runs.workshop import Workshop
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.granet import GraNet
from tombola.methods.moves import Anneal, Moves
from tombola.patterns import NM, Pattern

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
    sparse: bool = False

    def configs(self) -> list[RunConfig]:
        """Dense training, each method at each density, and the dense baselines that were asked for, for each seed.

        Raises:
            LabError: choices that contradict each other or do not fit the model, or data or a model that cannot be had.
        """
        self._check()
        base, make = self.base()
        model = make.model()
        masked, of_epoch = make.maskable(model), make.data.steps(base.batch_size)
        steps, usual = base.epochs * of_epoch, min(base.epochs, self.recipe.epochs) * of_epoch
        sparse = [self._method(name, d, usual) for name in self.methods if name != "dense" for d in self._densities]
        for method in sparse:
            _try(method, masked)
        runs = [replace(base, method=Dense())] if self.dense or "dense" in self.methods else []
        for method in sparse:
            scores = self.score_optimizer() if isinstance(method, ContinuousSparsification) else None
            run = replace(base, method=method, score_optimizer=scores)
            runs.append(replace(run, sparse=True, channels_last=False, compile=False) if self.sparse else run)
        if self.sparse:
            replace(make, config=runs[-1]).check()
        if self.equal_arithmetic:
            counted = count(model, make.data, masked)
            if counted is None:
                raise LabError(f"--equal-arithmetic: {base.model} uses a masked weight that is no layer's, not counted")
            for method in sparse:
                share = training_cost(method, counted, masked, steps=steps)
                runs.append(replace(base, method=Dense(times=max(1, round(share * base.epochs)) / base.epochs)))
        if self.small_dense:
            runs += [replace(base, method=Dense(), width=_narrow(make, masked, d)) for d in self._densities]
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
        without = [name for name in sparse if "pattern" not in _defaults(METHODS[name])]
        if self.pattern is not None and without:
            raise LabError(f"--pattern: is not for {without[0]}, which ranks the weights of all layers together")
        still = [name for name in sparse if not issubclass(METHODS[name], Moves)]
        if getattr(self.pattern, "ablate", 0) and still:
            raise LabError(f"--pattern {self.pattern}: is not for {still[0]}, which moves no connections; give fan-in")
        asked = {"precision": self.precision != "fp32", "channels-last": self.channels_last, "compile": self.compile}
        if self.sparse and (bad := [option for option, given in asked.items() if given]):
            raise LabError(f"--{bad[0]}: is not for --sparse, whose layers have kernels of their own, in float32")
        if self.sparse and self.together > 1:
            raise LabError(
                "--together: is not for --sparse, whose layers are computed one network at a time; leave it out"
            )
        for name in ("densities", "equal_arithmetic", "small_dense", "sparse"):
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
        if kind is GraNet:
            asked["initial_density"] = max(defaults["initial_density"], density)
        try:
            method: Pruning = kind(density=density, **asked)
        except ValueError as error:
            raise LabError(f"--method {name}: {error}") from None
        if self.sparse and (problem := never_dense(method)):
            able = ", ".join(known for known, kind in METHODS.items() if kind in REALLY_SPARSE)
            raise LabError(f"--sparse: is not for --method {name}, which {problem}; but for {able} without a pattern")
        return method


def _defaults(kind: type) -> dict[str, Any]:
    """The settings of a method, with their defaults; without ``anneal`` where that is not of a drop fraction."""
    return {f.name: f.default for f in fields(kind) if f.name != "anneal" or issubclass(kind, Moves)}


def _try(method: Pruning, masked: Mapping[str, nn.Parameter]) -> None:
    """Raise LabError if the method's budget and pattern cannot be had with these parameters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself says it
            planned_counts(method, masked)
    except ValueError as error:
        raise LabError(f"{error} (here: --unmasked NAME,...)" if "select=" in str(error) else str(error)) from None


def _narrow(make: Workshop, masked: Mapping[str, nn.Parameter], density: float) -> float:
    """The width at which the dense net has as many parameters as the sparse one."""
    config, data = make.config, make.data
    build = partial(models.build, config.model, input_shape=data.input_shape, classes=data.classes, seed=0)
    dropped = sum(p.numel() - round(density * p.numel()) for p in masked.values())
    parameters = sum(p.numel() for p in make.model().parameters())
    try:
        return models.width_for(lambda width: build(width=width), parameters - dropped)
    except ValueError as error:
        raise LabError(f"--small-dense: {error}") from None
