"""Trackers show what the records say, each step once, and change nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configs import CS, DENSE

from tombola.lab.cli.commands import cli
from tombola.lab.cli.main import run
from tombola.lab.cli.values import Listing
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.events import Stopped
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.looking import read_metrics
from tombola.lab.tracking import COMPLETE, TRACKERS, Points, Tracking, check_tracker

EPOCH = {
    "kind": "epoch", "phase": "search", "round": 1, "label": None, "epoch": 1, "steps": 6, "train_loss": 2.0,
    "test_loss": None, "test_accuracy": 0.5, "hard_test_loss": 1.0, "density": 0.25, "lr": 0.1, "scores": [1, 2],
    "moved": {"a": {"kept": 9, "dropped": 2, "grown": 3}, "b": {"kept": 9, "dropped": 1, "grown": 1}},
}  # fmt: skip
RESULT = {"kind": "result", "round": 1, "control": None, "density": 0.25, "test_accuracy": 0.5, "setting": "x"}

Shown = list[tuple[int, dict[str, float]]]


class Recorder:
    """A tracker that can be asked what it was given."""

    shown: dict[str, Shown]
    closed: list[str]
    broken = False

    def __init__(self, out: Path, config: RunConfig) -> None:
        self.name = config.folder_name
        Recorder.shown[self.name] = []

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        if Recorder.broken:
            raise RuntimeError("no space\nleft")
        Recorder.shown[self.name].append((step, dict(numbers)))

    def close(self) -> None:
        Recorder.closed.append(self.name)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr("tombola.lab.tracking.TRACKERS", {"tensorboard": Recorder, "wandb": Recorder})
    monkeypatch.setattr(Recorder, "shown", {}, raising=False)
    monkeypatch.setattr(Recorder, "closed", [], raising=False)
    monkeypatch.setattr(Recorder, "broken", False)
    return Recorder


def write(path: Path, *records: Any, torn: bytes = b"") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records) + torn)


def test_what_records_come_to(tmp_path: Path) -> None:
    """Steps count on over the stages; numbers alone are shown; a line is read when it is complete, and once."""
    path = tmp_path / "metrics.jsonl"
    data, retrain = {"kind": "data", "original": 7}, {**EPOCH, "phase": "retrain", "steps": 3, "moved": {}}
    shuffled = {**retrain, "phase": "control", "label": "shuffled"}
    first = {
        "search-1/epoch": 1, "search-1/train_loss": 2.0, "search-1/test_accuracy": 0.5, "search-1/hard_test_loss": 1.0,
        "search-1/density": 0.25, "search-1/lr": 0.1, "search-1/dropped": 3, "search-1/grown": 4,
    }  # fmt: skip
    write(path, data, EPOCH, {**EPOCH, "epoch": 2, "steps": 12}, torn=json.dumps(retrain).encode())
    points = Points(path)
    assert list(points.new()) == [(6, first), (12, {**first, "search-1/epoch": 2})]
    assert list(points.new()) == []
    last = {**RESULT, "control": "shuffled"}
    write(path, data, EPOCH, {**EPOCH, "epoch": 2, "steps": 12}, retrain, RESULT, shuffled, last)
    found = list(points.new())
    assert [step for step, _ in found] == [15, 15, 18, 18]
    assert found[0][1]["retrain-1/test_accuracy"] == 0.5
    assert "retrain-1/dropped" not in found[0][1]
    assert found[1][1] == {"result-1/density": 0.25, "result-1/test_accuracy": 0.5}
    assert found[2][1]["control-shuffled-1/density"] == 0.25
    assert list(found[3][1]) == ["result-shuffled-1/density", "result-shuffled-1/test_accuracy"]


def test_a_run_that_was_stopped_is_shown_as_one_that_was_not(tmp_path: Path, recorder: type[Recorder]) -> None:
    stops = iter([False, True])
    with pytest.raises(Stopped), Tracking(tmp_path, [CS], ["wandb"], lambda run, event: None) as tracking:
        execute(CS, tmp_path, on_event=tracking, stop=lambda: next(stops))
    assert recorder.closed == [CS.folder_name]
    assert len(recorder.shown[CS.folder_name]) == 2
    assert not (tmp_path / COMPLETE).exists()
    with (tmp_path / CS.folder_name / "metrics.jsonl").open("a") as file:  # as a kill -9 some epochs later leaves it
        file.write(json.dumps({**EPOCH, "epoch": 3, "steps": 99}) + "\n")
    with Tracking(tmp_path, [CS], ["wandb"], lambda run, event: None) as tracking:
        execute(CS, tmp_path, on_event=tracking)
    again = recorder.shown[CS.folder_name]
    with Tracking(tmp_path / "other", [CS], ["wandb"], lambda run, event: None) as tracking:
        execute(CS, tmp_path / "other", on_event=tracking)
    assert again == recorder.shown[CS.folder_name]
    # nor did it change what was computed
    (straight, stopped) = (
        (out / CS.folder_name / "metrics.jsonl").read_bytes() for out in (tmp_path / "other", tmp_path)
    )
    assert stopped == straight
    records = read_metrics(tmp_path / CS.folder_name / "metrics.jsonl")
    assert len(again) == sum(record["kind"] in ("epoch", "result") for record in records)
    keys = [(name, step) for step, numbers in again for name in numbers]
    assert len(keys) == len(set(keys))
    assert [step for step, _ in again] == sorted(step for step, _ in again)


def test_a_run_that_is_done_is_shown_once(tmp_path: Path, recorder: type[Recorder]) -> None:
    def go(*trackers: str) -> list[str]:
        recorder.closed.clear()
        with Tracking(tmp_path, [DENSE], trackers, lambda run, event: None) as tracking:
            execute(DENSE, tmp_path, on_event=tracking)
        return recorder.closed

    assert go() == []
    assert go("wandb") == [DENSE.folder_name]  # done before, but not shown yet
    assert len(recorder.shown[DENSE.folder_name]) == DENSE.epochs + 1
    assert go("wandb") == []
    assert go("wandb", "tensorboard") == [DENSE.folder_name]
    assert json.loads((tmp_path / COMPLETE).read_bytes()).keys() == {"wandb", "tensorboard"}
    (tmp_path / COMPLETE).write_bytes(b"damaged")
    assert go("wandb") == [DENSE.folder_name]


def test_a_tracker_that_fails_takes_nothing_with_it(tmp_path: Path, recorder: type[Recorder]) -> None:
    recorder.broken = True
    events: list[Any] = []
    with Tracking(tmp_path, [DENSE], ["wandb"], lambda run, event: events.append(event)) as tracking:
        execute(DENSE, tmp_path, on_event=tracking)
    said = "--track wandb failed (RuntimeError: no space left); nothing is lost: metrics.jsonl has it all"
    assert [event["text"] for event in events if event["event"] == "warning"] == tracking.warnings == [said]
    assert events[-1] == {"event": "done"}
    assert not (tmp_path / COMPLETE).exists()


def test_without_its_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(["search", "--track", "wandb"]) == 2
    assert "--track wandb: " in (said := capsys.readouterr().err)
    assert "pip install wandb, or 'tombola[track]' for all trackers" in said
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(__version__="0.0.6"))
    with pytest.raises(LabError, match=r"0.0.6 is too old; pip install 'trackio>="):
        check_tracker("trackio")
    assert run(["search", "--track", "mlflow"]) == 2
    assert "'mlflow' is not one of" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of libraries of others
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard: 'tombola[track]'")
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path / CS.folder_name / "metrics.jsonl", EPOCH)
    for records in ([EPOCH], [EPOCH, {**EPOCH, "epoch": 2, "steps": 12}]):  # stopped, and gone on with
        write(tmp_path / CS.folder_name / "metrics.jsonl", *records)
        with Tracking(tmp_path, [CS], ["tensorboard"], lambda run, event: None) as tracking:
            tracking(CS.folder_name, {"event": "epoch"})
        assert tracking.warnings == []
    found = EventAccumulator(str(tmp_path / "tensorboard" / CS.folder_name))
    found.Reload()
    scalars = [(e.step, e.value) for e in found.Scalars("search-1/test_accuracy")]
    assert scalars == [(6, 0.5), (12, 0.5)]
    assert [e.value for e in found.Scalars("search-1/dropped")] == [3, 3]
    assert "search-1/test_loss" not in found.Tags()["scalars"]


OFFLINE = """
import json, socket, sys
from pathlib import Path
from configs import CS, DENSE
from tombola.lab.tracking import Tracking, check_tracker

