"""Several runs in one process, trained as one where that pays: each equal to what it is alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import DENSE
from rich.console import Console

from tombola.lab.cli.commands import cli
from tombola.lab.cli.main import run
from tombola.lab.cli.progress import Plain
from tombola.lab.cli.running import Runs, trainings
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.methods import Dense
from tombola.lab.runs.alike import groups
from tombola.lab.runs.checkpoint import read_checkpoint
from tombola.lab.runs.events import Event, Stopped
from tombola.lab.runs.experiment import execute, execute_together
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics, read_times
from tombola.lab.runs.parallel import run_many
from tombola.lab.runs.weighing import Weighed
from tombola.lab.settings import SGD
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.ticket import Ticket

OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tombola.lab.data import Loaders

def examples(seed, count):
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, x.flatten(1)[:, :10].argmax(1)

def data():
    return *examples(0, 520), *examples(1, 200)

class Noisy(Dataset):
    def __init__(self):
        self.x, self.y = examples(0, 264)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, place):
        return self.x[place] + 0.5 * torch.randn(1, 8, 8), self.y[place]

def noisy():
    test = list(zip(*examples(1, 128)))
    return Loaders(DataLoader(Noisy(), 64, shuffle=True), DataLoader(test, 64), 10, (1, 8, 8), "noisy")

def norm(classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)
    )

class Fussy(nn.Linear):
    calls = 0  # it looks at its inputs from the 11th on
    def forward(self, x):
        self.calls += self.training
        if self.calls > 10 and not x.sum() < 1e9:
            raise ArithmeticError("too large")
        return super().forward(x.flatten(1))

def fussy(classes): return Fussy(64, classes)

def dropout(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, classes))
"""
PLAIN = replace(DENSE, data="own_members:data", model="own_members:norm", batch_size=64)
CS = replace(PLAIN, method=ContinuousSparsification(initial_score=0.05), rounds=2, score_optimizer=SGD(lr=1.0))
FAMILY = {
    "cs": CS,
    "cs, sparser": replace(CS, method=ContinuousSparsification(initial_score=-0.02)),
    "cs, asked": replace(CS, method=ContinuousSparsification(density=0.2), rounds=1, seed=1),
    "imp": replace(PLAIN, method=IMP(keep=0.5), rounds=2, rewind_step=4),
    "rigl": replace(PLAIN, method=RigL(density=0.3, every=3)),
    "gmp": replace(PLAIN, method=GradualMagnitude(density=0.2, every=3)),
    "dense, longer": replace(PLAIN, method=Dense(times=2)),
}
TWO = [FAMILY["cs"], FAMILY["rigl"]]


@pytest.fixture(scope="module", autouse=True)
def _own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_members.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def pays(objectives: Sequence[Any], batches: Sequence[Any]) -> Weighed:
    return Weighed(members=len(objectives), alone=2.0, together=1.0, gain=2.0)


def pays_not(objectives: Sequence[Any], batches: Sequence[Any]) -> Weighed:
    return Weighed(members=len(objectives), alone=1.0, together=2.0, gain=0.5)


def at_once(configs: Sequence[RunConfig], out: Path, **more: Any) -> dict[str, Exception | None]:
    """How each of the runs ended."""
    ended: dict[str, Exception | None] = {}
    execute_together(configs, out, ended=ended.__setitem__, **({"weigh": pays} | more))
    return ended


def files(path: Path) -> dict[str, bytes]:
    """What a run leaves behind, byte by byte."""
    kept = (file for file in path.rglob("*") if file.is_file() and file.name not in ("lock", "times.json"))
    return {str(file.relative_to(path)): file.read_bytes() for file in kept}


def records(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] != "warning"]


def said(path: Path) -> list[str]:
    return [record["text"] for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "warning"]


