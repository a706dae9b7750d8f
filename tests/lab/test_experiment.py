"""A run from its config to its numbers: equal to a loop written by hand, repeatable, and resumable at each epoch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import ASKED, CS, DENSE, EVERY_METHOD, IMP_, ISS
from loop import differ
from torch import nn

import tombola
from tombola.lab.config import RunConfig
from tombola.lab.data import digits
from tombola.lab.errors import LabError
from tombola.lab.methods import Dense
from tombola.lab.models import build
from tombola.lab.report.page import read_summary
from tombola.lab.runs.compiling import compiled
from tombola.lab.runs.events import Event, Stopped
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics
from tombola.lab.runs.lottery import begin_with
from tombola.lab.seeds import derive
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP
from tombola.methods.stochastic import StochasticSparsification
from tombola.patterns import NM

STEPS = 10  # of an epoch: 1,347 digits in batches of 128
BOTH: Any = {"controls": ("shuffled", "reinitialised"), "control_rounds": (1,)}


def files(path: Path) -> dict[str, bytes]:
    """What a run leaves behind, byte by byte."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    del found["lock"]
    found.pop("times.json", None)  # of no run the same twice
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that nothing ever disturbed, by the name of its config."""
    out, known = tmp_path_factory.mktemp("finished"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in known:
            known[name] = execute(EVERY_METHOD[name], out)
        return known[name]

    return folder


def results(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "result"]


# ---- against a loop written by hand


class ByHand:
    """Training as a user would write it, with the seeds and the schedule of a config."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.data = config, digits()
        self.model = self.fresh(derive(config.seed, "initial weights"))

    def fresh(self, seed: int) -> nn.Module:
        return build(self.config.model, input_shape=(1, 8, 8), classes=10, seed=seed)

    def train(self, attach: Callable[[torch.optim.Optimizer], Any] | None, *purpose: str | int, times: int = 1) -> Any:
        config, data = self.config, self.data
        kind = torch.optim.Adam if config.method_name == "iss" else torch.optim.SGD
        momentum = {} if config.method_name == "iss" else {"momentum": 0.9}
        optimizer = kind(self.model.parameters(), lr=config.optimizer.lr, fused=True, **momentum)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs * times)
        run = attach(optimizer) if attach is not None else None
        for epoch in range(config.epochs * times):
            order = torch.randperm(1347, generator=torch.Generator().manual_seed(derive(config.seed, *purpose, epoch)))
            for batch in order[: 128 * STEPS].split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(data.train_x[batch]), data.train_y[batch]).backward()
                optimizer.step()
            if config.method_name != "iss":
                scheduler.step()
        return run

    def measure(self) -> tuple[float, float]:
        with torch.no_grad():
            output = self.model.eval()(self.data.test_x)
        self.model.train()
        right = (output.argmax(1) == self.data.test_y).double().mean()
        return float(right), float(nn.functional.cross_entropy(output, self.data.test_y))

    def retrain(self, ticket: tombola.Ticket, *purpose: str | int) -> tuple[float, float]:
        masks = ticket.restore(self.model)
        steps = self.config.epochs * STEPS
        run = self.train(lambda o: tombola.attach(self.model, o, tombola.Fixed(masks), steps=steps), *purpose)
        found = self.measure()
        run.detach()
        return found


def check(record: dict[str, Any], measured: tuple[float, float], masks: tombola.Masks | None) -> None:
    assert record["test_accuracy"] == measured[0]
    assert record["test_loss"] == pytest.approx(measured[1], rel=1e-6)
    if masks is not None:
        assert {layer["name"]: layer["kept"] for layer in record["layers"]} == masks.counts()
        assert {layer["name"]: layer["size"] for layer in record["layers"]} == masks.sizes()
        assert (record["kept"], record["maskable"]) == (masks.kept, masks.total)
        assert record["density"] == masks.density


@pytest.mark.parametrize(("name", "times"), [("dense", 1), ("dense, longer", 2)])
def test_dense_training_is_the_loop_by_hand(name: str, times: int, finished: Callable[[str], Path]) -> None:
    hand = ByHand(EVERY_METHOD[name])
    hand.train(None, "train", 0, "", times=times)
    (record,) = results(finished(name))
    check(record, hand.measure(), None)
    assert (record["density"], record["epochs_search"], record["epochs_total"]) == (1.0, 0, 2 * times)
    assert (record["steps_total"], record["ticket"], record["control"]) == (2 * times * STEPS, None, None)
    assert record["setting"] == ("" if times == 1 else "equal epochs")


