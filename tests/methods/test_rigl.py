"""RigL, SET and SNFS: one move by hand, when moves come, and the mistakes that the RigL authors report of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import copied, differ
from torch import Tensor, nn
from torch.optim import SGD, Adam

import tombola
from tombola import SET, SNFS, Attachment, GraNet, Masks, RigL, uniform
from tombola.methods.moves import Anneal, drop_and_grow
from tombola.methods.protocol import DynamicMethod, Moment


def moment(step: int, steps: int = 1000) -> Moment:
    return Moment(step=step, steps=steps, steps_per_epoch=None, weights=1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Layer(nn.Module):
    """Two weights' worth of model whose gradient a test dictates: the loss is Σ g·w."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(weight), 1, bias=False)
        self.extra = nn.Parameter(torch.ones(1))
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([weight]))

    def forward(self, gradient: Tensor) -> Tensor:
        return self.fc(gradient).sum() + self.extra.sum()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: list[float]) -> None:
    optimizer.zero_grad()
    model(torch.tensor(gradient)).backward()
    optimizer.step()


def kept(run: Attachment) -> list[int]:
    return run.masks["fc.weight"].flatten().nonzero().flatten().tolist()


def begun(method: DynamicMethod, weight: list[float], mask: list[int], optimizer: Any = None, steps: int = 12) -> Any:
    """A model under ``method`` with these weights and this mask."""
    model = Layer(weight)
    optimizer = (optimizer or (lambda p: SGD(p, lr=0.5, momentum=0.9)))(model.parameters())
    run = tombola.attach(model, optimizer, method, steps=steps)
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([weight]))
    run._state.hold(Masks({"fc.weight": torch.tensor([mask]).bool()}))  # type: ignore[union-attr]
    return model, optimizer, run


# ---- one move


def test_a_move_by_hand() -> None:
    weight = torch.tensor([0.5, -0.1, 0.3, 0.0, -0.2, 0.0])
    mask = torch.tensor([1, 1, 1, 0, 1, 0]).bool()
    growth = torch.tensor([9.0, 0.1, 9.0, 0.7, 0.2, 0.6])
    # −0.1 and −0.2 are dropped; of 1, 3, 4, 5 those with growth 0.7 and 0.6 come in
    moved = drop_and_grow(weight, mask, growth, n=2, generator=generator())
    assert moved.tolist() == [True, False, True, True, False, True]
    # a dropped one may come back at once
    growth[1] = 5.0
    moved = drop_and_grow(weight, mask, growth, n=2, generator=generator())
    assert moved.tolist() == [True, True, True, True, False, False]


def test_connections_that_are_zero_are_still_kept_before_missing_ones() -> None:
    weight, mask = torch.zeros(4), torch.tensor([0, 1, 0, 1]).bool()
    assert drop_and_grow(weight, mask, torch.ones(4), n=0, generator=generator()).tolist() == mask.tolist()


