"""Help that shows what is asked apart from where and how it is computed."""

from __future__ import annotations

import re

import click

HERE = (
    "out", "jobs", "together", "threads", "workers", "device", "data_dir", "transfer_dir", "track", "quiet", "on",
    "cpus_per_task", "gpus_per_task",
)  # fmt: skip
"""Options that say where and how to compute, and do not change what is searched."""


class Grouped(click.Command):
    """A command whose help shows its options in two groups: what is asked, and where and how it is computed."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups."""
        what = [param for param in self.params if isinstance(param, click.Option) and param.name not in HERE]
        where = [param for param in self.get_params(ctx) if isinstance(param, click.Option) and param not in what]
        for title, params in ((f"What to {self.name}", what), ("Where and how", where)):
            records = (_plain(param.get_help_record(ctx)) for param in params)
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _plain(record: tuple[str, str] | None) -> tuple[str, str] | None:
    """A line of help without the brackets that click puts around a default in words."""
    return record and (record[0], re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", record[1]))
