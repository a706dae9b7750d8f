"""The summary as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tombola.lab.report.columns import Column, accuracy, cost_columns, reading, result_columns
from tombola.lab.report.experiments import of_folders
from tombola.lab.report.findings import trust
from tombola.lab.report.leaderboard import CAVEAT, Group, leaderboard, sources
from tombola.lab.report.rows import Summary, Task, control_name
from tombola.lab.report.words import count, listing, percent

MOST_LAYERS = 12
"""Networks whose layers are shown side by side; more fill no terminal."""


def print_summary(summary: Summary, console: Console) -> None:
    """Print a table for each model and data set, whether its searches can be trusted, and how to read it all."""
    for experiment in of_folders(run.folder for run in summary.runs):
        console.print(Text.assemble((experiment.title, "bold"), (f"  {experiment.label}", "bold yellow")))
        console.print(Text(f"{experiment.about}\n", style="dim"))
    for task in summary.tasks:
        console.print(_table(task))
        if columns := cost_columns([task]):
            console.print(_costs(task, columns))
        trained = sum(row.trained for row in task.rows)
        if trained > MOST_LAYERS:
            console.print(
                Text(f"\nThe density of each layer in {count(trained, 'network')} is on the page.", style="dim")
            )
        elif trained:
            console.print(_layers(task))
        if said := trust(task):
            console.print(Text(f"\n{said}"))
        if groups := leaderboard(task):
            console.print()
            console.print(_beside_published(groups))
            console.print(Text(sources(groups), style="dim"))
        console.print()
    lines = [reading(summary.tasks)]
    if any(leaderboard(task) for task in summary.tasks):
        lines.append(CAVEAT)
    if any(row.good for task in summary.tasks for row in task.rows):
        lines.append("✓: at least as accurate, on average, as the dense net that was trained as long.")
    console.print(Text(" ".join(lines), style="dim"))


def _table(task: Task) -> Table:
    columns = result_columns([task])
    seeds = f"seed{'s' if len(task.seeds) > 1 else ''} {listing(task.seeds)}"
    label = f", {task.label}" if task.label else ""
    table = plain_table(title=f"{task.model} on {task.data}, {seeds}{label}")
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column("" if column.name == "≥ dense" else column.name, justify="right", no_wrap=True)
    place = next(number for number, column in enumerate(columns) if column.name == "accuracy")
    group = ""
    for row in task.rows:
        name = "" if row.group == group else row.name
        group = row.group
        style = "bold" if row.dense else "green" if row.good else ""
        table.add_row(Text(name), *(Text(column.text(row)) for column in columns), style=style)
        for control, found in row.controls.items():
            table.add_row(Text(f"  {control_name(control)}"), *[""] * place, Text(accuracy(found)), style="dim")
    return table


def _costs(task: Task, columns: Sequence[Column]) -> Table:
    """What each network weighs and took."""
    table = plain_table(title="What they cost")
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    for row in task.rows:
        table.add_row(Text(row.full_name), *(Text(column.text(row)) for column in columns))
    return table


def _layers(task: Task) -> Table:
    """Density of each layer in each network that was trained sparse."""
    rows = [row for row in task.rows if row.trained and row.layers]
    table = plain_table(title="Density of each layer")
    table.add_column("layer", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    for row in rows:
        table.add_column(Text(f"{row.family}\n{percent(row.density.mean)}"), justify="right")
    for layer in dict.fromkeys((layer.name, layer.size) for row in rows for layer in row.layers):
        kept = [{(layer.name, layer.size): layer.kept for layer in row.layers}.get(layer) for row in rows]
        densities = ["–" if n is None else percent(n / layer[1]) if n else "empty" for n in kept]
        table.add_row(*map(Text, (layer[0], f"{layer[1]:,}", *densities)))
    return table


def _beside_published(groups: Sequence[Group]) -> Table:
    """Measured lines between the published ones of their density."""
    table = plain_table(title="Beside published numbers")
    for name in ("method", "density", "accuracy", "epochs", "from"):
        table.add_column(name, justify="left" if name in ("method", "from") else "right", no_wrap=name != "from")
    for group in groups:
        table.add_row(Text(group.title), style="bold")
        for entry in group.entries:
            epochs = "" if entry.epochs is None else f"{entry.epochs:,.6g}"
            cells = (f"  {entry.name}", percent(entry.density), entry.shown, epochs, entry.origin)
            table.add_row(*map(Text, cells), style="green" if entry.measured else "")
    return table


def plain_table(*, title: str = "", footer: bool = False) -> Table:
    """A table without a frame."""
    return Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_footer=footer,
        header_style="",
    )


def stdout() -> Console:
    """Where results go. Piped, it is as wide as the tables like to be."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)
