"""The cells of the report's table of results: what is shown, and the value that each column is sorted by."""

from __future__ import annotations

from dataclasses import dataclass

from tombola.lab.report.findings import count, good, percent, spread
from tombola.lab.report.summary import CONTROLS, Row, Stat, Summary, Task, method_name


@dataclass(frozen=True)
class Column:
    """A column's heading; `num` columns are set to the right."""

    name: str
    num: bool = True


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by (empty: always last), what pointing at it tells; `head` names the row."""

    text: str
    value: str
    num: bool = True
    title: str = ""
    head: bool = False


@dataclass(frozen=True)
class TableRow:
    """One row; `task` and `method` are the numbers that the filters know it by."""

    task: int
    method: int
    good: bool
    cells: tuple[Cell, ...]


def columns_of(summary: Summary) -> list[Column]:
    """Headings, in order. With a single task the column that tells tasks apart is left out."""
    head = [Column("model", num=False)] if len(summary.tasks) > 1 else []
    return [
        *head,
        Column("method", num=False),
        Column("round"),
        Column("density"),
        Column("test accuracy (seeds)"),
        Column("≥ dense"),
        Column("epochs"),
        Column("epochs, every s₀"),
        *(Column(CONTROLS.get(control, control)) for control in _controls(summary)),
        Column("gap"),
        Column("undecided"),
    ]


def rows_of(summary: Summary) -> list[TableRow]:
    """One row for each setting and round of each task."""
    methods: dict[str, int] = {}
    for task in summary.tasks:
        for row in task.rows:
            methods.setdefault(method_name(row.method), len(methods) + 1)
    several_data = len({task.data for task in summary.tasks}) > 1
    rows = []
    for number, task in enumerate(summary.tasks, start=1):
        name = f"{task.model} on {task.data}" if several_data else task.model
        for place, row in enumerate(task.rows):
            head = [Cell(name, name, num=False)] if len(summary.tasks) > 1 else []
            cells = (
                *head,
                Cell(row.name, f"{place:04d} {row.name}", num=False, head=True),
                *_cells(row, task, _controls(summary)),
            )
            rows.append(TableRow(number, methods[method_name(row.method)], good(row, task), cells))
    return rows


def _controls(summary: Summary) -> list[str]:
    named = {control for task in summary.tasks for row in task.rows for control in row.controls}
    return [control for control in CONTROLS if control in named] + sorted(named - set(CONTROLS))


def _cells(row: Row, task: Task, controls: list[str]) -> list[Cell]:
    kept = ", ".join(f"{kept:,}" for kept in row.kept)
    return [
        Cell("–", "") if row.dense else Cell(str(row.round), str(row.round)),
        Cell(percent(row.density.mean), _number(row.density), title=f"{kept} of {count(row.maskable, 'weight')}"),
        _accuracy(row.accuracy, seeds=row.seeds),
        Cell("✓", "1", title="at least as accurate as the dense net, on average") if good(row, task) else Cell("", ""),
        Cell(f"{row.epochs.mean:,.6g}", _number(row.epochs)),
        Cell(f"{row.epochs_all.mean:,.6g}", _number(row.epochs_all)),
        *(_accuracy(row.controls.get(control)) for control in controls),
        _gap(row.gap),
        Cell("–", "") if row.undecided is None else Cell(percent(row.undecided.mean), _number(row.undecided)),
    ]


def _accuracy(accuracy: Stat | None, *, seeds: tuple[int, ...] = ()) -> Cell:
    if accuracy is None:
        return Cell("–", "")
    if not seeds:
        return Cell(spread(accuracy, unit=""), _number(accuracy))
    title = f"{count(len(seeds), 'seed')}: {', '.join(map(str, seeds))}"
    return Cell(f"{spread(accuracy, unit='')} ({len(seeds)})", _number(accuracy), title=title)


def _gap(gap: Stat | None) -> Cell:
    if gap is None:
        return Cell("–", "")
    points = round(100 * gap.mean, 1) + 0.0  # no negative zero
    return Cell(f"{points:+.1f}".replace("-", "−") if points else "0.0", _number(gap))


def _number(value: Stat) -> str:
    return repr(value.mean)
