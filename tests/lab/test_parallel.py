"""Runs side by side: the same bytes as one by one, and no worker's fate is that of another."""

from __future__ import annotations

import os
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from configs import CS, DENSE, IMP_

from tombola.lab.errors import LabError
from tombola.lab.runs.experiment import Event, execute
from tombola.lab.runs.parallel import run_many
from tombola.lab.runs.store import RunFolder


def files(path: Path) -> dict[str, bytes]:
    """What a run leaves behind, byte by byte."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    del found["lock"]
    return found


def test_workers_leave_what_one_process_leaves(tmp_path: Path) -> None:
    configs = [DENSE, CS, IMP_, CS]
    heard: dict[str, list[str]] = {}
    pids: set[int] = set()

    def on_event(name: str, event: Event) -> None:
        pids.add(os.getpid())
        heard.setdefault(name, []).append(event["event"])

    folders = run_many(configs, tmp_path / "side by side", jobs=2, on_event=on_event)
    assert [folder.name for folder in folders] == [config.folder_name for config in configs]
    assert pids == {os.getpid()}
    assert len(heard) == 3
    for config, folder in zip(configs, folders, strict=True):
        events = heard[config.folder_name]
        assert (events[0], events[-1], events.count("done")) == ("start", "done", 1)
        assert events.count("epoch") == config.total_epochs
        assert files(folder) == files(execute(config, tmp_path / "one by one"))


def test_no_worker_drags_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_troubles.py").write_text(
        textwrap.dedent("""
            import os, signal
            from torch import nn

            class Fails(nn.Linear):
                def forward(self, x):
                    if not self.training:
                        return super().forward(x.flatten(1))
                    raise ArithmeticError("something that nobody foresaw")

            def dies(): os.kill(os.getpid(), signal.SIGKILL)
            def fails(classes): return Fails(64, classes)
        """)
    )
    monkeypatch.chdir(tmp_path)
    runs = {name: replace(DENSE, model=f"own_troubles:{name}") for name in ("dies", "fails", "is not there")}
    heard: dict[str, Event] = {}
    good = replace(DENSE, epochs=1)  # the shortest run comes last
    with pytest.raises(LabError) as caught:
        run_many([good, *runs.values()], tmp_path, on_event=lambda name, event: heard.update({name: event}))
    assert str(caught.value).startswith("3 of 4 runs failed; the first is dense-own_troubles.")
    said = {name: str(heard[config.folder_name].get("text")) for name, config in runs.items()}
    assert said["dies"] == "its worker process died (exit code -9); run the same again to go on"
    assert "has no function 'is not there'" in said["is not there"]
    log = tmp_path / runs["fails"].folder_name / "error.log"
    assert said["fails"] == f"ArithmeticError: something that nobody foresaw (see {log})"
    assert "in forward" in log.read_text()
    assert heard[good.folder_name] == {"event": "done"}
    assert [path.parent.name for path in tmp_path.glob("*/done.json")] == [good.folder_name]
    for config in runs.values():
        with RunFolder(tmp_path, config, patience=0.0):
            pass  # every lock is free


def test_wrong_numbers() -> None:
    with pytest.raises(LabError, match="jobs and threads must be 1 or more, not 0 and 1"):
        run_many([DENSE], Path("nowhere"), jobs=0)
    assert run_many([], Path("nowhere")) == []
