"""What the records of epochs tell of moving masks and of scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import CS, EVERY_METHOD
from torch import nn

import tombola
from tombola.lab.runs.events import Stopped
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.looking import read_metrics
from tombola.lab.runs.watch import EDGES, Watch, histogram
from tombola.sparse.swap import make_sparse


def epochs(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "epoch"]


@pytest.mark.parametrize("sparse", [False, True])
def test_moves_are_those_of_the_masks(sparse: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 3))
    if sparse:
        start = {name: torch.rand_like(model.get_parameter(name)) < 0.3 for name in ("0.weight", "2.weight")}
        make_sparse(model, start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = tombola.GraNet(density=0.1, initial_density=0.3, every=2)
    run = tombola.attach(model, optimizer, method, steps=40)
    watch, before = Watch(model, run), run.masks
    grown = 0
    for _ in range(4):
        for _ in range(10):
            model(torch.randn(8, 9)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        now, moved = run.masks, watch.moved()
        assert list(moved) == ["0.weight", "2.weight"]
        for name, found in moved.items():
            assert found == {
                "kept": int(now[name].sum()),
                "dropped": int((before[name] & ~now[name]).sum()),
                "grown": int((now[name] & ~before[name]).sum()),
            }
            grown += found["grown"]
        before = now
    assert grown > 0
    assert run.density < 0.3
    assert all(found["dropped"] == found["grown"] == 0 for found in watch.moved().values())


def test_masks_that_never_move_are_not_watched() -> None:
    model = nn.Linear(8, 8)
    run = tombola.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tombola.Static(density=0.5), steps=1)
    watch = Watch(model, run)
    assert watch.moved() == {}
    assert watch.state() == {}


@pytest.mark.parametrize("name", ["rigl", "granet, sparse"])
def test_moves_survive_a_stop_between_measurements(name: str, tmp_path: Path) -> None:
    config = replace(EVERY_METHOD[name], epochs=4, evaluate_every=3)
    path = execute(config, tmp_path / "whole")
    assert [record["epoch"] for record in epochs(path)] == [3, 4]
    assert sum(layer["dropped"] for layer in epochs(path)[0]["moved"].values()) > 0
    for _ in range(config.epochs):
        with pytest.raises(Stopped):
            execute(config, tmp_path / "cut", stop=lambda: True)
    assert epochs(execute(config, tmp_path / "cut")) == epochs(path)


def test_a_histogram_counts_every_score_once() -> None:
    scores = {"a": torch.randn(40, 5) / 10, "b": torch.tensor([-torch.inf, 0.0, 0.05, -0.05, 3.0])}
    counts = histogram(scores, 100.0)
    values = torch.cat([score.flatten() for score in scores.values()]).numpy() * np.float32(100)
    expected, _ = np.histogram(values, bins=[-np.inf, *EDGES.tolist(), np.inf])
    assert counts == expected.tolist()
    assert sum(counts) == 205
    assert {-4.0, 4.0} <= set(EDGES.tolist())  # the undecided ones are whole bins


def test_scores_are_told_at_the_end_of_each_round(tmp_path: Path) -> None:
    found = [(r["phase"], r["round"], r["epoch"]) for r in epochs(execute(CS, tmp_path)) if "scores" in r]
    assert found == [("search", 1, 2), ("search", 2, 2)]
    weights = 13_584
    for record in epochs(execute(CS, tmp_path)):
        assert "moved" not in record
        if "scores" in record:
            assert sum(record["scores"]) == weights
            undecided = sum(record["scores"][1:-1][12:28])  # from −4 to 4
            assert undecided / weights == pytest.approx(record["undecided"], abs=1e-3)
