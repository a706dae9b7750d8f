"""measure(): layer by layer and in total, and at which density sparse would begin to pay."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tombola.sparse import measure
from tombola.sparse.choose import Times
from tombola.sparse.measure import _break_even_density, _Line


def line(dense_ms: float, sparse_ms: float, weights: int, density: float, steepness: float) -> _Line:
    return _Line(1, 1, dense_ms, sparse_ms, weights, density, steepness)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([line(10, 2, 100, 0.1, 20)], 0.5),  # 2 + 20·(d − 0.1) = 10
        ([line(10, 2, 100, 0.0, 20)], 0.4),  # 2 + 20·d = 10, of a layer without any connection
        ([line(10, 14, 100, 0.5, 10)], 0.1),
        ([line(1, 9, 100, 0.1, 10)], 0.0),  # it would not pay with none either
        ([line(10, 2, 100, 0.5, 1e-12)], 1.0),  # and here with all
        # twice the connections of both: 3 + 10·0.1 + 1 + 5·0.2 = 6
        ([line(4, 3, 300, 0.1, 10), line(2, 1, 100, 0.2, 5)], (300 * 0.2 + 100 * 0.4) / 400),
        # the second is full from twice on; the first goes on: 2 + 10·(d − 0.1) + 3 + 4·0.5 = 12 at 0.6
        ([line(6, 2, 300, 0.1, 10), line(6, 3, 100, 0.5, 4)], (300 * 0.6 + 100) / 400),
    ],
)
def test_the_break_even_density_by_hand(lines: list[_Line], wanted: float) -> None:
    assert _break_even_density(lines) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.9, 1.0])
def test_layers_and_the_total(monkeypatch: pytest.MonkeyPatch, density: float) -> None:
    """With a machine whose sparse layers take 4 times a weight's time and 1 ms, and dense ones that of all weights."""
    in_a_ms = 1000

    def layer_times(call: object, masks: dict[str, torch.Tensor], *, bf16: bool) -> Times:
        (mask,) = masks.values()
        return Times(mask.numel() / in_a_ms, None, 1 + 4 * int(mask.sum()) / in_a_ms)

    monkeypatch.setattr(sys.modules["tombola.sparse.measure"], "layer_times", layer_times)
    model = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 80))
    counts = {"0.weight": round(4000 * density), "2.weight": round(8000 * density)}
    masks = {
        name: (torch.arange(model.get_parameter(name).numel()) < count).view_as(model.get_parameter(name))
        for name, count in counts.items()
    }
    found = measure(model, masks, torch.randn(2, 40))
    for pays, times in ((found.inference, 1), (found.training, None)):
        assert pays.dense_ms == pytest.approx(12)
        assert pays.sparse_ms == pytest.approx(2 + 4 * 12 * density)
        # 2 + 48 d = 12
        assert pays.break_even_density == pytest.approx(10 / 48, abs=1e-3)
        assert pays.arithmetic_saved == pytest.approx(1 - density)
        if times:
            assert pays.sparse_multiply_adds == 2 * sum(counts.values())
    assert [row.layer for row in found.layers] == ["0", "2"]
    assert found.layers[0].inference.break_even_density == pytest.approx(3 / 16, abs=1e-3)  # 1 + 16 d = 4
    assert found.layers[1].inference.break_even_density == pytest.approx(7 / 32, abs=1e-3)  # 1 + 32 d = 8
    *_, inference, training = found.table().splitlines()
    assert inference.split()[0] == "total"
    assert inference.split()[-1] == training.split()[-1] == f"{found.inference.break_even_density:.3f}"