@pytest.mark.parametrize("name", ["rigl", "set, uniform", "snip, fan-in", "gmp", "cs, pruning"])
def test_sparse_training_is_the_loop_by_hand(name: str, finished: Callable[[str], Path]) -> None:
    config, path = EVERY_METHOD[name], finished(name)
    hand = ByHand(config)

    def attach(optimizer: torch.optim.Optimizer) -> Any:
        seed = derive(config.seed, "masks")
        return tombola.attach(hand.model, optimizer, config.training_method, steps=config.epochs * STEPS, seed=seed)

    run = hand.train(attach, "train", 0, "")
    masks = run.masks
    run.detach()
    (record,) = results(path)
    check(record, hand.measure(), masks)
    assert (record["round"], record["epochs_search"], record["epochs_total"]) == (0, 0, 2)
    ticket = tombola.Ticket.load(path / record["ticket"])
    assert ticket.masks.digest() == masks.digest()
    assert all(torch.equal(ticket.start[name], tensor) for name, tensor in hand.model.state_dict().items())
    assert ticket.provenance["method"]["name"] == type(config.method).__name__
    assert ticket.provenance["steps"] == config.epochs * STEPS
    assert 0 < record["arithmetic"] < config.epochs


@pytest.mark.parametrize("name", ["rigl", "rigl, sparse", "snip, fan-in", "gmp"])
def test_what_a_budget_warns_of_is_recorded_once(name: str, tmp_path: Path) -> None:
    """Whenever the method asks its budget, and however often the run is stopped."""
    method = replace(EVERY_METHOD[name].method, density=0.001, budget=tombola.uniform)
    config, heard = replace(EVERY_METHOD[name], method=method), list[str]()
    left = [True, False, False]

    def hear(_: str, event: Event) -> None:
        if event["event"] == "warning":
            heard.append(event["text"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Stopped):
            execute(config, tmp_path, stop=lambda: left.pop(0), on_event=hear)
        path = execute(config, tmp_path, on_event=hear)
    assert len([text for text in heard if "would empty" in text]) == 1
    recorded = [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "warning"]
    assert len(recorded) == len(heard)


def test_a_pattern_that_does_not_fit_is_named(tmp_path: Path) -> None:
    config = replace(DENSE, method=tombola.Static(density=0.5, budget=tombola.uniform, pattern=NM(2, 4)))
    with pytest.raises(
        LabError, match=r"static on model 'conv_digits': pattern: 'conv1.weight' does not fit .* 1 inputs"
    ):
        execute(config, tmp_path)


@pytest.mark.parametrize("name", ["cs", "cs, density", "imp", "imp-c", "iss"])
def test_a_search_is_the_loop_by_hand(name: str, finished: Callable[[str], Path]) -> None:
    config, path = EVERY_METHOD[name], finished(name)
    hand = ByHand(config)
    search = tombola.TicketSearch(
        hand.model, config.search_method, rounds=config.rounds, rewind_step=config.rewind_step, seed=config.seed
    )
    tickets, after_round, soft, warned = {}, {}, {}, list[str]()
    for round_ in search:

        def attach(optimizer: torch.optim.Optimizer, round_: Any = round_) -> Any:
            return round_.attach(optimizer, steps=config.epochs * STEPS)

        run = hand.train(attach, "search", round_.index, "")
        after_round[round_.index] = hand.measure()
        with run.hard():
            undecided = run.diagnostics()["undecided"]
            soft[round_.index] = (*after_round[round_.index], *hand.measure(), undecided)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tickets[round_.index] = round_.ticket()
        warned += [str(warning.message) for warning in caught]
    assert [r["text"] for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "warning"] == warned
    for index, ticket in tickets.items():
        saved = tombola.Ticket.load(path / "tickets" / f"round-{index:02d}.safetensors")
        assert not differ(dict(saved.masks.items()), dict(ticket.masks.items()))
        assert not differ(dict(saved.start), dict(ticket.start))
        assert saved.provenance["run"] == config.folder_name
        assert (saved.provenance["data"], saved.provenance["model"]) == ("digits", "conv_digits")
    found = {(record["round"], record["control"]): record for record in results(path)}
    free = name == "imp"
    if free:  # what round r + 1 trains is the ticket of round r
        for index in (1, 2):
            check(found.pop((index, None)), after_round[index + 1], tickets[index].masks)
    for index in config.retrained():
        record = found.pop((index, None))
        check(record, hand.retrain(tickets[index], "retrain", index, ""), tickets[index].masks)
        assert (record["epochs_search"], record["epochs_total"]) == (2 * index, 2 * index + 2)
        assert record["steps_total"] == (2 * index + 2) * STEPS
        assert record["ticket"] == f"tickets/round-{index:02d}.safetensors"
        keys = ("soft_accuracy", "soft_loss", "hard_accuracy", "hard_loss", "undecided")
        shown = tuple(record[key] for key in keys)
        assert shown == (pytest.approx(soft[index]) if name in ("cs", "cs, density", "iss") else (None,) * 5)
    for index in config.control_rounds:
        ticket, seeds = tickets[index], {label: derive(0, label, index) for label in config.controls}
        shuffled = ticket.shuffled(seed=seeds["shuffled"])
        anew = replace(ticket, start=hand.fresh(seeds["reinitialised"]).state_dict())
        for label, control in (("shuffled", shuffled), ("reinitialised", anew)):
            record = found.pop((index, label))
            check(record, hand.retrain(control, "control", index, label), control.masks)
            assert (record["ticket"], record["soft_accuracy"], record["undecided"]) == (None, None, None)
    assert found == {}


def test_an_asked_for_density_is_met(finished: Callable[[str], Path]) -> None:
    total = 13_584  # weights of conv_digits
    kept = {record["round"]: record["kept"] for record in results(finished("cs, density"))}
    assert kept == {1: total // 2, 2: round(0.2 * total)}


# ---- what is written on the way


def test_the_epochs_of_a_search(finished: Callable[[str], Path]) -> None:
    config = EVERY_METHOD["cs, density"]
    epochs = [record for record in read_metrics(finished("cs, density") / "metrics.jsonl") if record["kind"] == "epoch"]
    stages = [("search", 1, None), ("search", 2, None), ("retrain", 1, None), ("retrain", 2, None)]
    stages += [("control", 2, "shuffled"), ("control", 2, "reinitialised")]
    assert [(e["phase"], e["round"], e["label"], e["epoch"], e["steps"]) for e in epochs] == [
        (*stage, epoch, STEPS * epoch) for stage in stages for epoch in (1, 2)
    ]
    assert len(epochs) == config.total_epochs
    for record in epochs:
        soft = record["phase"] == "search"
        assert all((record[key] is not None) is soft for key in ("hard_test_accuracy", "temperature", "undecided"))
        assert record["lr"] == pytest.approx(0.1 if record["epoch"] == 1 else 0.05)  # a cosine over two epochs
    assert [e["temperature"] for e in epochs[:2]] == pytest.approx([200**0.5, 200.0])


def test_epochs_between_measurements(tmp_path: Path) -> None:
    path = execute(replace(DENSE, epochs=5, evaluate_every=2), tmp_path)
    assert [record.get("epoch") for record in read_metrics(path / "metrics.jsonl")] == [2, 4, 5, None]


def test_events(tmp_path: Path) -> None:
    heard: list[Event] = []

    def on_event(name: str, event: Event) -> None:
        assert name == ASKED.folder_name
        heard.append(event)

    path = execute(ASKED, tmp_path, on_event=on_event)
    assert heard[0] == {"event": "start", "title": ASKED.title, "total_epochs": 12}
    assert heard[-1] == {"event": "done"}
    assert [event["done"] for event in heard if event["event"] == "epoch"] == list(range(1, 13))
    assert [{"event": "result", **record} for record in results(path)] == [e for e in heard if e["event"] == "result"]
    warned = [event["text"] for event in heard if event["event"] == "warning"]
    kept = [r["text"] for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "warning"]
    assert warned == kept
    for event in heard:
        json.dumps(event, allow_nan=False)  # they travel between processes


def test_a_search_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    config = replace(CS, method=ContinuousSparsification(initial_score=-4.0), rounds=1)
    path = execute(config, tmp_path)
    (record,) = results(path)
    layers = ["conv1.weight", "conv2.weight", "fc1.weight", "out.weight"]
    assert (record["kept"], record["dead_layers"]) == (0, layers)
    (warning,) = [r["text"] for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "warning"]
    assert warning == f"round 1: no weight is left in {', '.join(layers)}"


def test_parameters_without_a_mask(tmp_path: Path) -> None:
    path = execute(replace(IMP_, rounds=1, unmasked=("out.weight",)), tmp_path)
    (record,) = results(path)
    assert [layer["name"] for layer in record["layers"]] == ["conv1.weight", "conv2.weight", "fc1.weight"]
    with pytest.raises(LabError, match=r"unmasked: conv_digits has no parameter 'fc9.weight'; it has conv1.weight, "):
        execute(replace(IMP_, unmasked=("fc9.weight",)), tmp_path)


# ---- again, and again


@pytest.mark.parametrize("name", ["dense", "cs, density", "imp", "iss", "rigl", "rigl, sparse"])
def test_the_same_seed_gives_the_same_bytes(name: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(12345)  # the state of the world does not matter
    torch.randn(7)
    again = execute(EVERY_METHOD[name], tmp_path)
    assert files(again) == files(finished(name))
    assert again.name == finished(name).name


def test_another_seed_gives_other_numbers(finished: Callable[[str], Path], tmp_path: Path) -> None:
    other = execute(replace(CS, seed=1), tmp_path)
    mine = {r["test_loss"] for r in results(finished("cs"))}
    assert mine.isdisjoint(r["test_loss"] for r in results(other))


STOPPED = [
    "dense, longer",
    "cs",
    "imp",
    "imp-c",
    "iss",
    "rigl",
    "rigl, sparse",
    "granet, sparse",
    "snip, fan-in",
    "gmp",
]
STOPPED += ["cs, pruning", "imp, transfer"]


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_after_each_epoch(name: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    """As many processes' worth of work as there are epochs: each ends after one, and the next goes on."""
    config, stops = EVERY_METHOD[name], 0
    while True:
        torch.manual_seed(stops)
        try:
            path = execute(config, tmp_path, stop=lambda: True)
        except Stopped:
            stops += 1
            assert stops <= config.total_epochs
        else:
            break
    assert stops == config.total_epochs
    assert files(path) == files(finished(name))


@pytest.mark.parametrize("name", ["cs, density"])
def test_an_older_checkpoint_does_as_well(name: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    """The newest checkpoint is damaged at each stop; the run falls back on the one before, and goes two epochs on."""
    config, warned = EVERY_METHOD[name], list[str]()

    def hear(_: str, event: Event) -> None:
        if event["event"] == "warning" and "checkpoint" in event["text"]:
            warned.append(event["text"])

    for _ in range(2 * config.total_epochs):
        left = [False, False, True]
        try:
            path = execute(
                config, tmp_path, How(checkpoint_share=math.inf), stop=lambda left=left: left.pop(0), on_event=hear
            )
        except Stopped:
            newest = max(tmp_path.glob("*/checkpoint-*.pt"))
            newest.write_bytes(newest.read_bytes()[:-1])
        else:
            break
    assert files(path) == files(finished(name))
    assert len(warned) >= 3


def test_a_finished_run_is_left_alone(finished: Callable[[str], Path]) -> None:
    path, heard = finished("imp"), list[Event]()
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.name != "lock"
              if file.is_file()}  # fmt: skip
    assert execute(IMP_, path.parent, on_event=lambda name, event: heard.append(event)) == path
    assert [event["event"] for event in heard] == ["start", "done"]
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before


@pytest.mark.parametrize(("share", "expected"), [(math.inf, [0, 1, 2, 3]), (1e-9, [0, 1, 1, 1])])
def test_how_often_it_saves(share: float, expected: list[int], tmp_path: Path) -> None:
    numbers: list[int] = []

    def look(_: str, event: Event) -> None:
        if event["event"] == "epoch":
            names = [path.stem for path in tmp_path.glob("*/checkpoint-*.pt")]
            numbers.append(max((int(name.rpartition("-")[2]) for name in names), default=0))

    execute(replace(DENSE, epochs=4), tmp_path, How(checkpoint_share=share), on_event=look)
    assert numbers == expected


# ---- what can go wrong


def stopped(config: RunConfig, out: Path, *, after: int) -> Path:
    answers = [False] * (after - 1) + [True]
    with pytest.raises(Stopped):
        execute(config, out, How(checkpoint_share=math.inf), stop=lambda: answers.pop(0))
    return out / config.folder_name


@pytest.mark.parametrize(
    ("config", "after"), [(DENSE, 1), (CS, 1), (CS, 3), (IMP_, 3), (IMP_, 7), (ISS, 1)],
    ids=["dense", "cs", "cs round 2", "imp round 2", "imp retraining", "iss"],
)  # fmt: skip
@pytest.mark.parametrize("change", ["width", "norm"])
def test_the_users_model_has_changed(
    config: RunConfig, after: int, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_changing_net.py").write_text(
        """
from pathlib import Path
from torch import nn

def net(classes):
    changed = Path("changed").read_text() if Path("changed").exists() else ""
    layers = [nn.Flatten(), nn.Linear(64, 9 if changed == "width" else 8)]
    layers += [nn.BatchNorm1d(8)] if changed == "norm" else []
    return nn.Sequential(*layers, nn.LazyLinear(classes)) if changed == "lazy" else nn.Sequential(
        *layers, nn.Linear(layers[1].out_features, classes))
"""
    )
    monkeypatch.chdir(tmp_path)
    config = replace(config, model="own_changing_net:net")
    path = stopped(config, tmp_path, after=after)
    (tmp_path / "changed").write_text(change)
    with pytest.raises(LabError, match=f"{path.name}") as caught:
        execute(config, tmp_path)
    assert "delete" in str(caught.value)
    (tmp_path / "changed").unlink()
    assert execute(config, tmp_path) == path  # nothing is lost


def test_a_ticket_that_has_gone_or_changed(tmp_path: Path) -> None:
    path = stopped(CS, tmp_path, after=5)  # both tickets are found; their retraining has begun
    ticket = path / "tickets" / "round-01.safetensors"
    content = ticket.read_bytes()
    for damaged in (content[:-1], content[:1000] + b"\x00" + content[1001:], b"", b"\x80\x04pickle", None):
        ticket.unlink()
        if damaged is not None:
            ticket.write_bytes(damaged)
        with pytest.raises(LabError, match=rf"round-01\.safetensors.*; delete {path} to start this run over"):
            execute(CS, tmp_path)
    ticket.write_bytes(content)
    assert execute(CS, tmp_path) == path


@pytest.mark.parametrize("config", [DENSE, CS, IMP_], ids=["dense", "cs", "imp"])
def test_a_loss_that_is_not_finite(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, optimizer=replace(config.optimizer, lr=1e30))
    with pytest.raises((LabError, FloatingPointError), match=r"(?i)lower the learning rate"):
        execute(config, tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(DENSE, batch_size=2000), "batch_size is 2000, but digits has 1347 examples"),
        (replace(DENSE, model="lenet_300_100", data="own_flat:data"), "takes images of shape"),
        (replace(DENSE, data="own_flat:data", model="own_flat:wide"), r"it cannot take inputs of shape \(2, 6\)"),
        (
            replace(DENSE, data="own_flat:data", model="own_flat:few"),
            r"output is shape \(2, 2\), not logits .*\(2, 3\)",
        ),
        (replace(DENSE, data="own_flat:data", model="own_flat:pair"), "its output is tuple, not logits"),
        (replace(DENSE, data="own_flat:data", model="own_flat:good", augment=True), "not images"),
        (replace(DENSE, data="own_flat:empty", model="own_flat:good"), "the test set has no example"),
        (replace(IMP_, rewind_step=2 * STEPS + 1), "rewind_step=21 lies behind the end of a round of steps=20"),
        (replace(IMP_, method=IMP(keep={"nowhere": 0.5})), "'nowhere'"),
    ],
)
def test_settings_that_do_not_fit(
    config: RunConfig, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_flat.py").write_text(
        """
import torch
from torch import nn

def data():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    return x[:150], torch.arange(150) % 3, x[150:], torch.arange(50) % 3

def empty():
    from torch.utils.data import DataLoader, TensorDataset
    from tombola.lab.data import Loaders
    train = DataLoader(TensorDataset(torch.zeros(200, 6), torch.zeros(200).long()), batch_size=128)
    return Loaders(train, [], classes=3, input_shape=(6,), name="empty")

def good(classes): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, classes))
def wide(classes): return nn.Linear(7, classes)
def few(classes): return nn.Linear(6, 2)
def pair(classes): return nn.LSTM(6, classes)
"""
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises((LabError, ValueError), match=says):
        execute(config, tmp_path)


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    execute(replace(DENSE, method=Dense(), epochs=1), tmp_path, How(threads=before + 1),
            on_event=lambda name, event: seen.append(torch.get_num_threads()))  # fmt: skip
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_dropout_and_batch_norm_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_noisy.py").write_text(
        """
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, classes))
"""
    )
    monkeypatch.chdir(tmp_path)
    config = replace(CS, model="own_noisy:net", rounds=2, retrain=())
    straight = execute(config, tmp_path / "straight")
    path = stopped(config, tmp_path / "cut", after=3)
    torch.randn(5)
    assert execute(config, tmp_path / "cut") == path
    assert files(path) == files(straight)


COLOURS = """
import torch

def load():
    x = torch.randn(700, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :10].argmax(1)
    return x[:600], y[:600], x[600:], y[600:]
"""
IN_COLOUR = replace(EVERY_METHOD["rigl"], data="own_colours:load", epochs=3)


@pytest.mark.parametrize(
    ("setting", "backend"),
    [
        ({"precision": "bf16"}, None),
        ({"channels_last": True}, None),
        ({"micro_batch": 50}, None),
        ({"compile": True}, "aot_eager"),
        pytest.param(
            {"compile": True, "channels_last": True},
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(1800),
                pytest.mark.filterwarnings("ignore::DeprecationWarning"),
            ],
        ),
    ],
    ids=["bf16", "channels-last", "micro-batches", "compiled", "inductor"],
)
def test_a_stop_costs_nothing_however_it_computes(
    setting: dict[str, Any], backend: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_colours.py").write_text(COLOURS)
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []

    def by_backend(*arguments: Any, **options: Any) -> Any:
        asked.append(options["batch_size"])
        return compiled(*arguments, **options, backend=backend)

    monkeypatch.setattr("tombola.lab.runs.trainer.compiled", by_backend)
    config = replace(IN_COLOUR, **setting)
    straight = execute(config, tmp_path / "straight")
    path = stopped(config, tmp_path / "cut", after=1)
    torch.compiler.reset()
    assert execute(config, tmp_path / "cut") == path
    assert files(path) == files(straight)
    assert asked == ([128] * 3 if "compile" in setting else [])
    assert not [r for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "warning"]
    usual = results(execute(IN_COLOUR, tmp_path / "usual"))
    found, expected = results(path)[0]["test_loss"], usual[0]["test_loss"]
    assert found == pytest.approx(expected, rel=0.05)
    if "precision" in setting or backend == "aot_eager":
        assert (found == expected) == (backend == "aot_eager")  # which reorders nothing


@pytest.mark.parametrize("name", ["rigl, sparse", "cs, pruning", "rigl, lottery"])
def test_batches_in_parts_are_the_same_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the order in which sums are taken; compiled code is made for the parts."""
    asked: list[int] = []

    def by_backend(*arguments: Any, **options: Any) -> Any:
        asked.append(options["batch_size"])
        return compiled(*arguments, **options, backend="aot_eager")

    monkeypatch.setattr("tombola.lab.runs.trainer.compiled", by_backend)
    config = EVERY_METHOD[name]
    parts = replace(config, micro_batch=48, compile=not config.sparse)  # two of 48 and one of 32
    found, expected = (results(execute(each, tmp_path)) for each in (parts, config))
    assert [r["test_loss"] for r in found] == pytest.approx([r["test_loss"] for r in expected], rel=1e-3)
    assert set(asked) == (set() if config.sparse else {48})


def test_each_network_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds of a search train the same one, whatever its masks; PyTorch gives up after a few."""
    times: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        times.append("a graph")
        return graph.forward

    monkeypatch.setattr("tombola.lab.runs.trainer.compiled", partial(compiled, backend=backend))
    config = replace(IMP_, method=IMP(keep=0.8), rounds=10, epochs=1, compile=True)
    path = execute(config, tmp_path)
    assert len(results(path)) == 10
    assert len(times) == 2  # the search's, and that of the last ticket
    usual = execute(replace(config, compile=False), tmp_path)
    assert [r["test_loss"] for r in results(path)] == [r["test_loss"] for r in results(usual)]


def test_what_cannot_be_compiled_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_colours.py").write_text(COLOURS)
    monkeypatch.chdir(tmp_path)

    def backend(graph: object, inputs: object) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("tombola.lab.runs.trainer.compiled", partial(compiled, backend=backend))
    config, events = replace(IN_COLOUR, compile=True), list[Event]()
    path = stopped(config, tmp_path, after=2)
    execute(config, tmp_path, on_event=lambda name, event: events.append(event))
    (warning,) = (r for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "warning")
    assert warning["text"].startswith("compile: trained without torch.compile: BackendCompilerFailed: ")
    assert not [event for event in events if event["event"] == "warning"]
    usual = execute(IN_COLOUR, tmp_path / "usual")
    assert [r["test_loss"] for r in results(path)] == [r["test_loss"] for r in results(usual)]


def test_a_run_knows_whether_its_data_are_the_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_copy.py").write_text(
        """
from dataclasses import replace
from tombola.lab.data import digits

def copy(): return replace(digits(), original=False)
"""
    )
    monkeypatch.chdir(tmp_path)
    path = execute(replace(DENSE, data="own_copy:copy"), tmp_path / "copy")
    first, *others = read_metrics(path / "metrics.jsonl")
    assert first == {"kind": "data", "original": False}
    own = read_metrics(execute(DENSE, tmp_path / "own") / "metrics.jsonl")
    assert others.pop() | {"data": "digits"} == own.pop()
    assert others == own


def test_data_behind_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loaders.py").write_text(
        """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tombola.lab.data import Loaders

def data():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    both = TensorDataset(x, (x[:, 0] > 0).long())
    return Loaders(DataLoader(both, batch_size=16, shuffle=True), DataLoader(both, batch_size=96), 2, (6,), "mine")

def net(classes): return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, classes))
"""
    )
    monkeypatch.chdir(tmp_path)
    config = replace(CS, data="own_loaders:data", model="own_loaders:net", batch_size=16)
    straight = execute(config, tmp_path / "straight")
    assert len(results(straight)) == 2
    path = stopped(config, tmp_path / "cut", after=3)
    torch.randn(5)
    assert execute(config, tmp_path / "cut") == path
    assert files(path) == files(straight)