@given(st.integers(0, 2**20), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
def test_moves_against_a_slow_reference(seed: int, size: int, density: float, fraction: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, growth = torch.randn(size, generator=draw), torch.rand(size, generator=draw)
    mask = torch.rand(size, generator=draw) < density
    weight *= mask
    n = int(fraction * int(mask.sum()))
    moved = drop_and_grow(weight, mask, growth, n=n, generator=draw)
    there = sorted((i for i in range(size) if mask[i]), key=lambda i: -abs(float(weight[i])))
    stay = there[: len(there) - n]
    come = sorted((i for i in range(size) if i not in stay), key=lambda i: -float(growth[i]))[:n]
    assert moved.nonzero().flatten().tolist() == sorted([*stay, *come])
    assert int(moved.sum()) == int(mask.sum())


def test_ties_are_drawn_from_the_generator() -> None:
    weight, mask = torch.ones(200), torch.ones(200).bool()
    mask[100:] = False
    ends = []
    for seed in (1, 1, 2):
        draw = torch.Generator().manual_seed(seed)
        ends.append(drop_and_grow(weight * mask, mask, torch.ones(200), n=50, generator=draw))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert int(ends[0][100:].sum()) > 10  # neither the first nor the last are favoured
    assert int(ends[0][:100].sum()) > 50


# ---- in training


def test_rigl_replaces_the_step() -> None:
    method = RigL(density=0.5, every=2, drop_fraction=0.5, anneal="constant", until=1.0)
    model, optimizer, run = begun(method, [0.4, 0.1, 0.0, 0.0], [1, 1, 0, 0], lambda p: Adam(p, lr=0.5))
    # step 0: 0.1 goes, the third has the larger gradient
    step(model, optimizer, [1.0, 0.5, -3.0, 2.0])
    assert kept(run) == [0, 2]
    assert model.fc.weight.tolist() == [[pytest.approx(0.4), 0.0, 0.0, 0.0]]
    assert model.extra.item() == 1.0
    assert not optimizer.state  # not even begun, let alone counted
    assert model.fc.weight.grad.tolist() == [[1.0, 0.0, -3.0, 0.0]]
    step(model, optimizer, [1.0, 0.5, -3.0, 2.0])
    assert model.fc.weight.tolist()[0] == pytest.approx([-0.1, 0.0, 0.5, 0.0])
    assert optimizer.state[model.fc.weight]["step"] == 1
    assert run.step == 2


def test_rigl_regrows_with_value_and_state_and_grows_without() -> None:
    method = RigL(density=0.5, every=1, drop_fraction=1.0, anneal="constant", until=1.0, move_at_start=False)
    model, optimizer, run = begun(method, [0.4, 0.1, 0.0, 0.0], [1, 1, 0, 0])
    step(model, optimizer, [0.0, 0.0, 0.0, 0.0])  # step 0: no move at the start
    step(model, optimizer, [0.2, 0.1, 5.0, 5.0])  # step 1: the missing ones' gradient does not count
    momentum = optimizer.state[model.fc.weight]["momentum_buffer"]
    assert model.fc.weight.tolist()[0] == pytest.approx([0.3, 0.05, 0.0, 0.0])
    assert momentum.tolist()[0] == pytest.approx([0.2, 0.1, 0.0, 0.0])
    # step 2: all connections drop, the first grows at once again, the fourth is new
    step(model, optimizer, [4.0, 1.0, 0.5, 3.0])
    assert kept(run) == [0, 3]
    assert model.fc.weight.tolist()[0] == pytest.approx([0.3, 0.0, 0.0, 0.0])
    assert momentum.tolist()[0] == pytest.approx([0.2, 0.0, 0.0, 0.0])
    # step 3 trains both
    step(model, optimizer, [1.0, 1.0, 1.0, 1.0])
    assert momentum.tolist()[0] == pytest.approx([1.18, 0.0, 0.0, 1.0])
    assert model.fc.weight.tolist()[0] == pytest.approx([0.3 - 0.59, 0.0, 0.0, -0.5])


def test_the_gradient_is_that_of_the_loss_alone() -> None:
    """Weight decay would make the score of a large weight that was just dropped larger than the gradient says."""
    method = RigL(density=0.5, every=1, drop_fraction=0.5, anneal="constant")
    model, optimizer, run = begun(
        method, [9.0, 8.0, 0.0, 0.0], [1, 1, 0, 0], lambda p: SGD(p, lr=0.5, weight_decay=1.0)
    )
    step(model, optimizer, [0.0, 0.01, 0.02, 0.0])
    assert kept(run) == [0, 2]


def test_rigl_averages_over_the_window() -> None:
    method = RigL(density=0.25, every=2, drop_fraction=1.0, anneal="constant", average=2, until=1.0)
    model, optimizer, run = begun(method, [0.4, 0.0, 0.0, 0.0], [1, 0, 0, 0])
    step(model, optimizer, [0.0, 0.0, 1.0, 0.0])
    assert kept(run) == [2]  # at the start there is but one gradient
    step(model, optimizer, [0.0, 0.0, 9.0, 9.0])  # not in the window
    step(model, optimizer, [0.0, 3.0, 0.0, -3.0])
    step(model, optimizer, [0.0, -3.0, 1.0, -1.0])
    assert kept(run) == [3]  # sums 0, 0, 1, −4
    assert run._state.memory == {}  # type: ignore[union-attr]


def test_set_moves_after_the_step() -> None:
    method = SET(density=0.5, every=2, drop_fraction=0.5, anneal="constant")
    model, optimizer, run = begun(method, [0.4, 0.3, 0.0, 0.0], [1, 1, 0, 0], lambda p: SGD(p, lr=1.0))
    step(model, optimizer, [0.35, 0.0, 5.0, 5.0])  # makes the first the smallest, which goes
    assert 1 in kept(run)
    assert len(kept(run)) == 2
    assert model.fc.weight.tolist()[0][1] == pytest.approx(0.3)
    assert model.extra.item() == 0.0
    before = kept(run)
    step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
    assert kept(run) == before  # every second step only


def test_set_grows_evenly_at_random() -> None:
    method = SET(density=0.25, every=1, drop_fraction=1.0, anneal="constant", until=1.0)
    model, optimizer, run = begun(method, [1.0, 0.0, 0.0, 0.0], [1, 0, 0, 0], steps=400)
    found = [0, 0, 0, 0]
    for _ in range(400):
        step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
        found[kept(run)[0]] += 1
    assert min(found) > 70


def test_snfs_grows_by_the_mean_gradient() -> None:
    method = SNFS(density=0.5, every=2, drop_fraction=0.5, anneal="constant", momentum=0.5, move_at_start=False)
    model, optimizer, run = begun(method, [4.0, 3.0, 0.0, 0.0], [1, 1, 0, 0], lambda p: SGD(p, lr=0.1))
    step(model, optimizer, [0.0, 0.0, 8.0, 0.0])
    assert model.fc.weight.grad.tolist() == [[0.0, 0.0, 0.0, 0.0]]  # the optimiser sees live weights only
    step(model, optimizer, [0.0, 0.0, 0.0, 1.0])
    assert run._state.memory["fc.weight"].tolist() == [[0.0, 0.0, 2.0, 0.5]]  # type: ignore[union-attr]
    assert kept(run) == [0, 1]
    step(model, optimizer, [0.0, 0.0, 0.0, 2.5])
    assert run._state.memory["fc.weight"].tolist() == [[0.0, 0.0, 1.0, 1.5]]  # type: ignore[union-attr]
    assert kept(run) == [0, 3]


def test_granet_prunes_and_moves() -> None:
    method = GraNet(density=0.25, initial_density=1.0, every=1, drop_fraction=0.5, prune_until=0.5, anneal="constant")
    assert method.density_at(moment(249)) == pytest.approx(0.25 + 0.75 / 8)
    model, optimizer, run = begun(
        method, [4.0, 3.0, 2.0, 1.0, 5.0, 6.0, 7.0, 8.0], [1] * 8, lambda p: SGD(p, lr=0.0), steps=4
    )
    assert run.density == 1.0
    # after update 1 of 2: round((0.25 + 0.75/8)·8) = 3 stay: 6, 7, 8; int(0.5·3) = 1 is dropped: 6, and 3 grows
    step(model, optimizer, [0.0, 5.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0])
    assert kept(run) == [1, 6, 7]
    assert model.fc.weight.tolist() == [[0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 7.0, 8.0]]  # what grows at once keeps its value
    # after update 2: two stay; one is dropped, one grows
    step(model, optimizer, [0.0, 5.0, 6.0, 1.0, 1.0, 1.0, 9.0, 0.0])
    assert kept(run) == [6, 7]  # the seventh is dropped and grows again
    assert run._state.memory == {}  # type: ignore[union-attr]


def test_gradients_between_moves_are_masked() -> None:
    method = RigL(density=0.5, every=2, drop_fraction=0.5)
    model, optimizer, _ = begun(method, [0.4, 0.1, 0.0, 0.0], [1, 1, 0, 0])
    seen = []
    for _ in range(4):
        model.zero_grad()
        model(torch.ones(4)).backward()
        seen.append(int(model.fc.weight.grad.count_nonzero()))
        optimizer.step()
    assert seen == [4, 2, 2, 4]


# ---- when


def test_moves_of_rigl_come_between_updates() -> None:
    method = RigL(density=0.5, every=100)
    planned = [method.plan(moment(t)) for t in range(1000)]
    assert [t for t, plan in enumerate(planned) if plan.instead] == list(range(0, 750, 101))
    assert all(plan.gradient == plan.instead and not plan.after for plan in planned)
    late = RigL(density=0.5, every=100, move_at_start=False, until=0.25)
    assert [t for t in range(1000) if late.plan(moment(t)).instead] == [101, 202]
    window = RigL(density=0.5, every=100, average=3, until=0.25)
    assert [t for t in range(1000) if window.plan(moment(t)).gradient] == [0, 99, 100, 101, 200, 201, 202]


def test_moves_of_set_and_snfs_come_after_updates() -> None:
    for method in (SET(density=0.5, every=100), SNFS(density=0.5, every=100)):
        assert [t for t in range(1000) if method.plan(moment(t)).after] == list(range(0, 750, 100))
        assert not any(method.plan(moment(t)).instead for t in range(1000))
    assert not any(SET(density=0.5).plan(moment(t)).gradient for t in range(1000))
    assert sum(SNFS(density=0.5).plan(moment(t)).gradient for t in range(1000)) == 750


FRACTIONS: dict[Anneal, tuple[float, float, float]] = {
    "cosine": (0.3, 0.15 * (1 + math.cos(math.pi / 3)), 0.15),
    "constant": (0.3, 0.3, 0.3),
    "linear": (0.3, 0.2, 0.15),
    "inverse_power": (0.3, 0.3 * (2 / 3) ** 3, 0.3 / 8),
}


@pytest.mark.parametrize("anneal", FRACTIONS)
def test_drop_fractions(anneal: Anneal) -> None:
    method = RigL(density=0.5, anneal=anneal)  # T_end = 750
    assert [method.fraction(moment(t)) for t in (0, 250, 375)] == pytest.approx(FRACTIONS[anneal])
    if anneal != "constant":
        assert method.fraction(moment(750)) == pytest.approx(0.0)
    # a training of twice the steps stretches the schedule, not the distance between moves
    assert method.fraction(moment(500, steps=2000)) == pytest.approx(FRACTIONS[anneal][1])
    assert method.plan(moment(101, steps=2000)).instead


def test_settings_of_itop() -> None:
    method = RigL.itop(density=0.1)
    assert (method.density, method.every, method.drop_fraction, method.budget) == (0.1, 4000, 0.5, tombola.erk)


# ---- mistakes that the authors report


def test_random_choices_are_the_same_on_every_rank() -> None:
    """Appendix M (i): global random state differs between ranks, and must not matter."""
    ends = []
    for rank in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        optimizer = SGD(model.parameters(), lr=0.1)
        torch.manual_seed(rank)
        run = tombola.attach(model, optimizer, SET(density=0.3, every=1), steps=5, seed=3)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 8)).square().sum().backward()
            optimizer.step()
        ends.append(run.masks.digest())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("make", [RigL, SNFS])
