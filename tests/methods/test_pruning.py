"""SNIP, gradual magnitude pruning and static masks: what they keep, when, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import tombola
from tombola import SNIP, GradualMagnitude, Static, global_, uniform
from tombola.methods.protocol import Moment


def moment(step: int, steps: int = 1000) -> Moment:
    return Moment(step=step, steps=steps, steps_per_epoch=None, weights=1)


def two_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -4.0], [0.5, 2.0]]))
        model[1].weight.copy_(torch.tensor([[0.1, 3.0], [-0.2, 0.3]]))
    return model


def train_step(model: nn.Module, optimizer: SGD, gradients: dict[str, list[list[float]]]) -> None:
    optimizer.zero_grad()
    sum((p * torch.tensor(gradients[n])).sum() for n, p in model.named_parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()


# |g·w| of the first layer 0.1, 0.4, 4, 0.2; of the second 1, 0.3, 0.2, 0
GRADIENTS = {"0.weight": [[0.1, 0.1], [8.0, -0.1]], "1.weight": [[10.0, -0.1], [1.0, 0.0]]}


def test_snip_keeps_what_matters_to_the_loss() -> None:
    """Appendix M (iii) of the RigL paper: by |g| alone the second of each layer would go."""
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, SNIP(density=0.5, budget=uniform), steps=3)
    assert run.density == 1.0
    train_step(model, optimizer, GRADIENTS)
    assert run.masks["0.weight"].tolist() == [[False, True], [True, False]]
    assert run.masks["1.weight"].tolist() == [[True, True], [False, False]]
    assert model[0].weight.tolist() == [[0.0, -4.0], [0.5, 0.0]]  # no update yet
    train_step(model, optimizer, GRADIENTS)
    assert model[0].weight.tolist()[0] == pytest.approx([0.0, -4.01])
    assert run._state.memory == {}  # type: ignore[union-attr]


def test_snip_over_all_layers_together() -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, SNIP(density=0.25, budget=global_), steps=3)
    train_step(model, optimizer, GRADIENTS)
    assert run.masks["0.weight"].tolist() == [[False, False], [True, False]]
    assert run.masks["1.weight"].tolist() == [[True, False], [False, False]]


def test_gradual_pruning_by_hand() -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.0)
    method = GradualMagnitude(density=0.25, every=1, begin=0.25, until=0.75)
    run = tombola.attach(model, optimizer, method, steps=8)
    found = []
    run.on_step(lambda run: found.append(run.masks.kept))
    for _ in range(8):
        train_step(model, optimizer, GRADIENTS)
    # after updates 2 … 6: 0.25 + 0.75·(1 − p)³ with p = 0, ¼, ½, ¾, 1 of 8 weights: 8, 4.53, 2.75, 2.09, 2
    assert found == [8, 8, 5, 3, 2, 2, 2, 2]
    assert run.masks["0.weight"].tolist() == [[False, True], [False, False]]
    assert run.masks["1.weight"].tolist() == [[False, True], [False, False]]


def test_gradual_pruning_within_layers() -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.0)
    method = GradualMagnitude(density=0.5, budget=uniform, every=1, begin=0.0, until=0.5)
    run = tombola.attach(model, optimizer, method, steps=4)
    for _ in range(4):
        train_step(model, optimizer, GRADIENTS)
    assert run.masks["0.weight"].tolist() == [[False, True], [False, True]]
    assert run.masks["1.weight"].tolist() == [[False, True], [False, True]]


def test_when_gradual_pruning_happens() -> None:
    method = GradualMagnitude(density=0.1, every=100)
    pruned = [t + 1 for t in range(1000) if method.plan(moment(t)).after]
    assert pruned == [250, 350, 450, 550, 650, 750]
    assert method.density_at(moment(249)) == 1.0
    assert method.density_at(moment(749)) == 0.1
    assert method.density_at(moment(499)) == pytest.approx(0.1 + 0.9 / 8)
    jump = GradualMagnitude(density=0.1, initial_density=0.4, every=100)
    assert jump.density_at(moment(249)) == 0.4
    assert jump.density_at(moment(499)) == pytest.approx(0.1 + 0.3 / 8)
    # the end is reached also where it is no multiple
    odd = GradualMagnitude(density=0.1, every=300, begin=0.0, until=1.0)
    assert [t + 1 for t in range(1000) if odd.plan(moment(t)).after] == [1, 301, 601, 901, 1000]


def test_static_is_random_and_stays() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, Static(density=0.2), steps=3, seed=1)
    masks = run.masks
    assert masks.counts() == tombola.erk({n: p.shape for n, p in run.parameters.items()}, 0.2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(3, 20)).square().sum().backward()
        optimizer.step()
    assert run.masks == masks
    run.detach()
    assert tombola.attach(model, optimizer, Static(density=0.2), steps=3, seed=2).masks != masks


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (Static, {"density": 2.0}, ["density", "at most 1", "2.0"]),
        (SNIP, {"density": "a"}, ["density", "'a'"]),
        (GradualMagnitude, {"density": 0.0}, ["density", "above 0"]),
        (GradualMagnitude, {"density": 0.5, "initial_density": 0.4}, ["initial_density 0.4", "density 0.5"]),
        (GradualMagnitude, {"density": 0.5, "begin": 0.8}, ["begin=0.8", "until=0.75"]),
        (GradualMagnitude, {"density": 0.5, "until": 1.5}, ["until=1.5"]),
        (GradualMagnitude, {"density": 0.5, "every": 0}, ["every", "at least 1"]),
    ],
)
def test_bad_settings(method: Any, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must|below|number|shares") as caught:
        method(**settings)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
