"""Runs side by side: the same bytes as one by one, and no worker's fate is that of another."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from configs import CS, DENSE, IMP_

from tombola.lab.errors import LabError
from tombola.lab.runs.allocator import TUNABLES
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.parallel import run_many
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.work import Event

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

def dies(): os.kill(os.getpid(), signal.SIGKILL)
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
    good = [replace(config, data="own_troubles:data") for config in (DENSE, CS, IMP_)]
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
    assert said["dies"] == "its worker process died (exit code -9); run the same again to go on"
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


def test_wrong_numbers() -> None:
    with pytest.raises(LabError, match="jobs and threads must be 1 or more, not 0 and 1"):
        run_many([DENSE], Path("nowhere"), jobs=0)
    assert run_many([], Path("nowhere")) == []


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
