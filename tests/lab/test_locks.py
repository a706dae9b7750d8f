"""Who works in a folder: one process at a time, on one machine and on several; and disks that are full or read-only."""

from __future__ import annotations

import multiprocessing
import resource
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configs import CS, DENSE

from tombola.lab.errors import LabError
from tombola.lab.runs import locks
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.locks import Lock
from tombola.lab.runs.store import RunFolder


def _hold(out: Path, connection: Any) -> None:
    with RunFolder(out, DENSE):
        connection.send("held")
        connection.recv()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, theirs), daemon=True)
    process.start()
    try:
        assert mine.recv() == "held"
        holder, since = rf"process {process.pid} on \S+", r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        with pytest.raises(LabError, match=f"{holder} {since} is working on this run; wait for it or stop it"):
            RunFolder(tmp_path, DENSE, patience=0.1)
        with RunFolder(tmp_path, replace(DENSE, seed=1), patience=0.1):
            pass  # other runs are free
    finally:
        process.kill()
        process.join()
    with RunFolder(tmp_path, DENSE):  # the lock has gone with the process
        pass


# ---- machines that share a folder whose file system keeps no locks between them

_ELSEWHERE = "process 7 on node-2 since 2026-01-01 00:00:00 UTC\nanother machine\n"
_HOLDER = """
import os, sys, time
open(sys.argv[1], "w").write(sys.argv[2])
print("held", flush=True)
while True:
    os.utime(sys.argv[1])
    time.sleep(0.1)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock as one of another machine would: nothing is seen of it but the file."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "lock"), _ELSEWHERE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_holder_on_another_machine(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 1.0)
    with pytest.raises(LabError, match="process 7 on node-2 since 2026-01-01 00:00:00 UTC is working on this run"):
        Lock(tmp_path / "lock", patience=0.0)
    holder.kill()
    holder.wait()
    begun = time.monotonic()
    lock = Lock(tmp_path / "lock", patience=0.0)  # it has been silent for long enough
    assert time.monotonic() - begun > 1.0
    assert "node-2" not in (tmp_path / "lock").read_text()
    lock.close()
    assert (tmp_path / "lock").read_text() == ""


def test_a_holder_lets_other_machines_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_heart", [])  # a thread that began before would beat more slowly
    lock = Lock(tmp_path / "lock", patience=0.0)
    beats = set()
    deadline = time.monotonic() + 30
    while len(beats) < 3 and time.monotonic() < deadline:
        beats.add((tmp_path / "lock").stat().st_mtime_ns)
        time.sleep(0.02)
    lock.close()
    assert len(beats) == 3
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "locks"][-1]


# ---- disks


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Inside it, the kernel refuses to let a file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(path: Path) -> dict[str, bytes]:
    found = (file for file in path.rglob("*") if file.is_file() and file.name not in ("lock", "times.json"))
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


@pytest.mark.parametrize("size", [1000, 5000, 20_000])
def test_a_file_that_may_not_grow(size: int, tmp_path: Path) -> None:
    """Metrics, tickets or a checkpoint: whatever cannot be written, the same again ends as if nothing had happened."""
    expected = files(execute(CS, tmp_path / "undisturbed"))
    with no_file_above(size), pytest.raises(LabError, match="cannot be written: File too large; make room or mend it"):
        execute(CS, tmp_path / "cut", How(checkpoint_share=float("inf")))
    assert files(execute(CS, tmp_path / "cut")) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk takes root's rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_disk_that_is_full_and_one_that_is_read_only(small_disk: Path, tmp_path: Path) -> None:
    expected = files(execute(CS, tmp_path / "undisturbed"))
    with pytest.raises(LabError, match=f"{small_disk}.*cannot be written: No space left on device; make room or mend"):
        execute(CS, small_disk, How(checkpoint_share=float("inf")))
    _remount(small_disk, "size=4m,ro")
    with pytest.raises(LabError, match=r"lock: cannot be written: Read-only file system; choose another folder"):
        execute(CS, small_disk)
    with pytest.raises(LabError, match=r"cannot make this folder: Read-only file system; choose another with --out"):
        execute(DENSE, small_disk)
    _remount(small_disk, "size=4m,rw")
    assert files(execute(CS, small_disk)) == expected


def test_a_system_without_such_locks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(LabError, match=r"file locks of Linux or macOS.*WSL"):
        runpy.run_path(str(locks.__file__))
