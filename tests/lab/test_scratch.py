"""Folders that vanish with their process: when it leaves them, or when the next one comes that needs some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tombola.lab.runs import scratch as module
from tombola.lab.runs.scratch import PREFIX, scratch

HOLD = f"""
import runpy, time
with runpy.run_path({module.__file__!r})["scratch"]() as folder:
    (folder / "a" / "b").mkdir(parents=True)
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@contextmanager
def holding(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process, and the folder that it has."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_it_vanishes_and_is_nobody_elses() -> None:
    with scratch() as one, scratch() as other:
        assert one != other
        (one / "file").touch()
        assert (one / "file").exists()
    assert not one.exists()
    assert not other.exists()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    with holding(tmp_path) as (living, its), holding(tmp_path) as (killed, left):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with scratch() as mine:
            assert sorted(tmp_path.iterdir()) == sorted([its, mine])
            assert (its / "a" / "b").is_dir()
        living.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Those of other names, and a link that somebody has laid."""
    kept = tmp_path / "kept"
    (kept / "a").mkdir(parents=True)
    (tmp_path / f"{PREFIX}link").symlink_to(kept)
    (tmp_path / f"{PREFIX}file").touch()
    with scratch():
        assert (kept / "a").is_dir()
    assert len(list(tmp_path.iterdir())) == 3
