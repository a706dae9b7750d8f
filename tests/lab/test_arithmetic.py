"""What a training costs beside dense training: by hand, for a network of two layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tombola import SET, SNFS, SNIP, ContinuousSparsification, GradualMagnitude, GraNet, RigL, Static, flops, uniform
from tombola.lab.arithmetic import training_cost
from tombola.patterns import NM

WIDE, NARROW = 20 * 8, 8 * 5  # weights, and multiply-adds: each is used once


def cost(
    method: Any,
    *,
    masked: tuple[str, ...] = ("0.weight", "1.weight"),
    steps: int = 1000,
    counts: dict[str, int] | None = None,
) -> float:
    model = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 5))
    counted = flops.count(model, torch.zeros(1, 20))
    return training_cost(
        method, counted, {name: model.get_parameter(name) for name in masked}, steps=steps, counts=counts
    )


def test_without_dense_gradients() -> None:
    for kind in (Static, SET, SNIP):
        assert cost(kind(density=0.25, budget=uniform)) == pytest.approx(0.25)
    assert cost(Static(density=0.5, budget=uniform, pattern=NM(2, 4))) == pytest.approx(0.5)


def test_what_has_no_mask_is_dense() -> None:
    found = cost(Static(density=0.25, budget=uniform), masked=("0.weight",))
    assert found == pytest.approx((0.25 * WIDE + NARROW) / (WIDE + NARROW))


def test_layers_count_by_their_budget() -> None:
    def first_only(shapes: Any, density: float) -> dict[str, int]:
        return {"0.weight": 100, "1.weight": 0}

    assert cost(Static(density=0.5, budget=first_only)) == pytest.approx(100 / 200)


def test_with_dense_gradients() -> None:
    share = 0.25
    assert cost(SNFS(density=share, budget=uniform)) == pytest.approx((2 * share + 1) / 3)
    every = 9
    by_hand = (3 * share * every + 2 * share + 1) / (every + 1) / 3
    assert cost(RigL(density=share, budget=uniform, every=every)) == pytest.approx(by_hand)


def test_from_dense_to_sparse() -> None:
    # dense for a quarter, then d + (1 - d)(1 - p)^3 for a half, whose mean is d + (1 - d)/4, then d
    mean = 0.25 + 0.5 * (0.2 + 0.8 / 4) + 0.25 * 0.2
    assert cost(GradualMagnitude(density=0.2, begin=0.25, until=0.75)) == pytest.approx(mean, abs=0.01)
    late = GradualMagnitude(density=0.2, initial_density=0.2, begin=0.5, until=0.75)
    assert cost(late) == pytest.approx(0.5 + 0.5 * 0.2, abs=0.01)
    mean = 0.5 * (0.2 + (0.6 - 0.2) / 4) + 0.5 * 0.2
    assert cost(GraNet(density=0.2, initial_density=0.6, prune_until=0.5)) == pytest.approx(mean, abs=0.01)
    hard = ContinuousSparsification(density=0.2, harden_at=0.8)
    assert cost(hard) == pytest.approx(0.8 + 0.2 * 0.2)
    assert cost(ContinuousSparsification(harden_at=0.8)) == 1.0  # nobody knows how sparse it will be


def test_once_it_is_known_what_was_left() -> None:
    left = {"0.weight": 16, "1.weight": 10}
    by_hand = 0.8 + 0.2 * (16 + 10) / (WIDE + NARROW)
    for density in (None, 0.13):  # 26 of 200 both times, but not in the same shares
        hard = ContinuousSparsification(density=density, harden_at=0.8)
        assert cost(hard, counts=left) == pytest.approx(by_hand)
    assert cost(ContinuousSparsification(train_weights=False), counts=left) == 1.0  # soft to the end
    assert cost(RigL(density=0.13, budget=uniform), counts=left) == cost(RigL(density=0.13, budget=uniform))


def test_long_trainings_are_sampled() -> None:
    short, long = (cost(GradualMagnitude(density=0.1), steps=steps) for steps in (1000, 123_456))
    assert long == pytest.approx(short, abs=0.01)
