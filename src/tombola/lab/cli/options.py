"""The options of `tombola search`: names, allowed values, help."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

HERE = ("out", "jobs", "threads", "device", "data_dir", "quiet")
"""Options that say where and how to compute, and do not change what is searched."""


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

    def __init__(self, of: Number | click.Choice[str]) -> None:
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


_number = Number(float, "a finite number", lambda x: True)
_positive = Number(float, "a number above 0", lambda x: x > 0)
_not_negative = Number(float, "a number, 0 or more", lambda x: x >= 0)
_share = Number(float, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
_count = Number(int, "a whole number, 1 or more", lambda x: x >= 1)
_from_0 = Number(int, "a whole number, 0 or more", lambda x: 0 <= x < 2**63)
_RECIPE = "the recipe's"


class Grouped(click.Command):
    """A command whose help shows its options in the groups below."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups."""
        what = [param for param in self.params if param.name not in HERE]
        where = [param for param in self.get_params(ctx) if param not in what]
        for title, params in (("What to search", what), ("Where and how", where)):
            records = (_plain(param.get_help_record(ctx)) for param in params)
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _plain(record: tuple[str, str] | None) -> tuple[str, str] | None:
    """A line of help without the brackets that click puts around a default in words."""
    return record and (record[0], re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", record[1]))


_OPTIONS = [
    click.option(
        "--method",
        "methods",
        type=Listing(click.Choice(["cs", "imp", "iss", "dense"])),
        show_default="cs",
        help="Continuous Sparsification, Iterative Magnitude Pruning, Iterative Stochastic Sparsification; or dense "
        "training alone.",
    ),
    click.option("--data", metavar="NAME", show_default="digits", help="digits, cifar10, or your own module:function."),
    click.option(
        "--model",
        metavar="NAME",
        show_default="lenet_300_100; for cifar10 resnet20",
        help="lenet_300_100, conv_digits, conv2, conv4, conv6, resnet20, or your own module:function.",
    ),
    click.option("--seeds", type=Listing(_from_0), metavar="N,...", show_default="0", help="A run for each."),
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
    click.option(
        "--epochs", type=_count, metavar="N", show_default=_RECIPE, help="Of each round, and of each retraining."
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
        "--schedule", type=click.Choice(["constant", "cosine"]), show_default=_RECIPE, help="Of the learning rate."
    ),
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
    click.option("--dense/--no-dense", default=True, show_default=True, help="Train the dense net too."),
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


def search_options(function: F) -> F:
    """Give `function` all options of `tombola search`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
