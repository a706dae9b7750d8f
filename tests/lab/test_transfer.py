"""Tickets trained on other data than those they were found on: what is taken of them, what is made of the numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import CS, DENSE, ELSEWHERE, EVERY_METHOD, FROM_6, IMP_, TO_5
from fabricated_runs import beside_published, config, epoch, result, write
from torch import nn

import tombola
from tombola.lab.cli.commands import cli, typed
from tombola.lab.cli.main import run
from tombola.lab.cli.running import Runs, print_report, searches
from tombola.lab.config import RunConfig
from tombola.lab.data import digits, load
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images
from tombola.lab.methods import Dense
from tombola.lab.models import build
from tombola.lab.published import lookup
from tombola.lab.recipes import SCALES, find
from tombola.lab.recipes.classes import digits_from_6, digits_to_5
from tombola.lab.report.curves import training
from tombola.lab.report.findings import findings
from tombola.lab.report.leaderboard import leaderboard
from tombola.lab.report.page import read_summary, write_report
from tombola.lab.report.reading import read_run
from tombola.lab.report.rows import Task
from tombola.lab.runs.compiling import compiled
from tombola.lab.runs.events import Event, OnEvent, Stopped
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics
from tombola.lab.runs.schedule import Schedule
from tombola.lab.runs.stages import plan
from tombola.lab.seeds import derive

SEARCH = EVERY_METHOD["cs, transfer"]
LAYERS = ("conv1.weight", "conv2.weight", "fc1.weight", "out.weight")
HERE = dict(zip(LAYERS, (2304, 18432, 8192, 64 * 6), strict=True))  # multiply-adds of conv_digits for six classes
THERE = HERE | {"out.weight": 64 * 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(SEARCH, tmp_path_factory.mktemp("finished"))


def results(path: Path) -> dict[tuple[str, int, str | None], dict[str, Any]]:
    """Data, round and control -> result."""
    found = [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "result"]
    return {(record["data"], record["round"], record["control"]): record for record in found}


# ---- against a loop written by hand


def fresh(classes: int, seed: int = derive(0, "initial weights")) -> nn.Module:
    return build("conv_digits", input_shape=(1, 8, 8), classes=classes, seed=seed)


def trained(ticket: tombola.Ticket, *purpose: str | int) -> tuple[float, tombola.Masks]:
    """Accuracy of the ticket after a training on the digits from 6, as a user would write it; and its masks."""
    data, model = digits_from_6().first(320), fresh(4)
    head = model.get_parameter("out.weight").detach().clone()
    masks = ticket.restore(model, strict=False)
    assert list(masks) == list(LAYERS[:3])
    assert torch.equal(model.get_parameter("out.weight"), head)  # of the dense net with this seed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    attached = tombola.attach(model, optimizer, tombola.Fixed(masks), steps=15)
    for number in range(3):
        order = torch.randperm(320, generator=torch.Generator().manual_seed(derive(0, *purpose, number)))
        for batch in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
        scheduler.step()
    attached.detach()
    with torch.no_grad():
        right = (model.eval()(data.test_x).argmax(1) == data.test_y).double().mean()
    return float(right), masks


def test_it_is_the_loop_by_hand(finished: Path) -> None:
    found = results(finished)
    assert {key[0] for key in found} == {TO_5, FROM_6}
    tickets = {n: tombola.Ticket.load(finished / "tickets" / f"round-{n:02d}.safetensors") for n in (1, 2)}
    controls = {
        "shuffled": tickets[2].shuffled(seed=derive(0, "shuffled", 2)),
        "reinitialised": replace(tickets[2], start=fresh(6, derive(0, "reinitialised", 2)).state_dict()),
    }
    tried = {(n, None): (ticket, "retrain", n, "") for n, ticket in tickets.items()}
    tried |= {(2, label): (ticket, "control", 2, label) for label, ticket in controls.items()}
    assert {key[1:] for key in found if key[0] == FROM_6} == set(tried)
    for (number, label), (ticket, *purpose) in tried.items():
        record = found[FROM_6, number, label]
        accuracy, masks = trained(ticket, *purpose)
        assert record["test_accuracy"] == accuracy
        kept = {layer["name"]: layer["kept"] for layer in record["layers"]}
        assert kept == masks.counts() | {"out.weight": 64 * 4}  # the classifier is dense
        assert record["kept"] == sum(kept.values())
        assert record["density"] == record["kept"] / record["maskable"]
        assert (record["setting"], record["found_on"]) == (f"density=0.5,0.2 from {TO_5}", TO_5)
        assert record["ticket"] == (None if label else f"tickets/round-{number:02d}.safetensors")
        assert (record["soft_accuracy"], record["undecided"]) == (None, None)  # that is of the search
    for key, record in found.items():
        assert ("found_on" in record) == (key[0] == FROM_6)


def test_what_it_costs(finished: Path) -> None:
    here, there = len(digits_to_5().train_x) // 80, 5
    for (data, number, _), record in results(finished).items():
        if data != FROM_6:
            continue
        assert (record["epochs_search"], record["epochs_total"]) == (2 * number, 2 * number + 3)
        assert record["steps_total"] == 2 * number * here + 3 * there
        forward = sum(THERE[layer["name"]] * layer["kept"] / layer["size"] for layer in record["layers"])
        assert record["multiply_adds"] == round(forward)
        search = 2 * number * here * 80 * sum(HERE.values())  # scores are learnt at the cost of the dense net
        epoch_there = there * 64 * sum(THERE.values())
        expected = search / epoch_there + 3 * forward / sum(THERE.values())
        assert record["arithmetic"] == pytest.approx(expected, rel=1e-9)
    seconds = json.loads((finished / "times.json").read_text())["seconds"]
    assert {"1 transferred", "2 shuffled transferred", "2 shuffled", "2"} <= seconds.keys()


def test_tickets_are_those_of_a_search_alone(finished: Path, tmp_path: Path) -> None:
    alone = execute(replace(SEARCH, transfer=None), tmp_path)
    assert alone.name != finished.name
    for number in (1, 2):
        one, other = (
            tombola.Ticket.load(path / "tickets" / f"round-{number:02d}.safetensors") for path in (alone, finished)
        )
        assert one.masks == other.masks
        assert all(torch.equal(one.start[name], other.start[name]) for name in one.start)
    own = {key: record for key, record in results(finished).items() if key[0] == TO_5}
    assert own == results(alone)


def test_a_classifier_for_as_many_classes_is_taken_along(tmp_path: Path) -> None:
    """So that a ticket that is transferred to its own data is the ticket."""
    same = replace(ELSEWHERE, data=TO_5, epochs=2, batch_size=80, examples=None, schedule=SEARCH.schedule)
    path = execute(replace(SEARCH, controls=(), control_rounds=(), transfer=same), tmp_path)
    found = [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "result"]
    for one, other in zip(found[:2], found[2:], strict=True):
        for key in ("test_accuracy", "test_loss", "density", "kept", "arithmetic", "epochs_total"):
            assert one[key] == other[key]
        assert "found_on" not in one
        assert other["found_on"] == TO_5


def test_every_ticket_is_trained_there_though_the_search_trains_it_here() -> None:
    rewound = EVERY_METHOD["imp, transfer"]
    assert (rewound.retrained(), rewound.transferred()) == ((2,), (1, 2))
    assert rewound.total_epochs == 2 * (2 + 1 + 1) + 3 * (2 + 1)
    assert replace(rewound, retrain=(1,)).transferred() == (1,)
    assert rewound.target.transfer is None
    assert (rewound.target.data, rewound.target.epochs, rewound.target.batch_size) == (FROM_6, 3, 64)
    assert rewound.title == f"imp keep=0.5 · conv_digits · {TO_5} → {FROM_6} · seed 0"


# ---- what does not fit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: replace(DENSE, transfer=ELSEWHERE), "transfer must be null where dense finds no ticket"),
        (lambda: replace(EVERY_METHOD["rigl"], transfer=ELSEWHERE), "transfer must be null where rigl finds no ticket"),
        (lambda: replace(CS, retrain=(), transfer=ELSEWHERE), "transfer must be null where no ticket is retrained"),
        (lambda: replace(ELSEWHERE, epochs=0), "epochs must be 1 or more, not 0"),
        (lambda: replace(ELSEWHERE, examples=0), "examples must be 1 or more, not 0"),
    ],
)
def test_contradictions(change: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        change()


def test_the_file_of_a_config() -> None:
    plain = json.loads(SEARCH.to_json())
    assert plain["transfer"] == {
        "data": FROM_6, "inputs": None, "epochs": 3, "batch_size": 64, "augment": False, "examples": 320,
        "schedule": {"kind": "cosine", "floor": 0.0},
    }  # fmt: skip
    hashes = {SEARCH.content_hash, replace(SEARCH, transfer=None).content_hash}
    for key, value in {"data": "digits", "epochs": 4, "batch_size": 65, "augment": True, "examples": None}.items():
        changed = {**plain, "transfer": {**plain["transfer"], key: value}}
        hashes.add(RunConfig.from_json(json.dumps(changed)).content_hash)
    hashes.add(replace(SEARCH, transfer=replace(ELSEWHERE, inputs=Images())).content_hash)
    assert len(hashes) == 8
    assert json.loads(CS.to_json())["transfer"] is None
    with pytest.raises(LabError, match=r"config: the key 'transfer.inputs' is missing"):
        RunConfig.from_json(json.dumps({**plain, "transfer": {"data": FROM_6}}))
    with pytest.raises(LabError, match=r"config: transfer is 3, but must be an object or null"):
        RunConfig.from_json(json.dumps({**plain, "transfer": 3}))
    with pytest.raises(LabError, match=r"config: transfer: epochs must be 1 or more, not 0"):
        RunConfig.from_json(json.dumps({**plain, "transfer": {**plain["transfer"], "epochs": 0}}))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_other.py").write_text(
        """
