"""``kill -9`` at any moment, then the same command again: the runs end as if nothing had ever happened.

Real processes of the command line, killed as a machine or a person would: the whole group at once, the parent alone
(its workers then end by themselves), Ctrl-C, at random moments and in the middle of a save.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tombola.lab.cli.commands import cli, typed
from tombola.lab.cli.running import searches, trainings
from tombola.lab.runs.experiment import execute

PATIENCE = 120.0  # seconds for a process to get somewhere


def arguments(methods: str, *more: str) -> list[str]:
    what = ["--method", methods, "--model", "conv_digits", "--rounds", "2", "--batch-size", "128", "--no-dense"]
    return ["search", *what, *more, "--jobs", "1", "--quiet"]


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set without scikit-learn, whose import would take longer than the training."""
    text = """
import torch

def load():
    x = torch.randn(1500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :10].argmax(1)
    return x[:1300], y[:1300], x[1300:], y[1300:]

def other():
    x, y, test_x, test_y = load()
    return -x, y % 4, -test_x, test_y % 4
"""
    (tmp_path / "own_noise.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return "own_noise:load"


def undisturbed(command: list[str], out: Path) -> dict[str, bytes]:
    """What the command leaves when nothing happens to it, made in this process."""
    with cli.commands[command[0]].make_context(command[0], command[1:]) as context:
        searching = command[0] == "search"
        configs = searches(context.params, given=typed(context)) if searching else trainings(context.params)
    for config in configs:
        execute(config, out)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    """The files of all runs, byte by byte."""
    found = (path for path in out.glob("*-s0-*/**/*") if path.is_file() and path.name not in ("lock", "times.json"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


@contextmanager
def started(command: list[str], out: Path) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own group."""
    line = [sys.executable, "-m", "tombola.lab.cli.main", *command, "--out", str(out)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(there: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until something is there; False if the process ended first."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    return True


def working(out: Path, process: subprocess.Popen[str]) -> bool:
    """Wait until a worker has taken up a run: it writes its number into the lock."""
    begun = time.time_ns()

    def locked() -> bool:
        return any(lock.stat().st_mtime_ns > begun and lock.stat().st_size for lock in out.glob("*/lock"))

    return until(locked, process)


# ---- ways to go. Each returns when the moment has come.


def at_random(seconds: float) -> Callable[[Path, subprocess.Popen[str]], None]:
    def wait(out: Path, process: subprocess.Popen[str]) -> None:
        if working(out, process):
            time.sleep(seconds)

    return wait


def inside_a_save(pattern: str, number: int = 1) -> Callable[[Path, subprocess.Popen[str]], None]:
    """At the ``number``-th moment at which a file of this kind is being written."""

    def wait(out: Path, process: subprocess.Popen[str]) -> None:
        seen: set[Path] = set(out.glob(f"*/{pattern}"))  # left behind by the one before

        def saving() -> bool:
            seen.update(new := {path for path in out.glob(f"*/{pattern}") if path not in seen})
            return bool(new)

        for _ in range(number):
            until(saving, process)

    return wait


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def kill_parent(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)


def ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


Stop = tuple[Callable[[Path, subprocess.Popen[str]], None], Callable[[subprocess.Popen[str]], None]]


def finish(command: list[str], out: Path, stops: list[Stop]) -> int:
    """Start the command, stop it in the first way, start it again, …; then let it end. How often it was stopped."""
    stopped = 0
    for moment, stop in stops:
        with started(command, out) as process:
            moment(out, process)
            if process.poll() is None:
                stop(process)
                process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            break  # it was done before the moment came
        assert process.returncode == (130 if stop is ctrl_c else -signal.SIGKILL), process.returncode
        stopped += 1
    with started(command, out) as process:
        said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return stopped


@pytest.mark.timeout(900)
def test_two_moments(tmp_path: Path, noise: str) -> None:
    command = arguments("cs,imp", "--data", noise, "--no-controls", "--epochs", "20")
    stops: list[Stop] = [
        (inside_a_save(".checkpoint-*.part", 2), kill_all),
        (at_random(random.Random(0).random()), kill_parent),
    ]
    expected = undisturbed(command, tmp_path / "undisturbed")
    assert finish(command, tmp_path / "stopped", stops) >= 1
    found = contents(tmp_path / "stopped")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert sum(name.endswith(".safetensors") for name in found) == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_moments_of_sparse_layers(tmp_path: Path, noise: str) -> None:
    """GraNet's shrink while they train: each checkpoint has other sizes."""
    what = ["--method", "rigl,granet", "--sparse", "--data", noise, "--model", "conv_digits", "--epochs", "60"]
    command = ["train", *what, "--every", "7", "--batch-size", "128", "--no-dense", "--jobs", "1", "--quiet"]
    stops: list[Stop] = [
        (inside_a_save(".checkpoint-*.part", 2), kill_all),
        (at_random(1 + random.Random(2).random()), kill_parent),
        (at_random(1 + random.Random(3).random()), ctrl_c),
    ]
    expected = undisturbed(command, tmp_path / "undisturbed")
    assert finish(command, tmp_path / "stopped", stops) >= 2
    found = contents(tmp_path / "stopped")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert sum(name.endswith(".safetensors") for name in found) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_moments_of_a_transfer(tmp_path: Path, noise: str) -> None:
    """In the search, and where its tickets are trained on the other data."""
    command = arguments("imp", "--data", noise, "--transfer-to", "own_noise:other", "--epochs", "40")
    stops: list[Stop] = [
        (inside_a_save(".checkpoint-*.part", 2), kill_all),
        (at_random(1.5 + random.Random(4).random()), kill_parent),
        (at_random(1.5 + random.Random(5).random()), ctrl_c),
        (at_random(1.5 + random.Random(6).random()), kill_all),
    ]
    expected = undisturbed(command, tmp_path / "undisturbed")
    assert finish(command, tmp_path / "stopped", stops) >= 2
    found = contents(tmp_path / "stopped")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert any(b'"transferred": true' in content for content in found.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("methods", ["cs", "imp"])
def test_many_moments(methods: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    command = arguments(methods, "--epochs", "150", *(["--initial-score", "-0.05"] if methods == "cs" else []))
    expected = undisturbed(command, tmp_path / "undisturbed")
    draw, stopped, attempt = random.Random(methods), 0, 0
    while stopped < 20:
        stops: list[Stop] = []
        for _ in range(12):
            kinds = [".checkpoint-*.part", "tickets/.round-*.part", ".config.json.*.part", ".done.json.*.part"]
            moment = at_random(draw.uniform(0, 1.5)) if draw.random() < 0.6 else inside_a_save(draw.choice(kinds))
            stops.append((moment, draw.choice([kill_all, kill_all, kill_parent, ctrl_c])))
        out = tmp_path / f"stopped-{(attempt := attempt + 1)}"
        stopped += finish(command, out, stops)
        found = contents(out)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
