"""Runs whose masked layers are sparse layers while they train: the same runs as under masks, and nothing dense."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import DENSE, EVERY_METHOD

import tombola
from tombola.lab.cli.main import run
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.events import Event
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics
from tombola.methods.set_ import SET
from tombola.methods.static import Static

SPARSE = {
    "rigl": EVERY_METHOD["rigl, sparse"],
    "granet": EVERY_METHOD["granet, sparse"],
    "set": replace(DENSE, method=SET(density=0.25, every=4), sparse=True),
    "static": replace(DENSE, method=Static(density=0.1), sparse=True),
}
LENET = replace(SPARSE["rigl"], model="lenet_300_100")


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == kind]


@pytest.mark.parametrize("model", ["conv_digits", "lenet_300_100"])
@pytest.mark.parametrize("name", SPARSE)
def test_the_run_under_masks_has_the_same_numbers(name: str, model: str, tmp_path: Path) -> None:
    config = replace(SPARSE[name], model=model, seed=3)
    sparse, masked = execute(config, tmp_path), execute(replace(config, sparse=False), tmp_path)
    assert sparse != masked
    for one, other in zip(records(sparse, "epoch"), records(masked, "epoch"), strict=True):
        for key in ("train_loss", "test_loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key
        assert one["density"] == other["density"]
        assert one.get("moved") == other.get("moved")
    (one,), (other,) = records(sparse, "result"), records(masked, "result")
    assert {key for key in one if one[key] != other[key]} <= {"setting", "test_loss", "test_accuracy"}
    tickets = [tombola.Ticket.load(path / "tickets/trained.safetensors") for path in (sparse, masked)]
    assert tickets[0].masks == tickets[1].masks
    assert list(tickets[0].start) == list(tickets[1].start)
    for tensors in zip(tickets[0].start.values(), tickets[1].start.values(), strict=True):
        torch.testing.assert_close(*tensors, rtol=1e-2, atol=1e-3)
    assert tickets[0].provenance["sparse"] is True
    assert "sparse" not in tickets[1].provenance


def test_nothing_dense_lives_while_it_trains(tmp_path: Path) -> None:
    counts: list[int] = []

    def look(_: str, event: Event) -> None:
        if event["event"] == "epoch":
            gc.collect()
            tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
            counts.append(sum(tensor.shape in ((330, 64), (110, 330), (10, 110)) for tensor in tensors))

    config = replace(LENET, width=1.1)  # of sizes that no other test has
    execute(config, tmp_path, on_event=look)
    assert counts == [0, 0]
    execute(replace(config, sparse=False), tmp_path, on_event=look)
    assert min(counts[2:]) >= 3  # so that it would have been seen


def test_on_another_device_it_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="--sparse: sparse layers compute on the CPU, not on meta"):
        execute(LENET, tmp_path, How(device="meta"))


OWN = """
import torch
from torch import nn


class Recurrent(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.cell = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.cell(x[:, 0])[0][:, -1])


class Transposed(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.ConvTranspose2d(1, classes, 8)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


class Functional(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.head.weight)
"""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("Recurrent", "--sparse: 'cell.weight_ih_l0' of model 'own_dense:Recurrent' cannot be sparse"),
        ("Recurrent", "leave it dense with --unmasked cell.weight_ih_l0,cell.weight_hh_l0, or leave --sparse out"),
        ("Transposed", "model 'own_dense:Transposed' has no masked layer that can be sparse (layer.weight)"),
        ("Functional", "does not run with sparse layers: "),
    ],
)
def test_models_that_cannot_be_sparse(
    model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_dense.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--sparse", "--model", f"own_dense:{model}", "--density", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "runs").exists()


def test_what_stays_dense_beside_sparse_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_dense.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    left = ("cell.weight_ih_l0", "cell.weight_hh_l0")
    config: RunConfig = replace(LENET, model="own_dense:Recurrent", unmasked=left)
    (record,) = records(execute(config, tmp_path), "result")
    assert [layer["name"] for layer in record["layers"]] == ["head.weight"]


@pytest.mark.usefixtures("without_workers")
def test_the_tickets_of_sparse_layers_are_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--method",
        "rigl",
        "--density",
        "0.1",
        "--epochs",
        "1",
        "--jobs",
        "1",
        "--no-dense",
        "--out",
        str(tmp_path),
    ]
    assert run(["train", *asked, "--sparse", "-q"]) == 0
    assert run(["train", *asked, "-q"]) == 0  # beside the same under masks
    said = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    rows = [line for line in said.splitlines() if line.startswith("RigL density = 0.1")]
    sparse = [line.startswith("RigL density = 0.1 sparse") for line in rows]
    assert sparse == [True, True, False, True, False, True]  # results and costs of the first, then of both
    (ticket,) = [
        path for path in tmp_path.glob("rigl-*/tickets/trained.safetensors")
        if "sparse" in tombola.Ticket.load(path).provenance
    ]  # fmt: skip
    assert run(["inspect", str(ticket)]) == 0
    assert "RigL" in capsys.readouterr().out
    assert run(["export", str(ticket), "--to", "sparse", "--batch", "8"]) == 0
    assert ticket.with_name("trained.sparse.safetensors").is_file()