def check_alike(found: Path, expected: Path) -> None:
    """The same run but for rounding: numbers, counts, tickets.

    Where the count is left open, a score or two may end on the other side of 0.
    """
    assert found.name == expected.name
    method = RunConfig.read(expected / "config.json").method
    some = 2 if isinstance(method, ContinuousSparsification) and method.density is None else 0
    mine, theirs = records(found), records(expected)
    assert len(mine) == len(theirs) > 0
    for one, other in zip(mine, theirs, strict=True):
        for key in other.keys() | one.keys():
            if isinstance(other[key], float) and key != "undecided":
                slack = 0.006 if "accuracy" in key else 2e-3  # an example of 200; a loss
                assert one[key] == pytest.approx(other[key], rel=2e-3, abs=slack), (key, one, other)
            elif key == "layers":
                kept = [{**layer, "kept": pytest.approx(layer["kept"], abs=some)} for layer in other[key]]
                assert one[key] == kept, (key, one, other)
            elif key in ("kept", "multiply_adds", "bytes") and some:
                assert one[key] == pytest.approx(other[key], rel=0.01)
            elif key not in ("scores", "moved", "undecided"):
                assert one[key] == other[key], (key, one, other)
    tickets = sorted(path.name for path in (expected / "tickets").iterdir())
    assert tickets == sorted(path.name for path in (found / "tickets").iterdir())
    for name in tickets:
        one, other = Ticket.load(found / "tickets" / name), Ticket.load(expected / "tickets" / name)
        assert one.masks.counts() == pytest.approx(other.masks.counts(), abs=some)
        for parameter, mask in other.masks.items():
            assert int((mask != one.masks[parameter]).sum()) <= 4, (name, parameter)
        for parameter, weight in other.start.items():
            near = torch.isclose(one.start[parameter], weight, rtol=1e-2, atol=2e-3)
            assert int((~near).sum()) <= 4, (name, parameter)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, _own: None) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("alone")
    return {config.folder_name: execute(config, out) for config in FAMILY.values()}


# ---- equal to what they are alone


def test_runs_of_every_kind_and_length(alone: dict[str, Path], tmp_path: Path) -> None:
    """Soft and hard masks, moving ones, searches and trainings; a BatchNorm in each; they end one after the other."""
    asked: list[int] = []

    def weigh(objectives: Sequence[Any], batches: Sequence[Any]) -> Weighed:
        asked.append(len(objectives))
        return pays(objectives, batches)

    heard: list[tuple[str, Event]] = []
    configs = list(FAMILY.values())
    ended = at_once(configs, tmp_path, weigh=weigh, on_event=lambda run, event: heard.append((run, event)))
    assert ended == dict.fromkeys(alone)
    for name, expected in alone.items():
        check_alike(tmp_path / name, expected)
        events = [event["event"] for run, event in heard if run == name and event["event"] != "note"]
        config = next(config for config in configs if config.folder_name == name)
        assert (events[0], events[-1], events.count("epoch")) == ("start", "done", config.total_epochs)
    assert asked == [7, 5, 3, 2]  # two end after 2 epochs, two after 4, imp after 6
    notes = [event["text"] for _, event in heard if event["event"] == "note"]
    assert notes[0].startswith("together: 7 runs at once take 0.50 of the time of one after the other")
    (first,) = [text for text in said(tmp_path / FAMILY["gmp"].folder_name) if "as one" in text]
    assert first == "trained as one with 6 other runs: the same but for rounding"
    assert [text for text in said(tmp_path / CS.folder_name) if "as one" in text] == [
        f"trained as one with {others}: the same but for rounding"
        for others in ("6 other runs", "4 other runs", "2 other runs", "1 other run")
    ]


def test_the_time_of_a_group_is_shared_out(tmp_path: Path) -> None:
    at_once(TWO, tmp_path)
    spent = [read_times(tmp_path / config.folder_name)[1] for config in TWO]
    assert all(seconds > 0 for each in spent for seconds in each.values())


def test_the_same_group_gives_the_same_bytes(tmp_path: Path) -> None:
    for out in ("one", "other"):
        at_once(TWO, tmp_path / out)
    for config in TWO:
        assert files(tmp_path / "one" / config.folder_name) == files(tmp_path / "other" / config.folder_name)


