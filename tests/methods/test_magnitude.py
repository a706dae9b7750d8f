"""Iterative Magnitude Pruning on weights small enough to prune by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import train
from torch import Tensor, nn
from torch.optim import SGD
from zoo import NETS

from tombola import IMP, Masks, TicketSearch


def full(weights: dict[str, Tensor]) -> Masks:
    return Masks({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})


def bits(masks: Masks) -> dict[str, list[int]]:
    return {name: mask.int().tolist() for name, mask in masks.items()}


WEIGHTS = {"a": torch.tensor([0.9, -0.1, 0.5, -0.4]), "b": torch.tensor([-0.2, 0.3, 0.05, 0.6, -0.7, 0.25])}


def test_global_ranking() -> None:
    """Half of ten: 0.9, 0.7, 0.6, 0.5 and 0.4 stay."""
    found = IMP(keep=0.5).prune(WEIGHTS, full(WEIGHTS))
    assert bits(found) == {"a": [1, 0, 1, 1], "b": [0, 0, 0, 1, 1, 0]}


def test_ranking_in_each_layer() -> None:
    found = IMP(keep=0.5, scope="layer").prune(WEIGHTS, full(WEIGHTS))
    assert bits(found) == {"a": [1, 0, 1, 0], "b": [0, 1, 0, 1, 1, 0]}


def test_a_share_for_each_layer() -> None:
    found = IMP(keep={"b": 1 / 3}).prune(WEIGHTS, full(WEIGHTS))
    assert bits(found) == {"a": [1, 1, 1, 1], "b": [0, 0, 0, 1, 1, 0]}


def test_second_round_counts_from_the_survivors() -> None:
    """Of five survivors round(0.5·5) = 2 stay (Python rounds halves to even)."""
    once = IMP(keep=0.5).prune(WEIGHTS, full(WEIGHTS))
    assert bits(IMP(keep=0.5).prune(WEIGHTS, once)) == {"a": [1, 0, 0, 0], "b": [0, 0, 0, 0, 1, 0]}


def test_of_equal_weights_the_first_stay() -> None:
    weights = {"a": torch.tensor([1.0, -1.0, 1.0]), "b": torch.tensor([-1.0, 2.0])}
    assert bits(IMP(keep=0.6).prune(weights, full(weights))) == {"a": [1, 1, 0], "b": [0, 1]}


def test_a_pruned_weight_never_returns() -> None:
    """Also when every survivor has become exactly 0 and the pruned one has not."""
    masks = Masks({"a": torch.tensor([True, False, True, True])})
    found = IMP(keep=0.67).prune({"a": torch.tensor([0.0, 9.0, 0.0, 0.0])}, masks)
    assert bits(found) == {"a": [1, 0, 1, 0]}


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    keep=st.floats(0.05, 1.0),
    scope=st.sampled_from(["global", "layer"]),
    seed=st.integers(0, 1000),
    levels=st.integers(1, 6),
)
def test_rounds_are_exact_nested_and_keep_the_largest(
    sizes: list[int], keep: float, scope: str, seed: int, levels: int
) -> None:
    """On weights with many ties, among them zeros."""
    generator = torch.Generator().manual_seed(seed)
    weights = {str(i): torch.randint(-levels, levels + 1, (n,), generator=generator) / 2.0 for i, n in enumerate(sizes)}
    masks = full(weights)
    method = IMP(keep=keep, scope=scope)  # type: ignore[arg-type]
    for _ in range(4):
        pruned = method.prune(weights, masks)
        groups = [list(masks)] if scope == "global" else [[name] for name in masks]
        for group in groups:
            before, after = (torch.cat([m[name] for name in group]) for m in (masks, pruned))
            magnitude = torch.cat([weights[name] for name in group]).abs()
            assert int(after.sum()) == round(keep * int(before.sum()))
            assert not (after & ~before).any()
            dropped = before & ~after
            if dropped.any() and after.any():
                assert magnitude[after].min() >= magnitude[dropped].max()
        masks = pruned


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_precision(dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in WEIGHTS.items()}
    assert bits(IMP(keep=0.5).prune(weights, full(weights))) == {"a": [1, 0, 1, 1], "b": [0, 0, 0, 1, 1, 0]}


@pytest.mark.filterwarnings("ignore:.*no weight is left")
def test_counts_over_thirty_rounds() -> None:
    """keep·n rounded anew in each round, whatever training does in between."""
    net = NETS["mlp"]
    model = net.model()
    search = TicketSearch(model, IMP(keep=0.8), rounds=30)
    expected = 164
    before: Masks | None = None
    for round_ in search:
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        run = round_.attach(optimizer, steps=2)
        assert run.masks.kept == expected
        train(model, optimizer, net, range(2))
        masks = round_.ticket().masks
        expected = round(0.8 * expected)
        assert masks.kept == expected
        assert before is None or all(not (masks[name] & ~before[name]).any() for name in masks)
        before = masks
    assert expected == 2


@pytest.mark.parametrize("rewind", [True, False])
def test_rewinding(rewind: bool) -> None:
    """Weights, biases, batch norm and its statistics go back to step k, or all go on from where they are (IMP-C)."""
    net = NETS["conv"]
    model = net.model()
    search = TicketSearch(model, IMP(keep=0.7, rewind=rewind), rounds=3, rewind_step=3)
    k: dict[str, Tensor] = {}
    end: dict[str, Tensor] = {}
    for round_ in search:
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = round_.attach(optimizer, steps=5)
        if round_.index > 1:
            expected = k if rewind else end
            for name, tensor in model.state_dict().items():
                mask = run.masks.get(name, True)
                assert torch.equal(tensor, expected[name] * mask)
        train(model, optimizer, net, range(3))
        k = k or {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model, optimizer, net, range(3, 5))
        end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ticket = round_.ticket()
        assert ticket.start.keys() == k.keys()
        for name, tensor in ticket.start.items():
            mask = ticket.masks.get(name, True)
            assert torch.equal(tensor, k[name] * mask)


def test_dropped_weights_of_a_dense_first_round_are_ranked_by_what_they_were_trained_to() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    search = TicketSearch(model, IMP(keep=0.5), rounds=1)
    for round_ in search:
        optimizer = SGD(model.parameters(), lr=1.0)
        round_.attach(optimizer, steps=1)
        model.weight.grad = torch.tensor([[-9.0, 0.0, 0.0, 3.5]])
        optimizer.step()  # now 10, 2, 3, 0.5
        ticket = round_.ticket()
    assert ticket.masks["weight"].tolist() == [[True, False, True, False]]
    assert ticket.start["weight"].tolist() == [[1.0, 0.0, 3.0, 0.0]]