def refuse(*arguments):
    raise AssertionError(f"network: {arguments}")

tracker, out = sys.argv[1], Path(sys.argv[2])
connect = socket.socket.connect
socket.socket.connect = lambda s, a: connect(s, a) if s.family == socket.AF_UNIX or a[0] == "127.0.0.1" else refuse(a)
check_tracker(tracker)
with Tracking(out, [CS, DENSE], [tracker], lambda run, event: None) as tracking:
    for config in (CS, DENSE):  # two at once
        tracking(config.folder_name, {"event": "epoch"})
assert tracking.warnings == [], tracking.warnings
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_offline(name: str, tmp_path: Path) -> None:
    """In a process of its own, which may not connect to anything but itself; stopped, and gone on with."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}: 'tombola[track]'")
    if name == "trackio":
        import trackio

        if not hasattr(trackio, "Api"):
            pytest.skip("needs trackio>=0.20")
    out = tmp_path / "runs"
    out.mkdir()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRACKIO_DIR": str(tmp_path / "trackio")}
    for records in ([EPOCH], [EPOCH, {**EPOCH, "epoch": 2, "steps": 12}]):
        for config in (CS, DENSE):
            write(out / config.folder_name / "metrics.jsonl", *records)
        subprocess.run([sys.executable, "-c", OFFLINE, name, str(out)], check=True, env=environment, timeout=120)
    for config in (CS, DENSE):
        arguments = [config.folder_name]
        if name == "wandb":
            (file,) = out.glob(f"wandb/offline-run-*-{config.folder_name}/run-{config.folder_name}.wandb")
            arguments = [str(file)]
        command = [sys.executable, "-c", READ[name], *arguments]
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert json.loads(said.splitlines()[-1]) == [[6, 0.5], [12, 0.5]]


READ = {
    "trackio": """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([[log["step"], log["search-1/test_accuracy"]] for log in SQLiteStorage.get_logs("runs", sys.argv[1])]))
""",
    "wandb": """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
content, place, shown = Path(sys.argv[1]).read_bytes(), 7, []
assert len(content) < 2**15  # one block of LevelDB's log format
while place + 7 <= len(content):
    _, length, kind = struct.unpack("<IHB", content[place : place + 7])
    record = Record.FromString(content[place + 7 : place + 7 + length])
    place += 7 + length
    if record.WhichOneof("record_type") == "history":
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        shown.append([items["_step"], items["search-1/test_accuracy"]])
print(json.dumps(shown))
""",
}


def test_what_the_command_offers_is_there() -> None:
    (option,) = (param for param in cli.commands["train"].params if param.name == "track")
    assert isinstance(option.type, Listing)
    assert option.type.of.to_info_dict()["choices"] == tuple(TRACKERS)
