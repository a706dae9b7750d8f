"""Live progress: what it knows, what it shows on a terminal, and what it prints elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from fabricated_runs import result
from rich.console import Console

from tombola.lab.cli.progress import Board, Plain, Quiet, Running, watcher

TOTALS = {"imp-a": 60, "cs-b": 40, "dense-c": 20}


def events() -> Iterator[tuple[str, dict[str, Any]]]:
    """Three runs: one from start to end, one that was finished before, one that fails."""
    yield "imp-a", {"event": "start", "title": "imp keep=0.8 · net · digits · seed 0", "total_epochs": 60}
    yield "dense-c", {"event": "start", "title": "dense · net · digits · seed 0", "total_epochs": 20}
    yield "dense-c", {"event": "done"}
    for done in range(1, 61):
        text = f"round 1, epoch {done}: [bold]not markup[/bold]"
        yield "imp-a", {"event": "epoch", "stage": 0, "epoch": done, "done": done, "text": text}
        if done == 40:
            yield "imp-a", {"event": "result", **result("imp", "keep=0.8", 1, 0.8, 0.971)}
    yield "imp-a", {"event": "warning", "text": "round 1: conv1.weight has no weight left"}
    yield "imp-a", {"event": "result", **result("imp", "keep=0.8", 1, 0.8, 0.5, control="shuffled")}
    yield "imp-a", {"event": "done"}
    yield "cs-b", {"event": "start", "title": "cs s0=-0.1 · net · digits · seed 0", "total_epochs": 40}
    yield "cs-b", {"event": "error", "text": "data 'x': not found"}


def console(*, terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=24, color_system=None)


def printed(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_board_counts_epochs_and_runs() -> None:
    board = Board(TOTALS)
    assert (board.done, board.total, board.finished) == (0, 120, 0)
    for name, event in events():
        board.take(name, event)
    assert (board.done, board.total, board.finished) == (80, 120, 2)
    assert [board.runs[name].status for name in TOTALS] == ["done", "failed", "done"]


def test_a_continued_run_counts_from_where_it_is() -> None:
    board = Board({"imp-a": 60})
    board.take("imp-a", {"event": "start", "title": "imp", "total_epochs": 60})
    board.take("imp-a", {"event": "resumed", "epochs": {0: 20, 1: 20}})
    board.take("imp-a", {"event": "epoch", "stage": 2, "epoch": 5, "done": 45, "text": "round 3"})
    assert board.done == 45


def test_a_network_without_rounds_is_told_without_one() -> None:
    to = console(terminal=False)
    with Plain(to, {"rigl-d": 20}) as watch:
        watch("rigl-d", {"event": "start", "title": "rigl density=0.1 · net · digits · seed 0", "total_epochs": 20})
        watch("rigl-d", {"event": "result", **result("rigl", "density=0.1", 0, 0.1, 0.958)})
    said = printed(to).replace("\N{NO-BREAK SPACE}", " ")
    assert " 95.8 %  RigL density = 0.1: 10 % kept  net · digits · seed 0" in said.splitlines()


def test_layers_without_a_weight_are_named() -> None:
    to = console(terminal=False)
    with Plain(to, {"gmp-e": 20}) as watch:
        watch("gmp-e", {"event": "start", "title": "gmp density=0.1 · net · digits · seed 0", "total_epochs": 20})
        dead = {"dead_layers": ["fc1.weight", "fc2.weight"]}
        watch("gmp-e", {"event": "result", **result("gmp", "density=0.1", 0, 0.1, 0.1, **dead)})
    assert "kept, nothing in fc1.weight, fc2.weight  net" in printed(to).replace("\N{NO-BREAK SPACE}", " ")


def test_plain_lines() -> None:
    to = console(terminal=False)
    with Plain(to, TOTALS) as watch:
        for name, event in events():
            watch(name, event)
    lines = printed(to).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert lines == [
        "3 runs, 120 epochs",
        "done (1 of 3 runs): Dense · net · digits · seed 0",
        "10 % of 120 epochs",
        "20 % of 120 epochs",
        "30 % of 120 epochs",
        "40 % of 120 epochs",
        "50 % of 120 epochs",
        " 97.1 %  IMP keep = 0.8, round 1: 80 % kept  net · digits · seed 0",
        "60 % of 120 epochs",
        "warning: round 1: conv1.weight has no weight left  net · digits · seed 0",
        " 50.0 %  IMP keep = 0.8, round 1, shuffled: 80 % kept  net · digits · seed 0",
        "done (2 of 3 runs): IMP keep = 0.8 · net · digits · seed 0",
        "failed: data 'x': not found  net · digits · seed 0",
    ]


def test_plain_lines_break_a_long_silence() -> None:
    for silence, expected in ((3600.0, 0), (-1.0, 60)):
        to = console(terminal=False)
        with Plain(to, TOTALS, silence=silence) as watch:
            for name, event in events():
                watch(name, event)
        text = printed(to).replace("\N{NO-BREAK SPACE}", " ")
        assert text.count("IMP keep = 0.8 · net · digits · seed 0: round 1, epoch ") == expected


@pytest.mark.parametrize("width", [40, 80, 120])
def test_live_display(width: int) -> None:
    to = console(terminal=True, width=width)
    shown = ""
    with Running(to, TOTALS) as watch:
        for name, event in events():
            watch(name, event)
            if event.get("done") == 40:
                screen = console(terminal=True, width=width)
                screen.print(watch)
                shown = printed(screen)
        ended = console(terminal=True, width=width)
        ended.print(watch)
    assert "1 of 3 runs" in shown
    assert "50 %" in shown  # 40 + 20 of 120 epochs
    assert all(len(line) <= width for line in shown.splitlines())
    if width == 120:
        assert "IMP keep = 0.8 · net · digits · seed 0" in shown.replace("\N{NO-BREAK SPACE}", " ")
        assert "epoch 40: [bold]not markup[/bold]" in shown
    last = printed(ended)
    assert "2 of 3 runs" in last
    assert "epoch" not in last  # no run is at work any more
    assert "failed: data 'x'" in last
    assert "warning: round 1" in last


def test_the_display_that_suits() -> None:
    assert type(watcher(console(terminal=True), TOTALS)) is Running
    assert type(watcher(console(terminal=False), TOTALS)) is Plain
    to = console(terminal=True)
    with watcher(to, TOTALS, quiet=True) as quiet:
        assert type(quiet) is Quiet
        for name, event in events():
            quiet(name, event)
    assert printed(to) == ""
