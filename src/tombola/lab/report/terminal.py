"""The summary as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tombola.lab.report.findings import good, percent, spread
from tombola.lab.report.summary import CONTROLS, Row, Stat, Summary, Task


def summary_tables(summary: Summary) -> Group:
    """One table for each model and data set: method, round, density, accuracy, epochs, controls."""
    return Group(*(part for task in summary.tasks for part in (_table(task), Text(""))))


def print_summary(summary: Summary, console: Console) -> None:
    """Print the tables, and how to read them."""
    console.print(summary_tables(summary))
    several = any(row.tried > 1 for task in summary.tasks for row in task.rows)
    lines = [
        "Test accuracy in % after retraining, mean ± sd over seeds; epochs of the search so far and the retraining."
    ]
    if several:
        lines.append("“every s₀”: with those of all initial scores tried.")
    if any(good(row, task) for task in summary.tasks for row in task.rows):
        lines.append("✓: at least as accurate as dense, on average.")
    console.print(Text(" ".join(lines), style="dim"))


def _table(task: Task) -> Table:
    controls = [control for control in CONTROLS if any(control in row.controls for row in task.rows)]
    sweep = any(row.tried > 1 for row in task.rows)
    seeds = ", ".join(map(str, task.seeds))
    table = Table(
        title=Text(f"{task.model} on {task.data}, seed{'s' if len(task.seeds) > 1 else ''} {seeds}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("round", "density", "accuracy", "", "epochs", *(["every s₀"] if sweep else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for control in controls:
        table.add_column(CONTROLS[control], justify="right", no_wrap=True)
    previous = None
    for row in task.rows:
        style = "bold" if row.dense else "green" if good(row, task) else ""
        table.add_row(*_cells(row, previous, task, controls, sweep=sweep), style=style)
        previous = row
    return table


def _cells(row: Row, previous: Row | None, task: Task, controls: list[str], *, sweep: bool) -> list[Text]:
    same = previous is not None and previous.group == row.group
    cells = ["" if same else row.name, "" if row.dense else str(row.round), percent(row.density.mean)]
    cells += [_accuracy(row.accuracy), "✓" if good(row, task) else "", f"{row.epochs.mean:,.6g}"]
    cells += [f"{row.epochs_all.mean:,.6g}"] if sweep else []
    cells += [_accuracy(row.controls.get(control)) for control in controls]
    return [Text(cell) for cell in cells]


def _accuracy(accuracy: Stat | None) -> str:
    return "" if accuracy is None else spread(accuracy, unit="")


def stdout() -> Console:
    """Where results go. Piped, it is as wide as the tables like to be."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)