# ---- masks over weights that never change


SUPERMASKS: list[ContinuousSparsification | StochasticSparsification] = [
    ContinuousSparsification(initial_score=0.05, penalty=1e-4, train_weights=False),
    StochasticSparsification(initial_score=0.5, train_weights=False),
]


@pytest.mark.parametrize("method", SUPERMASKS, ids=["cs", "ss"])
def test_a_supermask_is_the_mask_over_the_first_weights(
    method: ContinuousSparsification | StochasticSparsification, tmp_path: Path
) -> None:
    config = replace(CS, method=method, rounds=1, retrain=())
    assert (config.supermask, config.searches, config.total_epochs) == (True, False, 2)
    assert not replace(config, retrain="all").supermask  # this one trains the ticket
    path = execute(config, tmp_path)
    (record,) = results(path)
    ticket = tombola.Ticket.load(path / record["ticket"])
    model = build("conv_digits", input_shape=(1, 8, 8), classes=10, seed=derive(0, "initial weights"))
    for name, mask in ticket.masks.items():
        assert torch.equal(ticket.start[name], model.get_parameter(name).detach() * mask)
    ticket.restore(model)
    data = digits()
    with torch.no_grad():
        right = (model(data.test_x).argmax(1) == data.test_y).double().mean()
    assert record["test_accuracy"] == record["hard_accuracy"] == float(right)
    assert record["soft_accuracy"] is not None
    assert record["density"] == ticket.density < 1
    assert record["arithmetic"] == 2  # two epochs with dense gradients


