"""One self-contained HTML page about a set of run folders, and the same numbers as CSV beside it.

The page needs nothing but itself: no network, no font, no script from elsewhere. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tombola.files import write_atomically
from tombola.lab.errors import LabError
from tombola.lab.report import figures
from tombola.lab.report.columns import control_column, cost_columns, label_columns, reading, result_columns
from tombola.lab.report.csvfile import csv_text
from tombola.lab.report.experiments import of_folders
from tombola.lab.report.findings import account, findings, trust
from tombola.lab.report.layers import layer_table
from tombola.lab.report.leaderboard import CAVEAT, Group, leaderboard, sources
from tombola.lab.report.panels import Look, panels
from tombola.lab.report.paper import files, pictures
from tombola.lab.report.reading import Run, find_runs, read_run
from tombola.lab.report.rows import Row, Summary, Task, method_name
from tombola.lab.report.summary import summarise
from tombola.lab.report.svg import STYLE, colours, inline
from tombola.lab.report.words import count, listing, percent, spread

PIXELS = 104  # of the page, to an inch of a figure


@dataclass(frozen=True)
class Written:
    """What `write_report` wrote, and the summary it was made from."""

    html: Path
    csv: Path
    summary: Summary


def read_summary(folders: Iterable[Path]) -> Summary:
    """The summary of every run at or below `folders`.

    Raises:
        LabError: no run there, or a damaged one.
    """
    return summarise(read_run(folder) for folder in find_runs(folders))


def write_report(
    folders: Sequence[Path],
    output: Path | None = None,
    *,
    figure: Path | None = None,
    figures_folder: Path | None = None,
    commands: Sequence[str] = (),
) -> Written:
    """Write the report of every run at or below `folders`.

    Args:
        folders: run folders, or folders of run folders.
        output: the page; None: `report.html` in the first folder. The CSV goes beside it as `results.csv`.
        figure: an SVG file for test accuracy against density, apart from the page; None: no such file.
        figures_folder: where every figure goes as PDF, SVG and PNG; made if need be. None: no such files.
        commands: how to run it again, shown at the foot of the page.

    Raises:
        LabError: no run there, a damaged one, no ticket for the figures, or a place that cannot be written to.
    """
    summary = read_summary(folders)
    html = folders[0] / "report.html" if output is None else output
    table = html.with_name("results.csv" if html.stem == "report" else f"{html.stem}.csv")
    _write(table, csv_text(summary), "-o")
    _write(html, render(summary, csv_name=table.name, commands=commands), "-o")
    tasks = [task for task in summary.tasks if task.tickets]
    if not tasks and (place := figure or figures_folder):
        raise LabError(f"{place}: there is no sparse network to draw yet; finish a run first")
    if figure is not None:
        _write(figure, figures.picture(tasks), "--figure")
    if figures_folder is not None:
        for name, look in pictures(summary):
            for suffix, content in files(look):
                _write(figures_folder / f"{name}.{suffix}", content, "--figures")
    return Written(html=html, csv=table, summary=summary)


def _write(path: Path, content: str | bytes, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise LabError(f"{path}: cannot be written: {error.strerror}; choose another place with {option}") from error


def render(summary: Summary, *, csv_name: str, commands: Sequence[str]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("tombola.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title(summary),
        account=account(summary),
        unfinished=_unfinished(summary),
        tasks=[_task(task, summary.parts, number) for number, task in enumerate(summary.tasks, start=1)],
        table=_table(summary),
        warnings=_warnings(summary.runs),
        commands=commands,
        experiments=of_folders(run.folder for run in summary.runs),
        versions=_versions(summary.runs),
        seeds=listing(sorted({run.seed for run in summary.runs})),
        folders=[{"name": run.folder.name, "finished": run.finished} for run in summary.runs],
        csv_name=csv_name,
        css=Markup(colours()) + "\n" + _asset("report.css"),
        js=_asset("report.js"),
    )


def _asset(name: str) -> Markup:
    return Markup((resources.files("tombola.lab.report") / "templates" / name).read_text(encoding="utf-8").strip())


def _title(summary: Summary) -> str:
    if not summary.tasks:
        return "No result yet"
    models = listing(dict.fromkeys(task.model for task in summary.tasks))
    sparse = "Sparse training of" if any(task.tickets for task in summary.tasks) else "Training of"
    what = "Winning tickets in" if any(task.searched for task in summary.tasks) else sparse
    return f"{what} {models} on {listing(dict.fromkeys(task.data for task in summary.tasks))}"


def _unfinished(summary: Summary) -> str:
    missing, total = len(summary.unfinished), len(summary.runs)
    verb = "is" if missing == 1 else "are"
    return f"{missing} of {count(total, 'run')} {verb} not finished." if missing else ""


def _task(task: Task, runs: Sequence[Run], number: int) -> dict[str, Any]:
    return {
        "data": task.data,
        "model": task.model,
        "label": task.label,
        "findings": findings(task),
        "legend": [(Markup(mark), entry) for mark, entry in figures.legend(task, f"l{number}")] if task.tickets else [],
        "panels": _panels(task, runs, number),
        "searched": task.searched,
        "noun": task.noun,
        "layers": layer_table(task),
        "leaderboard": [_group(group) for group in leaderboard(task)],
        "sources": sources(leaderboard(task)),
        "caveat": CAVEAT,
        "trust": trust(task),
        "soft": [_soft(row) for row in task.tickets if row.gap is not None],
    }


def _panels(task: Task, runs: Sequence[Run], number: int) -> list[dict[str, Any]]:
    """The figures, each view of them as an element."""
    letters = iter("abcdefghijk")
    return [
        {
            "heading": panel.heading,
            "wide": panel.wide,
            "sparse": panel.sparse,
            "looks": [
                {
                    "label": look.label,
                    "caption": look.caption,
                    "width": round(look.size[0] * PIXELS),
                    "svg": Markup(_drawn(look, f"{next(letters)}{number}")),
                }
                for look in panel.looks
            ],
        }
        for panel in panels(task, runs)
    ]


def _drawn(look: Look, prefix: str) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=look.size, layout="constrained")
        return inline(figure, prefix, title=look.title, marks=look.draw(figure))


def _group(group: Group) -> dict[str, Any]:
    """Measured lines between the published ones of their density."""
    lines = [
        {
            "name": entry.name,
            "density": percent(entry.density),
            "accuracy": entry.shown,
            "epochs": "" if entry.epochs is None else f"{entry.epochs:,.6g}",
            "origin": entry.origin,
            "measured": entry.measured,
            "method": entry.method,
        }
        for entry in group.entries
    ]
    return {"title": group.title, "lines": lines}


def _soft(row: Row) -> dict[str, str]:
    """How decided a soft search was at the end of a round."""
    undecided, soft, hard = (
        "" if found is None else write(found)
        for found, write in ((row.undecided, lambda s: percent(s.mean)), (row.soft, spread), (row.hard, spread))
    )
    soft_loss, hard_loss = ("" if loss is None else f"{loss.mean:.4g}" for loss in (row.soft_loss, row.hard_loss))
    dead = ", ".join(row.dead) or "none"
    return {
        "name": row.name,
        "method": row.method,
        "round": str(row.round or ""),
        "undecided": undecided,
        "soft": soft,
        "hard": hard,
        "soft_loss": soft_loss,
        "hard_loss": hard_loss,
        "dead": dead,
    }


def _table(summary: Summary) -> dict[str, Any]:
    """All results: headings, rows, and what the filters offer: what rows know them by, and the words for it."""
    tasks = summary.tasks
    controls = dict.fromkeys(control for task in tasks for control in task.controls)
    columns = [*label_columns(tasks), *result_columns(tasks), *map(control_column, controls), *cost_columns(tasks)]
    alike = len({task.data for task in tasks}) == 1
    models = [task.model if alike else f"{task.model} on {task.data}" for task in tasks]
    methods = {row.method: method_name(row.method) for task in tasks for row in task.rows}
    rows = [
        {
            "task": number,
            "model": models[number - 1],
            "method": row.method,
            "name": row.name,
            "good": row.good,
            "cells": [
                {"text": column.text(row), "value": _key(column.value(row)), "tip": column.tip(row)}
                for column in columns
            ],
        }
        for number, task in enumerate(tasks, start=1)
        for row in task.rows
    ]
    return {
        "columns": [column.name for column in columns],
        "rows": rows,
        "filters": {"model": dict(enumerate(models, start=1)), "method": methods},
        "reading": reading(tasks),
        "controlled": bool(controls),
        "noun": "A ticket" if any(task.searched for task in tasks) else "A sparse network",
    }


def _key(value: float | None) -> str:
    return "" if value is None else repr(value)


def _warnings(runs: Iterable[Run]) -> list[dict[str, str]]:
    return [{"text": text, "where": run.folder.name} for run in runs for text in run.warnings]


def _versions(runs: Iterable[Run]) -> str:
    told = dict.fromkeys(listing(f"{name} {version}" for name, version in run.versions.items()) for run in runs)
    return (
        "; ".join(f"Made with {versions}." for versions in told if versions) or "The runs do not tell their versions."
    )
