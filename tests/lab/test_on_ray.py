"""A real Ray cluster of two nodes, each with processes of its own: the same bytes as one process leaves, whoever dies.

The data set of the runs notes who loads it, so that the tests know which process on which node to kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configs import CS, DENSE, ELSEWHERE, IMP_

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.events import Event
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.on_ray import Resources, run_on_ray
from tombola.lab.runs.schedule import Schedule
from tombola.lab.runs.store import RunFolder

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tombola[ray]'")
STORE = 80 * 2**20
OWN = """
import json, os
from pathlib import Path
import torch

def load():
    if "ray" in os.sys.modules and (worker := os.sys.modules["ray"].get_runtime_context()).worker.mode == 1:
        who = {"pid": os.getpid(), "node": worker.get_node_id(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        Path(__file__).with_name(f"worker-{who['pid']}.json").write_text(json.dumps(who))
    x = torch.randn(1200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :10].argmax(1)
    return x[:1000], y[:1000], x[1000:], y[1000:]
"""
SEARCH = replace(CS, data="own_ray_noise:load", controls=("shuffled", "reinitialised"), control_rounds=(2,), epochs=3)
ITERATIVE = replace(IMP_, data="own_ray_noise:load", rounds=2, retrain=(2,), transfer=ELSEWHERE)
LONG = [replace(config, epochs=30) for config in (SEARCH, ITERATIVE)]
OFTEN = How(checkpoint_share=float("inf"))  # a checkpoint after each epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the data set in it."""
    folder, before = tmp_path_factory.mktemp("ray"), Path.cwd()
    (folder / "own_ray_noise.py").write_text(OWN)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("own_ray_noise", None)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Any]:
    """Two nodes with a CPU each; the second one says that it has a GPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def files(out: Path) -> dict[str, bytes]:
    """What runs leave behind, byte by byte."""
    found = (path for path in out.glob("*/**/*") if path.is_file() and path.name not in ("lock", "times.json"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def undisturbed(configs: list[RunConfig], out: Path) -> dict[str, bytes]:
    """What the runs leave when one process does one stage after another."""
    for config in configs:
        execute(config, out)
    return files(out)


def workers(folder: Path) -> dict[int, str]:
    """Process -> node of those that have loaded the data."""
    found = [json.loads(path.read_text()) for path in folder.glob("worker-*.json")]
    return {who["pid"]: who["node"] for who in found}


class Listener:
    """Takes events, and does something once: when so many epochs have been heard of."""

    def __init__(self, epochs: int, do: Callable[[], None]) -> None:
        self.heard: list[tuple[str, Event]] = []
        self.epochs, self.do = epochs, do

    def __call__(self, name: str, event: Event) -> None:
        self.heard.append((name, event))
        self.epochs -= event["event"] == "epoch"
        if self.epochs == 0:
            self.epochs = -1
            self.do()

    def warnings(self) -> list[str]:
        return [event["text"] for _, event in self.heard if event["event"] == "warning"]


def test_two_nodes_and_a_worker_that_is_killed(cluster: Any, folder: Path, tmp_path: Path) -> None:
    configs = [SEARCH, ITERATIVE, replace(DENSE, data="own_ray_noise:load")]

    def kill_a_worker() -> None:
        os.kill(min(workers(folder)), signal.SIGKILL)

    listener = Listener(3, kill_a_worker)
    paths = run_on_ray(configs, tmp_path / "ray", OFTEN, Resources(), on_event=listener)
    assert paths == [tmp_path / "ray" / config.folder_name for config in configs]
    assert files(tmp_path / "ray") == undisturbed(configs, tmp_path / "one process")
    assert [text for text in listener.warnings() if text.startswith("a worker died")]
    for config in configs:
        events = [event for name, event in listener.heard if name == config.folder_name]
        assert (events[0]["event"], events[-1]["event"]) == ("start", "done")
        done = {(event["stage"], event["epoch"]) for event in events if event["event"] == "epoch"}
        assert len(done) == config.total_epochs
    assert set(workers(folder).values()) == {node["NodeID"] for node in ray.nodes()}
    begun = time.monotonic()
    assert run_on_ray(configs, tmp_path / "ray", OFTEN, Resources()) == paths  # nothing is left to do
    assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_shares_of_a_gpu(cluster: Any, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("worker-*.json"):
        path.unlink()
    run_on_ray([replace(DENSE, data="own_ray_noise:load")], tmp_path, How(), Resources(cpus=0.5, gpus=0.25))
    (who,) = [json.loads(path.read_text()) for path in folder.glob("worker-*.json")]
    (node,) = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
    assert (who["node"], who["gpus"]) == (node, "0")


@pytest.mark.usefixtures("cluster", "folder")
def test_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails on a worker, one whose folder is in use and one that fits: the last is done, nothing is lost."""
    assert Schedule.add.__kwdefaults__ is not None
    monkeypatch.setitem(Schedule.add.__kwdefaults__, "patience", 0.2)
    good, held, bad = (replace(DENSE, data="own_ray_noise:load", seed=seed) for seed in range(3))
    bad = replace(bad, model="own_ray_noise:nothing")
    errors: dict[str, str] = {}

    def on_event(name: str, event: Event) -> None:
        if event["event"] == "error":
            errors[name] = event["text"]

    with RunFolder(tmp_path, held), pytest.raises(LabError, match=r"^2 of 3 runs failed; the first is"):
        run_on_ray([good, held, bad], tmp_path, How(), Resources(), on_event=on_event)
    assert f"process {os.getpid()} on " in errors[held.folder_name]
    assert "is working on this run; wait for it or stop it" in errors[held.folder_name]
    assert "has no function 'nothing'" in errors[bad.folder_name]
    assert (tmp_path / good.folder_name / "done.json").exists()
    with pytest.raises(LabError, match=r"no node of the cluster has 1 CPUs and 2 GPUs, which each task is to have"):
        run_on_ray([DENSE], tmp_path, How(), Resources(gpus=2))


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(LabError, match=r"Ray is not installed here .*: pip install 'tombola\[ray\]'"):
        run_on_ray([DENSE], tmp_path, How(), Resources())
    assert list(tmp_path.iterdir()) == []


def test_a_server_for_the_client_that_crashes_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def init(address: str, **options: Any) -> None:
        asked.append(address)
        raise ConnectionAbortedError("Initialization failure from server:\nTraceback\nRuntimeError: it failed\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(LabError, match=r"ray://here:1: Initialization failure from server: RuntimeError: it failed$"):
        run_on_ray([DENSE], tmp_path, How(), Resources(), address="ray://here:1")
    assert asked == ["ray://here:1"] * 3


# ---- whoever dies


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_dies(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """The second node vanishes with its workers; another one joins."""
    lost = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]

    def exchange_the_node() -> None:
        cluster.remove_node(lost[0], allow_graceful=False)
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)

    listener = Listener(15, exchange_the_node)
    run_on_ray(LONG, tmp_path / "ray", How(), Resources(), on_event=listener)
    assert [text for text in listener.warnings() if text.startswith("a worker died")]
    assert files(tmp_path / "ray") == undisturbed(LONG, tmp_path / "one process")


COMMAND = ["search", "--method", "cs,imp", "--data", "own_ray_noise:load", "--model", "conv_digits", "--rounds", "2"]
COMMAND += ["--epochs", "30", "--batch-size", "128", "--no-dense", "--on", "ray", "--quiet", "--out"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_dies(how: signal.Signals, cluster: Any, folder: Path, tmp_path: Path) -> None:
    from test_nothing_lost import undisturbed as made_here

    line = [sys.executable, "-m", "tombola.lab.cli.main", *COMMAND, str(tmp_path / "ray")]
    for stopped in (True, True, False):
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if stopped:
                seen = set((tmp_path / "ray").glob("**/checkpoint-*.pt"))
                while not set((tmp_path / "ray").glob("**/checkpoint-*.pt")) - seen:
                    assert process.poll() is None
                    time.sleep(0.01)
                os.kill(process.pid, how)
            said = process.communicate(timeout=800)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == ((130 if how is signal.SIGINT else -how) if stopped else 0), said
    expected = made_here([*COMMAND[:-4], "--quiet"], tmp_path / "one process")
    assert files(tmp_path / "ray") == expected


# ---- from outside


def free_ports(count: int) -> list[int]:
    """That nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A cluster in processes of its own, as `ray start --head` makes it, and where its server for clients listens."""
    port, server = free_ports(2)
    scratch = tempfile.mkdtemp(prefix="ray-")  # names of sockets may not be long
    line = ["start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={server}", "--num-cpus=2"]
    line += ["--include-dashboard=false", f"--object-store-memory={STORE}", f"--temp-dir={scratch}"]
    # its server forks one for each client, and with gRPC's own handlers of forks some of them crash as they start
    environment = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", *line]
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 200
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert process.poll() is None, (tmp_path / "ray.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"ray://127.0.0.1:{server}"
    finally:
        process.terminate()  # it ends what it has started
        process.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_by_rays_client(head: str, folder: Path, tmp_path: Path) -> None:
    """Stopped by Ctrl-C, and gone on with."""
    from test_nothing_lost import undisturbed as made_here

    command = [head if part == "ray" else part for part in COMMAND]
    line = [sys.executable, "-m", "tombola", *command, str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for stopped in (True, False):
        with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
            while stopped and not list((tmp_path / "out").glob("**/checkpoint-*.pt")):
                assert it.poll() is None, it.communicate()
                time.sleep(0.01)
            if stopped:
                it.send_signal(signal.SIGINT)
            said = it.communicate(timeout=400)
        assert it.returncode == (130 if stopped else 0), said
    assert files(tmp_path / "out") == made_here([*COMMAND[:-4], "--quiet"], tmp_path / "one process")