@pytest.mark.parametrize("method", SUPERMASKS, ids=["cs", "ss"])
def test_controls_of_a_supermask_are_measured_as_they_are(
    method: ContinuousSparsification | StochasticSparsification, tmp_path: Path
) -> None:
    config = replace(CS, method=method, rounds=1, retrain=(), **BOTH)
    path = execute(config, tmp_path)
    own, *controls = results(path)
    assert [(record["control"], record["round"]) for record in controls] == [("shuffled", 0), ("reinitialised", 0)]
    ticket, data = tombola.Ticket.load(path / own["ticket"]), digits()
    for record in controls:
        fresh = build(
            "conv_digits", input_shape=(1, 8, 8), classes=10, seed=derive(0, str(record["control"]), 0)
        )  # fmt: skip
        if record["control"] == "shuffled":
            expected = ticket.shuffled(seed=derive(0, "shuffled", 0))
            assert expected.masks.digest() != ticket.masks.digest()
            expected.restore(fresh)
        else:  # the same places over other weights, and nothing that was learnt
            with torch.no_grad():
                for name, mask in ticket.masks.items():
                    fresh.get_parameter(name).mul_(mask)
        with torch.no_grad():
            right = (fresh(data.test_x).argmax(1) == data.test_y).double().mean()
        assert record["test_accuracy"] == float(right)
        assert (record["density"], record["multiply_adds"]) == (own["density"], own["multiply_adds"])
        assert (record["epochs_search"], record["epochs_total"], record["arithmetic"]) == (2, 2, 2)
        assert record["ticket"] is record["soft_accuracy"] is None
    with pytest.raises(Stopped):
        execute(config, tmp_path / "cut", stop=lambda: True)
    assert files(execute(config, tmp_path / "cut")) == files(path)


