"""Patterns: how layers are divided, what is chosen in them, and that moves keep to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

import tombola
from tombola import SET, SNFS, SNIP, GradualMagnitude, GraNet, RigL, Static, uniform
from tombola.methods.moves import drop_and_grow
from tombola.patterns import NM, Block, ConstantFanIn, Pattern, choose

PATTERNS: list[Pattern] = [NM(2, 4), NM(1, 2), ConstantFanIn(), Block(2, 4), Block(4, 1)]
SHAPES = [(4, 8), (8, 4, 3), (4, 8, 3, 2)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_join_undoes_split(pattern: Pattern, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    split = pattern.split(tensor)
    assert tuple(split.shape) == pattern.units(shape)
    assert torch.equal(pattern.join(split, shape), tensor)


def test_what_is_a_group() -> None:
    weight = torch.arange(16.0).view(2, 8)
    assert NM(2, 4).split(weight)[1].flatten().tolist() == [4, 5, 6, 7]
    kernel = torch.arange(2 * 4 * 3.0).view(2, 4, 3)  # four inputs at the first place of the kernel
    assert NM(2, 4).split(kernel)[0].flatten().tolist() == [0, 3, 6, 9]
    assert ConstantFanIn().split(kernel)[1].flatten().tolist() == list(range(12, 24))
    assert Block(2, 2).split(weight)[0, 1].tolist() == [2, 3, 10, 11]
    assert Block(1, 2).split(kernel)[0, 0].tolist() == list(range(6))


def test_choices_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0], [9.0, 8.0, 0.0, 1.0]])
    assert choose(scores, 4, NM(2, 4), generator()).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert choose(scores, 4, NM(1, 2), generator()).tolist() == [[False, True, True, False], [True, False, False, True]]
    assert choose(scores, 2, ConstantFanIn(), generator()).int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert choose(scores, 4, Block(2, 2), generator()).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert choose(scores, 4, None, generator()).int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]


@given(st.integers(0, 2**20), st.sampled_from(PATTERNS), st.sampled_from(SHAPES), st.integers(1, 4))
def test_choices_against_a_slow_reference(seed: int, pattern: Pattern, shape: tuple[int, ...], each: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=draw)
    groups, units, weights = pattern.units(shape)
    each = min(each, units)
    chosen = pattern.split(choose(scores, groups * each * weights, pattern, draw))
    for group, values in zip(chosen, pattern.split(scores), strict=True):
        best = sorted(range(units), key=lambda unit: -float(values[unit].sum()))[:each]
        assert [unit for unit in range(units) if group[unit].any()] == sorted(best)
        assert int(group.sum()) == each * weights


def test_ties_are_drawn() -> None:
    rows = choose(torch.ones(50, 40), 50 * 10, ConstantFanIn(), generator())
    assert set(rows.sum(1).tolist()) == {10}
    assert 0 < int(rows[:, :20].sum()) < 500


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8))


METHODS: list[Any] = [
    lambda p: Static(density=0.5, budget=uniform, pattern=p),
    lambda p: SNIP(density=0.5, budget=uniform, pattern=p),
    lambda p: RigL(density=0.5, budget=uniform, every=1, drop_fraction=0.5, pattern=p),
    lambda p: SET(density=0.5, budget=uniform, every=1, drop_fraction=0.5, pattern=p),
    lambda p: SNFS(density=0.5, budget=uniform, every=1, drop_fraction=0.5, pattern=p),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("make", METHODS)
def test_masks_fit_at_every_step(make: Any, pattern: Pattern) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = make(pattern)
    run = tombola.attach(model, optimizer, method, steps=8)
    digests = []
    for step in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        assert run.density == 0.5
        digests.append(run.masks.digest())
        for mask in run.masks.values():
            units = pattern.split(mask)
            assert torch.equal(units.all(2), units.any(2))
            assert len(set(units.all(2).sum(1).tolist())) == 1
    assert (len(set(digests)) > 1) == isinstance(method, RigL | SET | SNFS)


def test_gradual_pruning_in_blocks() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    method = GradualMagnitude(density=0.25, budget=uniform, every=1, pattern=Block(2, 4))
    run = tombola.attach(model, optimizer, method, steps=8)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.ones(1, 4, 4, 4)).square().mean().backward()
        optimizer.step()
    assert run.masks.counts() == {"0.weight": 72, "3.weight": 64}
    assert all(torch.equal(Block(2, 4).split(m).all(2), Block(2, 4).split(m).any(2)) for m in run.masks.values())


def test_counts_are_the_nearest_that_fit() -> None:
    model = net()
    run = tombola.attach(
        model, SGD(model.parameters(), lr=0.1), Static(density=0.2, budget=uniform, pattern=ConstantFanIn()), steps=1
    )
    assert run.masks.counts() == {"0.weight": 8 * 7, "3.weight": 8 * 6}  # 7.2 of 36 and 6.4 of 32 inputs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NM(4, 4), ["N < M", "4:4"]),
        (lambda: NM(0, 4), ["1 ≤ N"]),
        (lambda: Block(0, 2), ["block", "0"]),
        (lambda: begin(NM(2, 3)), ["'0.weight'", "4 inputs", "groups of 3", "select="]),
        (lambda: begin(Block(3, 1)), ["'0.weight'", "8 outputs", "3×1"]),
        (lambda: begin(NM(1, 4)), ["1:4 keeps 0.25", "'0.weight' 144 of 288", "density=0.25"]),
        (lambda: GradualMagnitude(density=0.5, pattern=ConstantFanIn()), ["single layers"]),
        (lambda: GradualMagnitude(density=0.5, budget=uniform, pattern=NM(2, 4)), ["N:M"]),
        (lambda: GraNet(density=0.5, pattern=ConstantFanIn()), ["all layers together"]),
    ],
)
def test_mistakes(make: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"pattern|block|single|layers") as caught:
        make()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def begin(pattern: Pattern) -> None:
    model = net()
    tombola.attach(
        model, SGD(model.parameters(), lr=0.1), Static(density=0.5, budget=uniform, pattern=pattern), steps=1
    )


# ---- SRigL's ablation of outputs


def test_ablation_by_hand() -> None:
    weight = torch.tensor([[9.0, 8, 0, 0, 0, 0], [7.0, 6, 0, 0, 0, 0], [1.0, 2, 0, 0, 0, 0]])
    growth = torch.tensor([[0.0, 0, 5, 1, 0, 0], [0.0, 0, 4, 3, 0, 0], [0.0, 0, 1, 1, 0, 0]])
    mask = weight > 0
    # the two smallest weights go, and the two best missing ones lie in the first two rows: nothing in the third counts
    moved = drop_and_grow(weight, mask, growth, n=2, generator=generator(), pattern=ConstantFanIn(ablate=0.5))
    assert moved.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    kept = drop_and_grow(weight, mask, growth, n=2, generator=generator(), pattern=ConstantFanIn())
    assert kept.sum(1).tolist() == [2, 2, 2]
    # six weights do not divide among four outputs, so that one is left over; what is given up does not come back
    total = torch.tensor([[2, 2, 0], [2, 2, 0], [2, 2, 0], [1, 1, 0], [0, 0, 0]]).bool()
    salient = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    assert ConstantFanIn(ablate=0.5).fan_ins(total, salient, 8).tolist() == [2, 2, 2, 0, 0]
    # it takes three outputs of three inputs to hold eight weights: the most salient stay, whatever the share
    assert ConstantFanIn(ablate=0.9).fan_ins(total, salient, 8).tolist() == [2, 2, 2, 0, 0]
    assert ConstantFanIn(ablate=0.5).fan_ins(total, torch.zeros_like(total), 8).tolist() == [2, 2, 2, 0, 0]


def test_ablation_in_training() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    pattern = ConstantFanIn(ablate=0.7)
    method = RigL(density=0.2, budget=uniform, every=1, drop_fraction=0.5, anneal="constant", pattern=pattern)
    run = tombola.attach(model, optimizer, method, steps=40)
    budget = run.masks.counts()
    gone = {name: torch.zeros(8, dtype=torch.bool) for name in budget}
    for step in range(40):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        for name, mask in run.masks.items():
            fan_in = mask.flatten(1).sum(1)
            alive = fan_in > 0
            assert len(set(fan_in[alive].tolist())) == 1
            assert not alive[gone[name]].any()  # for good
            gone[name] = ~alive
            assert int(mask.sum()) == budget[name] // int(alive.sum()) * int(alive.sum())
            assert alive.all() or name != "3.weight"  # the outputs of the network
            assert not model.get_parameter(name)[~mask].any()
    assert any(rows.any() for rows in gone.values())


def test_what_was_given_up_takes_no_part() -> None:
    """Its gradient is often the largest of all, after a batch norm say, and would keep the others from growing."""
    weight = torch.tensor([[9.0, 8, 0, 0], [7.0, 6, 0, 0], [0.0, 0, 0, 0]])
    growth = torch.tensor([[0.0, 0, 5, 1], [0.0, 0, 4, 3], [99.0, 99, 99, 99]])
    moved = drop_and_grow(weight, weight > 0, growth, n=2, generator=generator(), pattern=ConstantFanIn(ablate=0.5))
    assert moved.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_how_much_may_be_ablated() -> None:
    for wrong in (-0.1, 1.1, "0.3"):
        with pytest.raises(ValueError, match="ablate is a share of the fan-in, from 0 to 1"):
            ConstantFanIn(ablate=wrong)  # type: ignore[arg-type]