def test_random_numbers_are_each_runs_own(tmp_path: Path) -> None:
    """Each example is drawn with noise from PyTorch's own generator, batch by batch while the runs take turns."""
    configs = [replace(PLAIN, data="own_members:noisy", seed=seed, epochs=2) for seed in (0, 1)]
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    assert at_once(configs, tmp_path / "together") == {config.folder_name: None for config in configs}
    assert torch.equal(torch.get_rng_state(), drawn)
    for config in configs:
        check_alike(tmp_path / "together" / config.folder_name, execute(config, tmp_path / "alone"))
        assert "as one" in said(tmp_path / "together" / config.folder_name)[-1]


def test_a_batch_that_is_faster_alone_does_not_part_them(tmp_path: Path) -> None:
    configs = [replace(PLAIN, data="own_members:noisy", seed=seed) for seed in (0, 1, 2)]
    asked, heard = list[tuple[int, int]](), list[tuple[int, int]]()

    def weigh(objectives: Sequence[Any], batches: Sequence[Any]) -> Weighed:
        asked.append((len(objectives), len(batches[0][0])))
        return (pays if len(batches[0][0]) == 64 else pays_not)(objectives, batches)

    def on_event(name: str, event: Event) -> None:
        if event["event"] == "epoch":
            heard.append(([config.folder_name for config in configs].index(name), event["epoch"]))

    at_once(configs, tmp_path, weigh=weigh, on_event=on_event)
    assert asked == [(3, 64), (3, 8)]  # the last batch of an epoch is smaller
    assert heard == [(place, epoch) for epoch in (1, 2) for place in (0, 1, 2)]


# ---- bit by bit what they are alone, where they are not computed as one


def test_a_group_of_one(alone: dict[str, Path], tmp_path: Path) -> None:
    at_once([CS], tmp_path)
    assert files(tmp_path / CS.folder_name) == files(alone[CS.folder_name])


def test_where_it_does_not_pay(alone: dict[str, Path], tmp_path: Path) -> None:
    heard: list[Event] = []
    ended = at_once(list(FAMILY.values()), tmp_path, weigh=pays_not, on_event=lambda run, event: heard.append(event))
    assert ended == dict.fromkeys(alone)
    for name, expected in alone.items():
        assert files(tmp_path / name) == files(expected)
    (note,) = [event["text"] for event in heard if event["event"] == "note"]
    assert note.startswith("together: no gain, 7 runs at once take 2.00 of the time of one after the other")


def test_models_that_have_nothing_in_common(alone: dict[str, Path], tmp_path: Path) -> None:
    other = replace(PLAIN, model="lenet_300_100")
    at_once([CS, other], tmp_path)
    assert files(tmp_path / CS.folder_name) == files(alone[CS.folder_name])
    assert files(tmp_path / other.folder_name) == files(execute(other, tmp_path / "alone"))


def test_dropout_is_trained_one_after_the_other_and_says_so(tmp_path: Path) -> None:
    configs = [replace(PLAIN, model="own_members:dropout", seed=seed) for seed in (0, 1)]
    heard: list[Event] = []
    ended: dict[str, Exception | None] = {}
    execute_together(
        configs, tmp_path / "together", ended=ended.__setitem__, on_event=lambda run, event: heard.append(event)
    )
    assert ended == {config.folder_name: None for config in configs}
    (note,) = [event["text"] for event in heard if event["event"] == "note"]
    assert note.startswith("together: 2 runs are trained one after the other: RuntimeError: ")
    assert "random" in note
    for config in configs:
        path = execute(config, tmp_path / "alone")
        assert files(tmp_path / "together" / config.folder_name) == files(path)


# ---- when something happens