# ---- what it costs


def test_what_results_weigh(finished: Callable[[str], Path]) -> None:
    (dense,) = results(finished("dense"))
    model = build("conv_digits", input_shape=(1, 8, 8), classes=10, seed=0)
    forward = tombola.flops.count(model, torch.zeros(1, 1, 8, 8))
    assert dense["multiply_adds"] == forward.total
    assert dense["bytes"] == tombola.flops.size_in_bytes(model, {}) == 4 * sum(p.numel() for p in model.parameters())
    for name in ("rigl", "imp", "cs, density"):
        for record in results(finished(name)):
            masks = tombola.Ticket.load(finished(name) / (record["ticket"] or "tickets/round-02.safetensors")).masks
            assert record["bytes"] == tombola.flops.size_in_bytes(model, masks)
            assert record["multiply_adds"] == round(tombola.flops.count(model, torch.zeros(1, 1, 8, 8), masks).total)


def test_arithmetic_of_a_search_and_its_tickets(finished: Callable[[str], Path]) -> None:
    dense = results(finished("dense"))[0]["multiply_adds"]
    imp = {record["round"]: record for record in results(finished("imp"))}
    share = {round_: record["multiply_adds"] / dense for round_, record in imp.items()}
    # round 1 trains the dense net, each later one the ticket before it, which is that ticket's own training
    assert imp[1]["arithmetic"] == pytest.approx(2 * (1 + share[1]))
    assert imp[3]["arithmetic"] == pytest.approx(2 * (1 + share[1] + share[2] + share[3]))
    cs = {record["round"]: record for record in results(finished("cs"))}
    assert cs[2]["arithmetic"] == pytest.approx(2 * (2 + cs[2]["multiply_adds"] / dense))  # scores of all weights


