"""Watching several runs at once: a live display on a terminal, plain lines elsewhere, nothing when asked.

All three take the events of `experiment.run_many`: `watcher(run_name, event)`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tombola.lab.inputs import bits
from tombola.lab.report.rows import control_name, method_name, setting_name
from tombola.lab.report.words import count, percent

LATEST = 6
"""How many results and warnings the live display shows."""


@dataclass
class State:
    """What is known of one run."""

    total: int
    title: str = ""
    epochs: dict[int, int] = field(default_factory=dict)  # place of a stage -> its epochs done; several may be at work
    text: str = ""
    status: str = "waiting"  # then "active", and in the end "done" or "failed"

    @property
    def done(self) -> int:
        """Epochs of all stages."""
        return self.total if self.status == "done" else min(self.total, sum(self.epochs.values()))


@dataclass
class Board:
    """Where all runs stand, from the events so far. `totals`: run name -> epochs it will train in all."""

    totals: Mapping[str, int]
    runs: dict[str, State] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = {name: State(total=total, title=name) for name, total in self.totals.items()}

    def take(self, name: str, event: Mapping[str, Any]) -> State:
        """Take in one event, and return the run that it is about."""
        run = self.runs.setdefault(name, State(total=int(event.get("total_epochs", 1)), title=name))
        match event.get("event"):
            case "start":
                run.title, run.total = _title(str(event["title"])), int(event["total_epochs"])
                run.status = "active"
            case "resumed":
                run.epochs.update(event["epochs"])
            case "epoch":
                run.epochs[event["stage"]] = int(event["epoch"])
                run.text, run.status = str(event["text"]), "active"
            case "done":
                run.status = "done"
            case "error":
                run.status = "failed"
        return run

    @property
    def total(self) -> int:
        """Epochs of all runs."""
        return sum(run.total for run in self.runs.values())

    @property
    def done(self) -> int:
        """Epochs done."""
        return sum(run.done for run in self.runs.values())

    @property
    def finished(self) -> int:
        """Runs that have come to their end."""
        return sum(run.status == "done" for run in self.runs.values())


def line_of(run: State, event: Mapping[str, Any]) -> Text | None:
    """An event worth a line of its own (a result, a warning, a note, an error) as that line; None for the others."""
    match event.get("event"):
        case "result":
            return Text.assemble(*_result(event), (f"  {_who(run)}", "dim"))
        case "warning":
            return Text.assemble(("warning: ", "yellow"), str(event["text"]), (f"  {_who(run)}", "dim"))
        case "note":
            return Text(str(event["text"]))
        case "error":
            return Text.assemble(("failed: ", "bold red"), str(event["text"]), (f"  {_who(run)}", "dim"))
    return None


def _result(event: Mapping[str, Any]) -> list[str | tuple[str, str]]:
    name = f"{method_name(str(event['method']))} {setting_name(str(event['setting']))}".strip()
    accuracy = (f"{100 * float(event['test_accuracy']):5.1f} %", "bold")
    if "token" in event:
        accuracy = (f"{bits(event['test_loss'])} bits per {event['token']}", "bold")
    if event["method"] == "dense":
        return [accuracy, f"  {name}"]
    control = event.get("control")
    kind = f", {control_name(str(control))}" if control else ""
    round_ = f", round {event['round']}" if event["round"] else ""
    kept = f"  {name}{round_}{kind}: {percent(float(event['density']))} kept"
    dead = event.get("dead_layers")
    return [accuracy, kept, *([(f", nothing in {', '.join(dead)}", "yellow")] if dead else [])]


def _title(title: str) -> str:
    """A run's title as a reader wants it: "cs s0=-0.1 · net" becomes "CS s₀ = −0.1 · net"."""
    what, dot, who = title.partition(" · ")
    method, space, setting = what.partition(" ")
    return f"{method_name(method)}{space}{setting_name(setting)}{dot}{who}"


def _who(run: State) -> str:
    """The part of a run's title that a result does not tell: model, data, seed."""
    return run.title.partition(" · ")[2] or run.title


class Quiet:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        """Take in one event."""


class Plain(Quiet):
    """One line for each result, warning, error and finished run, and each tenth of all epochs; for logs and pipes.

    After `silence` seconds without a line the next epoch gets one.
    """

    def __init__(self, console: Console, totals: Mapping[str, int], *, silence: float = 60.0) -> None:
        self.console = console
        self.board = Board(totals)
        self.tenths = 0
        self.silence = silence
        self.last = time.monotonic()

    def __enter__(self) -> Self:
        self._print(Text(f"{count(len(self.board.runs), 'run')}, {count(self.board.total, 'epoch')}"))
        return self

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        """Take in one event, and print what it is worth."""
        run = self.board.take(name, event)
        line = line_of(run, event)
        if line is not None:
            self._print(line)
        if event.get("event") == "done":
            self._print(Text(f"done ({self.board.finished} of {len(self.board.runs)} runs): {run.title}"))
        tenths = 10 * self.board.done // max(self.board.total, 1)
        if tenths > self.tenths:
            self.tenths = tenths
            self._print(Text(f"{10 * tenths} % of {self.board.total:,} epochs"))
        if event.get("event") == "epoch" and time.monotonic() - self.last > self.silence:
            self._print(Text(f"{run.title}: {run.text}"))

    def _print(self, line: Text) -> None:
        self.last = time.monotonic()
        self.console.print(line, soft_wrap=True)


class Running(Quiet):
    """A bar for everything, a line for each run at work, and the latest results, redrawn in place."""

    def __init__(self, console: Console, totals: Mapping[str, int]) -> None:
        self.board = Board(totals)
        self.latest: deque[Text] = deque(maxlen=LATEST)
        self.overall = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.all = self.overall.add_task(self._headline(), total=max(self.board.total, 1))
        self.live = Live(self, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def __rich__(self) -> RenderableType:
        at_work = Table.grid(padding=(0, 1, 0, 0), expand=True)
        at_work.add_column(width=12)
        at_work.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for run in list(self.board.runs.values()):  # events come while the display is redrawn
            if run.status == "active":
                bar = ProgressBar(total=run.total, completed=run.done, width=12)
                at_work.add_row(bar, Text.assemble(run.title, (f"  {run.text}", "dim")))
        return Group(self.overall, at_work, Text(""), *self.latest)

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        run = self.board.take(name, event)
        line = line_of(run, event)
        if line is not None:
            line.no_wrap, line.overflow = True, "ellipsis"
            self.latest.append(line)
        self.overall.update(
            self.all, completed=self.board.done, total=max(self.board.total, 1), description=self._headline()
        )

    def _headline(self) -> str:
        return f"{self.board.finished} of {len(self.board.runs)} runs"


def watcher(console: Console, totals: Mapping[str, int], *, quiet: bool = False) -> Quiet:
    """The display that suits: none if `quiet`, live on a terminal, else plain lines. Use as a context manager."""
    if quiet:
        return Quiet()
    return Running(console, totals) if console.is_terminal else Plain(console, totals)