def test_one_that_fails_leaves_the_others_alone(alone: dict[str, Path], tmp_path: Path) -> None:
    diverges = replace(PLAIN, optimizer=SGD(lr=1e30), epochs=3)
    nowhere = replace(PLAIN, unmasked=("fc9.weight",), method=RigL(density=0.3))
    ended = at_once([diverges, *TWO, nowhere], tmp_path)
    assert re.search("the training loss is nan in epoch 1", str(ended.pop(diverges.folder_name)))
    assert isinstance(failed := ended.pop(nowhere.folder_name), LabError)
    assert "no parameter 'fc9.weight'" in str(failed)
    assert ended == {config.folder_name: None for config in TWO}
    for config in TWO:
        check_alike(tmp_path / config.folder_name, alone[config.folder_name])
    again = at_once([diverges], tmp_path)  # its folder is free, and it fails again
    assert isinstance(again[diverges.folder_name], LabError)


def test_stopped_after_each_epoch(alone: dict[str, Path], tmp_path: Path) -> None:
    """As many groups as there are epochs: each ends after one, and the next goes on, alone at last."""
    stops, sizes = 0, set[int]()
    while True:
        try:
            ended = at_once(TWO, tmp_path, stop=lambda: True)
        except Stopped:
            stops += 1
            assert stops <= CS.total_epochs
            for path in tmp_path.glob("*/checkpoint-*.pt"):
                state = read_checkpoint(path)["model"]
                assert all(entry.untyped_storage().nbytes() == entry.nbytes for entry in state.values())
                sizes.add(len(state))
        else:
            break
    assert stops == CS.total_epochs
    assert sizes
    assert ended == {config.folder_name: None for config in TWO}
    for config in TWO:
        check_alike(tmp_path / config.folder_name, alone[config.folder_name])
        assert len([text for text in said(tmp_path / config.folder_name) if "as one" in text]) == 1  # not each time


def test_stopped_together_and_gone_on_with_alone(alone: dict[str, Path], tmp_path: Path) -> None:
    answers = [False] * 4 + [True] * 2
    with pytest.raises(Stopped):
        at_once(TWO, tmp_path, stop=lambda: answers.pop(0))
    for config in TWO:
        check_alike(execute(config, tmp_path), alone[config.folder_name])


def test_a_stack_that_fails_on_the_way_is_given_up(tmp_path: Path) -> None:
    """Here because the model begins to look at its numbers; on a GPU it may be for want of room."""
    configs = [replace(PLAIN, model="own_members:fussy", seed=seed) for seed in (0, 1)]
    heard: list[Event] = []
    ended = at_once(configs, tmp_path / "together", on_event=lambda run, event: heard.append(event))
    assert ended == {config.folder_name: None for config in configs}
    notes = [event["text"] for event in heard if event["event"] == "note"]
    assert len(notes) == 2
    assert notes[1].startswith("together: one after the other from here on: RuntimeError: ")
    for config in configs:
        check_alike(tmp_path / "together" / config.folder_name, execute(config, tmp_path / "alone"))


# ---- which runs, and in which processes


def test_who_is_trained_with_whom() -> None:
    seeds = [replace(PLAIN, seed=seed) for seed in range(5)]
    others = [replace(PLAIN, batch_size=32), replace(PLAIN, precision="bf16"), replace(PLAIN, compile=True, seed=9)]
    sparse = replace(PLAIN, method=RigL(density=0.3), sparse=True)
    longer = FAMILY["imp"]
    configs = [*seeds, *others, sparse, longer, seeds[0]]
    for size, jobs in ((4, 1), (3, 1), (8, 2), (3, 2)):
        assert groups(configs, size, jobs=jobs) == [[longer, *seeds[:2]], seeds[2:]]
    assert groups(configs, 2, jobs=2) == [[seeds[0], seeds[1]], [seeds[3], seeds[4]]]  # and two alone
    assert groups(configs, 8, jobs=6) == groups(configs, 8, jobs=9) == []  # a process for each
    assert groups(configs, 8, jobs=1) == [[longer, *seeds]]


