"""The kinds of values that options take: what is allowed, and the one line that says so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


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


class ClusterType(click.ParamType):  # type: ignore[type-arg]
    """Where to compute, if not here."""

    name = "cluster"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value, if it is one."""
        if not re.fullmatch(r"ray|ray://[^/\s:]+:\d+", str(value)):
            self.fail(f"must be ray or ray://HOST:PORT, not {str(value)!r}", param, ctx)
        return str(value)


NUMBER = Number(float, "a finite number", lambda x: True)
POSITIVE = Number(float, "a number above 0", lambda x: x > 0)
NOT_NEGATIVE = Number(float, "a number, 0 or more", lambda x: x >= 0)
SHARE = Number(float, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
COUNT = Number(int, "a whole number, 1 or more", lambda x: x >= 1)
FROM_0 = Number(int, "a whole number, 0 or more", lambda x: 0 <= x < 2**63)
