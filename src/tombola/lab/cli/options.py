"""The options of `tombola search` and `tombola train`: names, allowed values, help."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

HERE = ("out", "jobs", "threads", "device", "data_dir", "quiet")
"""Options that say where and how to compute, and do not change what is searched."""


@dataclass(frozen=True)
class Epochs:
    """So many epochs, or so many times those of the recipe."""

    number: float
    of_recipe: bool = False

    def of(self, recipe: int) -> int:
        """How many that is where the recipe says `recipe`."""
        return max(1, round(self.number * recipe)) if self.of_recipe else int(self.number)


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A number of the type `kind`, finite and as `fits` wants it; `allowed` says so in words."""

    def __init__(self, kind: type[int] | type[float], allowed: str, fits: Callable[[float], bool]) -> None:
        self.name = "number"
        self.kind, self.allowed, self.fits = kind, allowed, fits

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        try:
            number = self.kind(value)
        except ValueError:
            number = None
        if number is None or not math.isfinite(number) or not self.fits(number):
            self.fail(f"must be {self.allowed}, not {str(value)!r}", param, ctx)
        return number


class Listing(click.ParamType):  # type: ignore[type-arg]
    """Values separated by commas, each of the type `of`."""

    def __init__(self, of: click.ParamType) -> None:  # type: ignore[type-arg]
        self.of = of
        self.name = f"{of.name}[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The values as a tuple; doubled ones count once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(dict.fromkeys(self.of.convert(part, param, ctx) for part in parts))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """What help shows for the value."""
        return "|".join(self.of.choices) + "[,...]" if isinstance(self.of, click.Choice) else None


class EpochsType(click.ParamType):  # type: ignore[type-arg]
    """A number of epochs, or x and a number: times those of the recipe."""

    name = "epochs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Epochs:
        """The epochs."""
        if isinstance(value, Epochs):
            return value
        if times := re.fullmatch(r"[x×](\d+(?:\.\d+)?)", str(value)):
            epochs = Epochs(float(times[1]), of_recipe=True)
        else:
            epochs = Epochs(int(value) if str(value).isdecimal() else 0)
        if not epochs.number > 0:
            allowed = "a whole number, 1 or more, or x and a number, such as x5: times the recipe's"
            self.fail(f"must be {allowed}, not {str(value)!r}", param, ctx)
        return epochs


class PatternType(click.ParamType):  # type: ignore[type-arg]
    """A pattern of masks."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The pattern."""
        from tombola.patterns import NM, Block, ConstantFanIn

        if not isinstance(value, str):
            return value
        says = f"must be N:M such as 2:4, a block such as 4x4, fan-in or fan-in:0.3, not {value!r}"
        try:
            if neighbours := re.fullmatch(r"(\d+):(\d+)", value):
                return NM(int(neighbours[1]), int(neighbours[2]))
            if block := re.fullmatch(r"(\d+)[x×](\d+)", value):
                return Block(int(block[1]), int(block[2]))
            if fan_in := re.fullmatch(r"fan-in(?::(\d*\.?\d+))?", value):
                return ConstantFanIn(ablate=float(fan_in[1] or 0))
        except ValueError as error:
            says = str(error)
        return self.fail(says, param, ctx)