def test_growth_uses_the_gradients_that_the_optimiser_gets(make: Callable[..., DynamicMethod]) -> None:
    """Appendix M (ii): what counts is the gradient at the step (reduced over ranks), not that of a backward pass."""
    method = make(density=0.25, every=1, drop_fraction=1.0, anneal="constant")
    model, optimizer, run = begun(method, [0.4, 0.0, 0.0, 0.0], [1, 0, 0, 0])
    model(torch.tensor([0.0, 5.0, 1.0, 0.0])).backward()
    model.fc.weight.grad.copy_(torch.tensor([[0.0, 0.0, 1.0, 3.0]]))  # as an all-reduce does
    optimizer.step()
    assert kept(run) == [3]


# ---- bad settings, a state


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, ["density", "above 0", "0.0"]),
        ({"every": 0}, ["every", "at least 1", "0"]),
        ({"every": 2.5}, ["every", "2.5"]),
        ({"until": 1.5}, ["until", "at most 1", "1.5"]),
        ({"until": 0.0}, ["until", "above 0"]),
        ({"drop_fraction": 1.5}, ["drop_fraction", "0 to 1", "1.5"]),
        ({"anneal": "exponential"}, ["anneal", "'cosine'", "'exponential'"]),
        ({"average": 0}, ["average", "101", "0"]),
    ],
)
def test_bad_settings(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        RigL(**{"density": 0.5, **settings})
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_damaged_memory_is_named_and_changes_nothing() -> None:
    method = SNFS(density=0.5, every=3, move_at_start=False)
    model, optimizer, run = begun(method, [0.4, 0.1, 0.0, 0.0], [1, 1, 0, 0])
    step(model, optimizer, [1.0, 1.0, 1.0, 1.0])
    state = copied(run.state_dict())
    for damage, words in (
        ({"memory": {"other": torch.ones(1)}}, "'memory'.*'fc.weight'"),
        ({"memory": {"fc.weight": torch.ones(2)}}, r"'memory'.*\(2,\)"),
        ({"memory": {"fc.weight": torch.full((1, 4), torch.nan)}}, "'memory'.*NaN"),
        ({"generator": torch.ones(3)}, "generator"),
    ):
        bad = copied(state)
        bad["dynamic"].update(damage)
        with pytest.raises(ValueError, match=words):
            run.load_state_dict(bad)
        assert not differ(run.state_dict(), state)
    bad = copied(state)
    del bad["dynamic"]
    with pytest.raises(ValueError, match="not the state"):
        run.load_state_dict(bad)


def test_a_budget_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    counts = {"0.weight": 7, "1.weight": 3}
    run = tombola.attach(
        model, SGD(model.parameters(), lr=0.1), RigL(density=0.5, budget=lambda shapes, density: counts), steps=3
    )
    assert run.masks.counts() == counts
    counts["1.weight"] = 11
    run.detach()
    with pytest.raises(ValueError, match=r"budget: '1.weight' is to keep 11 of its 10"):
        tombola.attach(
            model, SGD(model.parameters(), lr=0.1), RigL(density=0.5, budget=lambda shapes, density: counts), steps=3
        )


def test_start_is_random_with_the_budgets_counts() -> None:
    shapes = {"a": torch.zeros(30, 40), "b": torch.zeros(10, 30)}
    one, two, other = (
        RigL(density=0.2).start(shapes, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other
    assert one.counts() == tombola.erk({n: p.shape for n, p in shapes.items()}, 0.2)
    even = RigL(density=0.2, budget=uniform).start(shapes, generator=generator())
    assert even.counts() == {"a": 240, "b": 60}
    rows = even["a"].sum(1)
    assert rows.min() < 8 < rows.max()  # not the same number in each row
