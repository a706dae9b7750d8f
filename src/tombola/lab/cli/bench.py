"""The two commands behind `tombola bench`: one times a file, `tombola bench parallel` has options of its own."""

from __future__ import annotations

from typing import Any

import click

PARALLEL = "parallel"


class Bench(click.Command):
    """A command whose first argument may be the word `parallel`, which stands for the command of that name."""

    parallel: click.Command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command that is meant."""
        if args[:1] == [PARALLEL]:
            return self.parallel.make_context(f"{info_name} {PARALLEL}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)
