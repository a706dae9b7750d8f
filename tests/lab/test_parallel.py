"""Runs side by side: the same bytes as one by one, and no worker's fate is that of another."""

from __future__ import annotations

import math
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from configs import CS, DENSE, ELSEWHERE, IMP_

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.report.reading import read_run
from tombola.lab.runs.allocator import TUNABLES
from tombola.lab.runs.events import Event, Stopped
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.parallel import run_many
from tombola.lab.runs.schedule import Schedule
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.tasks import Task
from tombola.methods.magnitude import IMP

OWN = """
import os, signal
import torch
from torch import nn

def data():
    with open("environment.txt", "a") as file:
        print(os.environ.get("GLIBC_TUNABLES"), file=file)
    x = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :10].argmax(1)
    return x[:512], y[:512], x[512:], y[512:]

class Fails(nn.Linear):
    def forward(self, x):
        if not self.training:
            return super().forward(x.flatten(1))
        raise ArithmeticError("something that nobody foresaw")

def dies():
    with open("deaths.txt", "a") as file:
        print(os.getpid(), file=file)
    os.kill(os.getpid(), signal.SIGKILL)

def fails(classes): return Fails(64, classes)
"""


def files(path: Path) -> dict[str, bytes]:
    """What a run leaves behind, byte by byte."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    del found["lock"]
    found.pop("times.json", None)  # of no run the same twice
    return found


def test_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_troubles.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    good = [replace(config, data="own_troubles:data") for config in (DENSE, replace(CS, transfer=ELSEWHERE), IMP_)]
    bad = {name: replace(good[0], model=f"own_troubles:{name}", epochs=50) for name in ("dies", "fails", "nowhere")}
    heard: dict[str, list[Event]] = {}
    pids: set[int] = set()

    def on_event(name: str, event: Event) -> None:
        pids.add(os.getpid())
        heard.setdefault(name, []).append(event)

    # the longest runs come first: a worker dies before the good runs have begun
    with pytest.raises(
        LabError, match=r"^3 of 6 runs failed; the first is dense-own_troubles\.\w+-own_troubles.data-s0"
    ):
        run_many([*good, good[0], *bad.values()], tmp_path / "side by side", jobs=2, on_event=on_event)
    assert pids == {os.getpid()}
    for config in good:
        events = [event["event"] for event in heard[config.folder_name]]
        assert (events[0], events[-1], events.count("done")) == ("start", "done", 1)
        assert events.count("epoch") == config.total_epochs
        one_by_one = execute(config, tmp_path / "one by one")
        assert files(tmp_path / "side by side" / config.folder_name) == files(one_by_one)
    said = {name: heard[config.folder_name][-1]["text"] for name, config in bad.items()}
    died = "its workers died 3 times without a checkpoint between, at last: exit code -9; run the same again to go on"
    assert said["dies"] == died
    assert len(set((tmp_path / "deaths.txt").read_text().split())) == 3
    assert "has no function 'nowhere'" in said["nowhere"]
    log = tmp_path / "side by side" / bad["fails"].folder_name / "error.log"
    assert said["fails"] == f"ArithmeticError: something that nobody foresaw (see {log})"
    assert "in forward" in log.read_text()
    for config in bad.values():
        with RunFolder(tmp_path / "side by side", config, patience=0.0) as folder:  # the lock is free
            assert not folder.finished
    again = [good[2], good[0], good[2]]
    folders = run_many(again, tmp_path / "side by side")  # finished already
    assert folders == [tmp_path / "side by side" / config.folder_name for config in again]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, all are killed in the middle of what they do: what comes out is the same, byte by byte."""
    (tmp_path / "own_troubles.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    search = replace(SEARCH, data="own_troubles:data", epochs=5)
    deaths, epochs, kills = list[str](), 0, [3, 17]

    def on_event(name: str, event: Event) -> None:
        nonlocal epochs
        if event["event"] == "warning" and "died" in event["text"]:
            deaths.append(event["text"])
        epochs += event["event"] == "epoch"
        if kills and epochs >= kills[0]:
            kills.pop(0)
            for process in multiprocessing.active_children():
                process.kill()

    (path,) = run_many([search], tmp_path / "killed", How(checkpoint_share=math.inf), jobs=2, on_event=on_event)
    assert kills == []
    assert set(deaths) == {"a worker died (exit code -9); another one goes on from the last checkpoint"}
    assert files(path) == files(execute(search, tmp_path / "straight"))


def test_deaths_are_counted_from_the_last_checkpoint(tmp_path: Path) -> None:
    schedule = Schedule(tmp_path, split=True, hold=False, on_event=lambda run, event: None)
    schedule.add([DENSE])

    def again() -> bool:
        found = schedule.next()
        assert found in (task, None)
        return found is not None

    task = schedule.next()
    assert task is not None
    for saved in (False, False, True, False):
        if saved:
            schedule.saved(task)
        schedule.died(task, "some reason")
        assert again()
    assert schedule.errors == {}
    schedule.died(task, "some reason")
    assert not again()
    said = "its workers died 3 times without a checkpoint between, at last: some reason; run the same again to go on"
    assert schedule.errors == {task.run: said}


def test_wrong_numbers() -> None:
    with pytest.raises(LabError, match="jobs and threads must be 1 or more, not 0 and 1"):
        run_many([DENSE], Path("nowhere"), jobs=0)
    assert run_many([], Path("nowhere")) == []


SEARCH = replace(CS, controls=("shuffled",), control_rounds=(2,))
KEPT_BY_LAYER = replace(IMP_, method=IMP(keep={"conv1.weight": 0.5, "fc1.weight": 0.5}), rounds=2)


def stopped(config: RunConfig, out: Path, epochs: int) -> None:
    """Leave the run after so many epochs, as Ctrl-C would."""
    answers = [False] * (epochs - 1) + [True]
    with pytest.raises(Stopped):
        execute(config, out, stop=lambda: answers.pop(0))


@pytest.mark.parametrize("epochs", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_what_one_process_began_several_go_on_with(epochs: int, tmp_path: Path) -> None:
    """It stood in a round; or in a retraining, which is finished by one process, the stages not being shared out."""
    stopped(SEARCH, tmp_path / "cut", epochs)
    (path,) = run_many([SEARCH], tmp_path / "cut", jobs=2)
    assert files(path) == files(execute(SEARCH, tmp_path / "straight"))


def test_what_several_processes_began_one_goes_on_with(tmp_path: Path) -> None:
    """Rounds done as tasks of their own, a retraining finished and one cut off in its folder: all of it is used."""
    out = tmp_path / "cut"
    for place in (0, 1, 3):
        execute(SEARCH, out, place=place)
    answers = [True]
    with pytest.raises(Stopped):
        execute(SEARCH, out, place=2, stop=lambda: answers.pop(0))
    unfinished = read_run(out / SEARCH.folder_name)
    assert (len(unfinished.results), unfinished.finished) == (1, False)
    heard: list[Event] = []
    path = execute(SEARCH, out, on_event=lambda name, event: heard.append(event))
    assert [(event["stage"], event["epoch"]) for event in heard if event["event"] == "epoch"] == [
        (2, 2),
        (4, 1),
        (4, 2),
    ]
    assert files(path) == files(execute(SEARCH, tmp_path / "straight"))


def test_tasks_wait_for_their_rounds(tmp_path: Path) -> None:
    schedule = Schedule(tmp_path, split=True, hold=False, on_event=lambda run, event: None)
    schedule.add([SEARCH, KEPT_BY_LAYER, SEARCH, DENSE])
    places = {config.folder_name: config.method_name for config in (SEARCH, KEPT_BY_LAYER, DENSE)}

    def ready() -> list[tuple[str, int | None]]:
        found = []
        while (task := schedule.next()) is not None:
            tasks[places[task.run], task.place] = task
            found.append((places[task.run], task.place))
        return found

    tasks: dict[tuple[str, int | None], Task] = {}
    assert sorted(ready(), key=str) == [("cs", 0), ("dense", None), ("imp", 0)]  # of each the first round
    schedule.done(tasks["cs", 0])
    assert ready() == [("cs", 1), ("cs", 2)]  # the next round first, for more waits for it
    schedule.again(tasks["cs", 1])
    assert ready() == [("cs", 1)]
    schedule.done(tasks["cs", 1])
    assert sorted(ready()) == [("cs", 3), ("cs", 4)]
    schedule.failed(tasks["imp", 0], "something")
    assert (ready(), schedule.errors) == ([], {KEPT_BY_LAYER.folder_name: "something"})
    schedule.close()


def test_workers_keep_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_troubles.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    config = replace(DENSE, data="own_troubles:data", epochs=1)
    (kept,) = run_many([config], tmp_path / "kept")
    assert "GLIBC_TUNABLES" not in os.environ
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")  # somebody knows better
    (own,) = run_many([config], tmp_path / "own")
    said = (tmp_path / "environment.txt").read_text().splitlines()
    usual = ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())
    assert said == [usual, "glibc.malloc.arena_max=1"]
    assert files(kept) == files(own)  # no bit depends on where something lies