@pytest.mark.parametrize("name", ["dense, longer", "cs", "imp", "rigl", "rigl, lottery"])
def test_the_whole_curve_costs_all_that_was_trained(name: str, finished: Callable[[str], Path]) -> None:
    (task,) = read_summary([finished(name)]).tasks
    assert max(row.epochs_all.mean for row in task.rows) == EVERY_METHOD[name].total_epochs


def test_wall_times_are_noted_apart(finished: Callable[[str], Path]) -> None:
    found = json.loads((finished("cs, density") / "times.json").read_text())
    assert found["device"] == "cpu"
    assert set(found["seconds"]) == {"1", "2", "2 shuffled", "2 reinitialised"}
    assert found["seconds"]["2"] > found["seconds"]["1"] > 0  # with the second round of the search
    metrics = (finished("cs, density") / "metrics.jsonl").read_text()
    assert "seconds" not in metrics


def test_training_on_a_part_of_the_examples(tmp_path: Path) -> None:
    path = execute(replace(DENSE, examples=300), tmp_path)
    assert results(path)[0]["steps_total"] == 2 * (300 // 128)
    with pytest.raises(LabError, match="examples is 2000, but digits has 1347 to train"):
        execute(replace(DENSE, examples=2000), tmp_path)


def test_pruning_by_scores_costs_what_is_left(tmp_path: Path, finished: Callable[[str], Path]) -> None:
    """Dense while the mask is soft, and then as sparse as it came out, which nobody had asked for."""
    method = tombola.ContinuousSparsification(initial_score=-0.02, harden_at=0.5)
    (record,) = results(execute(replace(EVERY_METHOD["cs, pruning"], method=method), tmp_path))
    assert 0 < record["density"] < 0.9
    share = record["multiply_adds"] / results(finished("dense"))[0]["multiply_adds"]
    assert record["arithmetic"] == pytest.approx(2 * (0.5 + 0.5 * share), rel=1e-3)  # multiply-adds are whole


# ---- lottery initialisation


def test_the_first_weights_with_the_last_connections(finished: Callable[[str], Path]) -> None:
    plain, fixed, moving = (finished(name) for name in ("rigl", "rigl, lottery", "rigl, lottery on"))
    (alone,) = results(plain)
    trained = tombola.Ticket.load(plain / "tickets/trained.safetensors")
    initial = build("conv_digits", input_shape=(1, 8, 8), classes=10, seed=derive(0, "initial weights"))
    for path in (fixed, moving):
        first, again = results(path)
        assert first["test_accuracy"] == alone["test_accuracy"]
        ticket = tombola.Ticket.load(path / again["ticket"])
        assert ticket.masks.digest() == trained.masks.digest()
        for name, mask in ticket.masks.items():
            assert torch.equal(ticket.start[name], initial.get_parameter(name).detach() * mask)
        assert (first["epochs_total"], again["epochs_total"], again["round"]) == (2, 4, 1)
        assert again["density"] == first["density"]
    rest, on = results(fixed)[1], results(moving)[1]
    assert on["arithmetic"] == pytest.approx(2 * alone["arithmetic"])
    share = rest["multiply_adds"] / results(finished("dense"))[0]["multiply_adds"]
    assert rest["arithmetic"] == pytest.approx(alone["arithmetic"] + 2 * share)
    seconds = json.loads((fixed / "times.json").read_text())["seconds"]
    assert seconds["1"] > seconds["0"] > 0


def test_controls_of_lottery_initialisation(tmp_path: Path) -> None:
    for lottery in ("fixed", "moving"):
        path = execute(replace(EVERY_METHOD["rigl, lottery"], lottery=lottery, **BOTH), tmp_path)
        first, again, *controls = results(path)
        assert [(record["control"], record["round"]) for record in controls] == [("shuffled", 1), ("reinitialised", 1)]
        for record in controls:
            assert record["kept"] == again["kept"]
            assert [layer["kept"] for layer in record["layers"]] == [layer["kept"] for layer in first["layers"]]
            assert (record["epochs_search"], record["epochs_total"], record["ticket"]) == (2, 4, None)
            assert record["arithmetic"] == pytest.approx(again["arithmetic"])
        assert len({record["test_loss"] for record in (again, *controls)}) == 3  # each begins with something else
        trained = [r for r in read_metrics(path / "metrics.jsonl") if r["kind"] == "epoch" and r["phase"] == "control"]
        assert [(r["label"], r["epoch"]) for r in trained] == [
            ("shuffled", 1), ("shuffled", 2), ("reinitialised", 1), ("reinitialised", 2)
        ]  # fmt: skip


def test_connections_move_on_from_where_they_were(finished: Callable[[str], Path]) -> None:
    model = build("conv_digits", input_shape=(1, 8, 8), classes=10, seed=1)
    ticket = tombola.Ticket.load(finished("rigl") / "tickets/trained.safetensors")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = tombola.RigL(density=0.2, every=4, move_at_start=False)
    run = begin_with(
        ticket.masks, model, lambda: tombola.attach(model, optimizer, method, steps=20, select=list(ticket.masks))
    )
    assert run.masks.digest() == ticket.masks.digest()
    for name, mask in ticket.masks.items():
        assert torch.equal(model.get_parameter(name), before[name] * mask)
    data = digits()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x[:64]), data.train_y[:64]).backward()
        optimizer.step()
    assert run.masks.digest() != ticket.masks.digest()
    assert run.masks.counts() == ticket.masks.counts()