def test_a_process_that_takes_several_runs(alone: dict[str, Path], tmp_path: Path) -> None:
    """What happens there is told to the one that watches; whether they are trained as one is measured there."""
    diverges = replace(PLAIN, optimizer=SGD(lr=1e30), epochs=3)
    configs, shown = [*TWO, diverges], io.StringIO()
    watch = Plain(Console(file=shown, width=200), {config.folder_name: config.total_epochs for config in configs})
    heard: list[tuple[str, Event]] = []

    def on_event(name: str, event: Event) -> None:
        heard.append((name, event))
        watch(name, event)

    with pytest.raises(LabError, match=r"1 of 3 runs failed.*the training loss is nan in epoch 1"):
        run_many(configs, tmp_path, How(together=3), on_event=on_event)
    for config in TWO:
        name = config.folder_name
        events = [event["event"] for run, event in heard if run == name and event["event"] not in ("note", "warning")]
        assert (events[0], events[-1], events.count("done")) == ("start", "done", 1)
        assert events.count("epoch") == config.total_epochs
        check_alike(tmp_path / name, alone[name])
    assert [run for run, event in heard if event["event"] == "error"] == [diverges.folder_name]
    notes = [event["text"] for _, event in heard if event["event"] == "note"]
    assert all(re.match(r"together: (no gain, )?[23] runs at once take \d", note) for note in notes)
    assert [line for line in shown.getvalue().splitlines() if line.startswith("together: ")] == notes != []


# ---- the command line


def test_whether_it_pays_is_measured_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "parallel", "--members", "2,3", "--turns", "1", "--data", "own_members:data"]
    assert run([*command, "--model", "own_members:norm", "--batch-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert "own_members:norm on own_members:data, batches of 64, fp32, cpu, 1 thread" in " ".join(shown.split())
    rows = [line.split() for line in shown.splitlines() if re.match(r"\s+[23]\s", line)]
    assert [row[0] for row in rows] == ["2", "3"]
    for _, alone, together, gain, *trained in rows:
        assert float(gain) == pytest.approx(float(alone) / float(together), rel=0.05, abs=0.02)
        assert " ".join(trained) == ("as one" if float(gain) > 1.05 else "one by one")
    assert run([*command, "--model", "own_members:dropout"]) == 0
    assert "one by one: RuntimeError" in " ".join(capsys.readouterr().out.split())


def test_bench_of_a_file_is_still_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    assert "tombola bench parallel" in capsys.readouterr().out
    assert run(["bench", "parallel", "--help"]) == 0
    assert "Usage: tombola bench parallel" in capsys.readouterr().out
    missing = tmp_path / "net.safetensors"
    assert run(["bench", str(missing)]) == 1
    assert f"tombola: {missing}" in capsys.readouterr().err
    assert run(["bench", "parallel", "--device", "abacus"]) == 1
    assert "tombola: --device abacus: PyTorch cannot use it here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["search", "--density", "0.5", "--compile"], "--together: is not for --compile"),
        (["train", "--sparse"], "--together: is not for --sparse"),
        (["search", "--on", "ray"], "--together: is for the processes of this machine; on Ray"),
        (["train", "--together", "0"], "--together: must be a whole number, 1 or more, not '0'"),
    ],
)
def test_what_it_does_not_go_with(command: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command[0], "--together", "2", *command[1:]]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("jobs", "grouped"), [("1", True), ("2", False)])
def test_runs_that_are_in_no_group(jobs: str, grouped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--data", "own_members:data", "--model", "own_members:norm", "--density", "0.5", "--batch-size", "64"]
    with cli.commands["train"].make_context("train", [*what, "--together", "2", "--jobs", jobs]) as context:
        runs = Runs.from_options(context.params, partial(trainings, context.params))
    assert (runs.together, len(runs.configs)) == (2, 2)
    says = "together: no job has two runs with data, model, batch size and precision in common, neither --sparse nor "
    assert (says not in capsys.readouterr().err) is grouped