from dataclasses import replace
from torch import nn
from tombola.lab.data import digits

def larger():
    with open("loaded.txt", "a") as file:
        print("larger", file=file)
    data = digits()
    train, test = (nn.functional.interpolate(x, 12) for x in (data.train_x, data.test_x))
    return replace(data, train_x=train[:300], train_y=data.train_y[:300], test_x=test, original=False)

def perceptron(input_shape, classes):
    size = input_shape[1] ** 2
    return nn.Sequential(nn.Flatten(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, classes))
"""
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own")
def test_nothing_fits(tmp_path: Path) -> None:
    transfer = replace(ELSEWHERE, data="own_other:larger", examples=None)
    with pytest.raises(LabError, match=r"no masked layer of 'own_other:perceptron' has the same shape .*\(144, 144\)"):
        execute(replace(CS, model="own_other:perceptron", transfer=transfer), tmp_path / "out")


@pytest.mark.usefixtures("own")
def test_little_fits(tmp_path: Path) -> None:
    transfer = replace(ELSEWHERE, data="own_other:larger", examples=None)
    path = execute(replace(CS, model="lenet_300_100", rounds=1, epochs=1, transfer=transfer), tmp_path / "out")
    said = [record["text"] for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "warning"]
    assert said[0] == (
        "transfer of tickets from 'digits' to 'own_other:larger': only fc2.weight, fc3.weight fits; "
        "fresh and dense are fc1.weight"
    )
    (record,) = [record for key, record in results(path).items() if key[0] != "digits"]
    assert {layer["name"]: layer["kept"] == layer["size"] for layer in record["layers"]} == {
        "fc1.weight": True, "fc2.weight": False, "fc3.weight": False,
    }  # fmt: skip


# ---- stages that are shared out


LARGER = replace(ELSEWHERE, data="own_other:larger", examples=None, epochs=2)
SHARED = replace(
    CS, model="lenet_300_100", rounds=2, epochs=1, controls=("shuffled",), control_rounds=(1,), transfer=LARGER
)


def files(path: Path) -> dict[str, bytes]:
    """What a run leaves behind, byte by byte."""
    found = (file for file in path.rglob("*") if file.is_file() and file.name not in ("lock", "times.json"))
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def shared_out(config: RunConfig, out: Path, on_event: OnEvent = lambda run, event: None) -> Path:
    """Do the stages of the run as tasks, one after another."""
    schedule = Schedule(out, split=True, hold=False, on_event=lambda run, event: None)
    schedule.add([config])
    while (task := schedule.next()) is not None:
        assert task.place is not None
        execute(config, out, place=task.place, on_event=on_event)
        schedule.done(task)
    schedule.close()
    assert schedule.errors == {}
    return out / config.folder_name


@pytest.mark.usefixtures("own")
def test_stage_by_stage(tmp_path: Path) -> None:
    straight = execute(SHARED, tmp_path / "straight")
    assert Path("loaded.txt").read_text().count("larger") == 1
    path = shared_out(SHARED, tmp_path / "shared")
    assert files(path) == files(straight)
    assert Path("loaded.txt").read_text().count("larger") == 1 + 1 + 3  # to begin with, and where it is trained on
    times = [json.loads((run / "times.json").read_text())["seconds"] for run in (path, straight)]
    assert times[0].keys() == times[1].keys() >= {"1", "1 transferred", "1 shuffled", "1 shuffled transferred"}
    said, data, *others = read_metrics(path / "metrics.jsonl")
    assert said["text"].startswith("transfer of tickets from 'digits' to 'own_other:larger': only fc2.weight")
    assert data == {"kind": "data", "original": False, "transferred": True}
    assert said not in others
    assert data not in others
    found = read_run(path)
    assert (found.original, found.original_there) == (None, False)
    assert all(result.seconds for result in found.results)


@pytest.mark.usefixtures("own")
def test_what_several_processes_began_one_goes_on_with(tmp_path: Path) -> None:
    """Among it a ticket that is trained on other data, cut off, and one that is done."""
    out, answers = tmp_path / "cut", [True]
    stages = plan(SHARED)
    there = [place for place, stage in enumerate(stages) if stage.transferred]
    assert [stages[place].name for place in there] == ["1-transferred", "2-transferred", "1-shuffled-transferred"]
    for place in (0, 1, there[2]):
        execute(SHARED, out, place=place)
    with pytest.raises(Stopped):
        execute(SHARED, out, place=there[0], stop=lambda: answers.pop(0))
    heard: list[Event] = []
    path = execute(SHARED, out, on_event=lambda name, event: heard.append(event))
    assert {"event": "resumed", "epochs": {0: 1, 1: 1}} in heard
    epochs = [(event["stage"], event["epoch"]) for event in heard if event["event"] == "epoch"]
    assert epochs == [(2, 1), (3, 1), (4, 1), (there[0], 2), (there[1], 1), (there[1], 2)]
    assert files(path) == files(execute(SHARED, tmp_path / "straight"))


@pytest.mark.usefixtures("own")
def test_what_cannot_be_compiled_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the round that meets it first; by none of the tickets, but for what they alone meet."""

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        size = max(x.numel() for x in inputs if x.dtype == torch.float32 and x.dim() == 4) // SHARED.batch_size
        raise RuntimeError(f"no code for {size}")

    monkeypatch.setattr("tombola.lab.runs.trainer.compiled", partial(compiled, backend=backend))
    config = replace(SHARED, compile=True, transfer=replace(LARGER, batch_size=SHARED.batch_size))
    straight = execute(config, tmp_path / "straight")
    said = [record.get("text", "").partition("no code for ")[2] for record in read_metrics(straight / "metrics.jsonl")]
    assert [text.split()[0] for text in said if text] == ["64", "144"]
    heard: list[str] = []
    path = shared_out(config, tmp_path / "shared", lambda name, event: heard.append(str(event.get("text"))))
    assert files(path) == files(straight)
    assert len([text for text in heard if "no code for 64" in text]) == 1
    for place in range(len(plan(config)) - 1):
        execute(config, tmp_path / "taken", place=place)
    assert files(execute(config, tmp_path / "taken")) == files(straight)