_number = Number(float, "a finite number", lambda x: True)
_positive = Number(float, "a number above 0", lambda x: x > 0)
_not_negative = Number(float, "a number, 0 or more", lambda x: x >= 0)
_share = Number(float, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
_count = Number(int, "a whole number, 1 or more", lambda x: x >= 1)
_from_0 = Number(int, "a whole number, 0 or more", lambda x: 0 <= x < 2**63)
_RECIPE = "the recipe's"


class Grouped(click.Command):
    """A command whose help shows its options in two groups: what is asked, and where and how it is computed."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups."""
        what = [param for param in self.params if param.name not in HERE]
        where = [param for param in self.get_params(ctx) if param not in what]
        for title, params in ((f"What to {self.name}", what), ("Where and how", where)):
            records = (_plain(param.get_help_record(ctx)) for param in params)
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _plain(record: tuple[str, str] | None) -> tuple[str, str] | None:
    """A line of help without the brackets that click puts around a default in words."""
    return record and (record[0], re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", record[1]))


_DATA = [
    click.option("--data", metavar="NAME", show_default="digits", help="digits, cifar10, or your own module:function."),
    click.option(
        "--model",
        metavar="NAME",
        show_default="lenet_300_100; for cifar10 resnet20",
        help="lenet_300_100, conv_digits, conv2, conv4, conv6, resnet20, wrn_22_2, resnet50, mobilenet_v1, or your own "
        "module:function.",
    ),
    click.option(
        "--width",
        type=_positive,
        metavar="X",
        show_default="1",
        help="Times the model's numbers of channels.",
    ),
    click.option(
        "--unmasked",
        type=Listing(click.STRING),
        metavar="NAME,...",
        show_default="the papers' choice",
        help="Parameters that stay dense, such as conv1.weight.",
    ),
    click.option("--seeds", type=Listing(_from_0), metavar="N,...", show_default="0", help="A run for each."),
]
_RECIPES = [
    click.option(
        "--epochs",
        type=EpochsType(),
        metavar="N|xM",
        show_default=_RECIPE,
        help="Of each training; x5: five times the recipe's.",
    ),
    click.option("--batch-size", type=_count, metavar="N", show_default=_RECIPE, help="Examples in a step."),
    click.option("--lr", type=_positive, metavar="X", show_default=_RECIPE, help="Learning rate."),
    click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw"]),
        show_default=_RECIPE,
        help="Of the weights, and of the scores too.",
    ),
    click.option("--weight-decay", type=_not_negative, metavar="X", show_default=_RECIPE, help="Of the weights."),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine", "step"]),
        show_default=_RECIPE,
        help="Of the learning rate, over the whole training; step: a tenth after 1/2 and after 3/4 of it.",
    ),
]
_DENSE = click.option("--dense/--no-dense", default=True, show_default=True, help="Train the dense net too.")
_WHERE = [
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        metavar="DIR",
        show_default=True,
        help="Folder for the runs and the report.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where the data lie: the folder cifar-10-batches-py, or the one around it.",
    ),
    click.option("--jobs", type=_count, metavar="N", show_default="one per CPU; on a GPU 1", help="Runs at once."),
    click.option("--threads", type=_count, metavar="N", default=1, show_default=True, help="PyTorch's, in each job."),
    click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    click.option("-q", "--quiet", is_flag=True, help="No progress, only the results."),
]
_SEARCH = [
    click.option(
        "--method",
        "methods",
        type=Listing(click.Choice(["cs", "imp", "iss", "dense"])),
        show_default="cs",
        help="Continuous Sparsification, Iterative Magnitude Pruning, Iterative Stochastic Sparsification; or dense "
        "training alone.",
    ),
    *_DATA,
    click.option(
        "--rounds",
        type=_count,
        metavar="N",
        show_default="cs 3, with --density 1; imp 12; iss 5",
        help="Rounds of the search.",
    ),
    click.option(
        "--density",
        "densities",
        type=Listing(_share),
        metavar="X,...",
        help="Share of the weights to keep, asked of cs. A search for each.",
    ),
    click.option(
        "--initial-score",
        "initial_scores",
        type=Listing(_number),
        metavar="X,...",
        show_default="cs 0; iss 1",
        help="s₀ of cs and iss: lower is sparser. A search for each.",
    ),
    click.option("--penalty", type=_not_negative, metavar="X", show_default="1e-8", help="λ of cs and iss."),
    click.option(
        "--final-temperature",
        type=Number(float, "a number, 1 or more", lambda x: x >= 1),
        metavar="X",
        show_default="200",
        help="β of cs at its last step.",
    ),
    click.option(
        "--keep",
        type=_share,
        metavar="X",
        show_default="0.8",
        help="Share of the surviving weights that a round of imp keeps.",
    ),
    *_RECIPES,
    click.option(
        "--rewind-epochs",
        type=_not_negative,
        metavar="X",
        show_default=_RECIPE,
        help="Where in round 1 the tickets' start weights are taken; 0 is the initial weights.",
    ),
    click.option("--rewind-step", type=_from_0, metavar="N", help="The same in optimiser steps."),
    click.option(
        "--controls/--no-controls",
        default=True,
        show_default=True,
        help="Train the last ticket shuffled and re-initialised too.",
    ),
    _DENSE,
    *_WHERE,
]
_TRAIN = [
    click.option(
        "--method",
        "methods",
        type=Listing(click.Choice(["rigl", "set", "snfs", "static", "snip", "gmp", "granet", "cs", "dense"])),
        show_default="rigl",
        help="RigL, SET, SNFS, a static random mask, SNIP, gradual magnitude pruning, GraNet, Continuous "
        "Sparsification as pruning; or dense training alone.",
    ),
    click.option(
        "--density",
        "densities",
        type=Listing(_share),
        metavar="X,...",
        show_default="0.1; with --pattern N:M N/M",
        help="Share of the weights to keep. A run for each.",
    ),
    click.option(
        "--budget",
        type=click.Choice(["uniform", "uniform-first-dense", "erdos-renyi", "erk", "global"]),
        show_default="erk; for gmp global; with --pattern N:M uniform",
        help="How the kept weights are shared out among the layers.",
    ),
    click.option(
        "--pattern",
        type=PatternType(),
        metavar="PATTERN",
        help="What masks must fit: N:M such as 2:4; blocks such as 4x4; fan-in: as many weights for each output; "
        "fan-in:0.3: and rigl, set and snfs give up outputs with few salient weights (SRigL).",
    ),
    click.option(
        "--every",
        type=_count,
        metavar="N",
        show_default="100; less where that would be fewer than 30 times in the recipe's epochs",
        help="Steps from one change of the masks to the next.",
    ),
    click.option(
        "--until",
        type=_share,
        metavar="X",
        show_default="0.75",
        help="Share of the steps after which the masks stay as they are.",
    ),
    click.option(
        "--drop-fraction",
        type=Number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1),
        metavar="X",
        show_default="0.3",
        help="Share of a layer's connections that the first move drops.",
    ),
    click.option(
        "--anneal",
        type=click.Choice(["cosine", "constant", "linear", "inverse_power"]),
        show_default="cosine",
        help="How the drop fraction falls.",
    ),
    click.option(
        "--harden-at",
        type=_share,
        metavar="X",
        show_default="0.8",
        help="Share of the steps after which the mask of cs is hard.",
    ),
    *_DATA,
    *_RECIPES,
    _DENSE,
    click.option(
        "--equal-arithmetic",
        is_flag=True,
        help="Train the dense net also for as many epochs as the arithmetic of each sparse training pays for.",
    ),
    click.option("--small-dense", is_flag=True, help="Train also a dense net so narrow that it has as few parameters."),
    *_WHERE,
]


def search_options(function: F) -> F:
    """Give `function` all options of `tombola search`."""
    return _with(_SEARCH, function)


def train_options(function: F) -> F:
    """Give `function` all options of `tombola train`."""
    return _with(_TRAIN, function)


def _with(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