# ---- the command line


def search_of(*arguments: str) -> Runs:
    with cli.commands["search"].make_context("search", list(arguments)) as context:
        return Runs.from_options(context.params, lambda: searches(context.params, given=typed(context)))


def test_everything_on_both_data_sets() -> None:
    arguments = ["--method", "imp", "--data", TO_5, "--transfer-to", FROM_6, "--model", "conv_digits", "--rounds", "2"]
    runs = search_of(*arguments, "--epochs", "4", "--transfer-epochs", "6", "--seeds", "1,0").configs
    assert [(c.data, c.method_name, c.epochs, c.seed) for c in runs] == [
        (data, method, epochs, seed)
        for data, epochs in ((TO_5, 4), (FROM_6, 6)) for method in ("dense", "imp") for seed in (1, 0)
    ]  # fmt: skip
    _, _, search, _, dense, _, alone, _ = runs
    assert search.transfer is not None
    assert replace(search.target, seed=0) == replace(alone, seed=0)
    assert (alone.method, dense.method, dense.epochs) == (search.method, Dense(), search.transfer.epochs)
    assert (search.control_rounds, alone.control_rounds) == ((2,), (2,))


def test_options_go_to_the_data_that_take_them(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(40):
                pixels = torch.randint(256, (9, 9), dtype=torch.uint8)
                from PIL import Image

                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    runs = search_of(
        "--method", "cs", "--transfer-to", "folder", "--transfer-dir", str(tmp_path / "pets"), "--image-size", "8",
        "--model", "conv_digits", "--batch-size", "32", "--cutout", "2",
    )  # fmt: skip
    (search,) = [c for c in runs.configs if c.transfer is not None]
    assert (search.data, search.inputs, search.augment) == ("digits", None, False)
    assert search.transfer is not None
    assert (search.transfer.data, search.transfer.augment) == ("folder/pets", True)
    assert search.transfer.inputs == Images(size=8, cutout=2, channels=1)
    alone = runs.configs[-1]
    path = execute(
        replace(alone, epochs=1, rounds=1, control_rounds=(1,)), tmp_path / "out", How(data_dirs=runs.data_dirs)
    )
    assert {record["data"] for record in results(path).values()} == {"folder/pets"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--transfer-to", "digits"], "--transfer-to: digits is what tickets are searched on already; give other data"),
        (["--transfer-to", "cifar10"], "data 'cifar10': say where its cifar-10-batches-py folder is with --data-dir"),
        (["--transfer-to", "folder"], "--transfer-to folder: say which with --transfer-dir"),
        (["--transfer-epochs", "3"], "--transfer-epochs: is for --transfer-to, so give that too"),
        (["--transfer-dir", "x", "--method", "cs"], "--transfer-dir: is for --transfer-to, so give that too"),
        (["--method", "dense", "--transfer-to", FROM_6], "--transfer-to: is for --method cs or imp or iss, not dense"),
        (["--transfer-to", FROM_6, "--length", "3"], "--length: is for --data text, not digits"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tombola search: {says}")


def test_what_the_command_line_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    what = ["--method", "imp", "--rounds", "1", "--keep", "0.5", "--model", "conv_digits", "--epochs", "1"]
    where = ["--data", TO_5, "--transfer-to", FROM_6]
    for search in search_of(*what, *where, "--no-dense", "--no-controls").configs:
        execute(search, out)
    print_report([out])
    text = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert f"conv_digits on {FROM_6}, seed 0" in text
    assert f"IMP keep = 0.5 from {TO_5}" in text
    assert "a ticket “from” other data was searched on those" in " ".join(text.split())
    with (out / "results.csv").open(newline="") as file:
        rows = {(row["data"], row["found_on"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(TO_5, ""), (FROM_6, ""), (FROM_6, TO_5)}
    assert all(row["wall_seconds"] for row in rows.values())


# ---- reports


def transferring(out: Path, *, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Tickets of ResNet-20 found on CIFAR-10 and CIFAR-100, the former trained on both."""
    for seed in seeds:
        imp = config({"kind": "imp", "keep": 0.8}, seed, data="cifar10", model="resnet20")
        there = {"data": "cifar100", "found_on": "cifar10"}
        epochs = [epoch("retrain", 6, 1, 0.8), epoch("retrain", 6, 1, 0.3, transferred=True, data="cifar100")]
        found = [result("imp", "keep=0.8", 6, 0.27, 0.9, data="cifar10")]
        found += [result("imp", "keep=0.8 from cifar10", 6, 0.28, 0.62 + seed / 100, **there)]
        found += [found[1] | {"control": "shuffled", "test_accuracy": 0.5}]
        data = [{"kind": "data", "original": True}, {"kind": "data", "original": False, "transferred": True}]
        write(out / f"imp-{seed}", imp | {"transfer": {"data": "cifar100", "epochs": 20}}, [*data, *epochs, *found])
        own = imp | {"data": "cifar100"}
        write(out / f"own-{seed}", own, [result("imp", "keep=0.8", 6, 0.26, 0.65 + seed / 100)])
    return out


def tasks_of(folder: Path) -> dict[str, Task]:
    return {task.data: task for task in read_summary([folder]).tasks}


def test_a_report_keeps_data_sets_apart(tmp_path: Path) -> None:
    summary = read_summary([transferring(tmp_path)])
    here, there = summary.tasks
    assert (here.data, [row.setting for row in here.rows]) == ("cifar10", ["keep=0.8"])
    own, moved = there.rows
    assert (own.found_on, moved.found_on, moved.accuracy.mean) == ("", "cifar10", pytest.approx(0.625))
    assert moved.name.endswith("from cifar10")
    assert moved.controls["shuffled"].mean == 0.5
    assert here.rows[0].controls == {}
    assert (here.rows[0].original, moved.original, own.original) == (True, False, None)
    for task, accuracy in ((here, 0.8), (there, 0.3)):
        (curve,) = training(task, summary.parts, lambda epoch: epoch.accuracy)
        assert [value.mean for value in curve.values] == [accuracy]
    assert len(summary.runs) == 4
    (said,) = [finding for finding in findings(there) if "over one as sparse" in finding.what]
    assert said.number == "−3.0 points"
    assert "from cifar10" in said.what
    assert not [finding for finding in findings(here) if "over one as sparse" in finding.what]
    page = write_report([tmp_path]).html.read_text()
    assert "for a ticket from cifar10 over one as sparse that was found here" in page


def test_a_transferred_ticket_stands_beside_numbers_of_the_data_it_was_measured_on(tmp_path: Path) -> None:
    task = tasks_of(transferring(tmp_path))["cifar10"]
    assert lookup(data="cifar10", model="resnet20", density=0.27)
    shown = [entry for group in leaderboard(task) for entry in group.entries if entry.measured]
    assert [entry.accuracy for entry in shown] == [pytest.approx(90.0)]
    there = tasks_of(tmp_path)["cifar100"]
    for group in leaderboard(there):
        published = lookup(data="cifar100", model="resnet20", density=group.density)
        assert [e.accuracy for e in group.entries if not e.measured] == [row.value for row in published]


def test_runs_with_and_without_a_transfer_are_one_setting_here(tmp_path: Path) -> None:
    out = transferring(tmp_path)
    alone = config({"kind": "imp", "keep": 0.8}, 2, data="cifar10", model="resnet20")
    write(out / "alone", alone, [result("imp", "keep=0.8", 6, 0.27, 0.93)])
    (row,) = tasks_of(out)["cifar10"].rows
    assert (row.seeds, row.accuracy.mean) == ((0, 1, 2), pytest.approx(0.91))


def test_a_search_whose_tickets_went_to_several_data_sets_counts_once(tmp_path: Path) -> None:
    out = transferring(tmp_path)
    settings = config({"kind": "imp", "keep": 0.8}, 0, data="cifar10", model="resnet20")
    found = [result("imp", "keep=0.8", 6, 0.27, 0.9)]
    write(out / "again", settings | {"transfer": {"data": "svhn", "epochs": 20}}, found)
    (row,) = tasks_of(out)["cifar10"].rows
    assert (row.seeds, row.accuracy.n) == ((0, 1), 2)
    assert len(read_summary([out]).runs) == 5


def test_older_runs_are_read_as_before(tmp_path: Path) -> None:
    summary = read_summary([beside_published(tmp_path)])
    assert summary.parts == summary.runs
    assert all(row.found_on == "" and row.valid is None for task in summary.tasks for row in task.rows)


# ---- the recipe


def test_classes_alone() -> None:
    whole, low, high = digits(), load(TO_5), load(FROM_6)
    assert (low.classes, high.classes) == (6, 4)
    low, high = digits_to_5(), digits_from_6()
    assert len(low.train_x) + len(high.train_x) == len(whole.train_x)
    assert len(low.test_x) + len(high.test_x) == len(whole.test_x)
    for data, first in ((low, 0), (high, 6)):
        where = (whole.test_y >= first) & (whole.test_y < first + data.classes)
        assert torch.equal(data.test_x, whole.test_x[where])
        assert torch.equal(data.test_y, whole.test_y[where] - first)
        assert data.train_y.unique().tolist() == list(range(data.classes))


def test_the_recipe_goes_both_ways() -> None:
    recipe = find("transfer")
    assert recipe.configs is not None
    found = {scale: list(recipe.configs(scale)) for scale in SCALES}
    for runs in found.values():
        ways = {(c.data, c.transfer.data) for c in runs if c.transfer is not None}
        assert len(ways) == 2
        assert {way[::-1] for way in ways} == ways
        for search in (c for c in runs if c.transfer is not None):
            alone = replace(search.target, controls=search.controls)
            beside = [c for c in runs if c.data == alone.data and c.method == alone.method and c.transfer is not None]
            assert [c.rounds for c in beside] == [search.rounds]  # tickets that were found there
            assert replace(beside[0], transfer=None) == alone
            assert replace(alone, method=Dense(), rounds=1, rewind_step=0, controls=(), control_rounds=(),
                           score_optimizer=None) in runs  # fmt: skip
    full = [c for c in found["full"] if c.transfer is not None]
    assert {(c.data, c.transfer.data) for c in full if c.transfer} == {("cifar10", "cifar100"), ("cifar100", "cifar10")}
    assert all("fc.weight" in c.unmasked and c.rewind_step == 780 for c in full)
    assert IMP_.transfer is None
