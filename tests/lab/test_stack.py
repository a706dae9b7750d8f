"""Models computed as one: losses, gradients and buffers as of each alone, in memory that they share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tombola.lab.models import resnet20
from tombola.lab.runs.mode import Mode
from tombola.lab.runs.stack import Stack, layout
from tombola.lab.runs.train import ModelObjective, objective_of
from tombola.lab.runs.weighing import Different, Weighed, alternatives, weigh

MEMBERS = 3
PLAIN = Mode()


def conv_net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 4)
    )
    net[0].bias.requires_grad_(False)
    return net


class Tied(nn.Module):
    """One matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(192, 192, bias=False), nn.Linear(192, 192, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x.flatten(1)).relu())[:, :4]


def members(make: Any, mode: Mode = PLAIN, count: int = MEMBERS) -> list[ModelObjective]:
    return [objective_of(make().train(), mode=mode) for _ in range(count)]


def copies(objectives: Sequence[ModelObjective]) -> list[ModelObjective]:
    return [replace(objective, model=copy.deepcopy(objective.model)) for objective in objectives]


def batches(count: int = MEMBERS, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 3, 8, 8), torch.arange(size).roll(place) % 4) for place in range(count)]


@pytest.mark.parametrize("make", [conv_net, Tied, resnet20], ids=["norm", "tied", "resnet20"])
@pytest.mark.parametrize("mode", [PLAIN, Mode(precision="bf16", channels_last=True)], ids=["fp32", "bf16"])
def test_what_each_model_alone_gives(make: Any, mode: Mode) -> None:
    objectives, given = members(make, mode), batches()
    alone = copies(objectives)
    stack = Stack(objectives)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if mode.precision == "fp32" else {"rtol": 0.1, "atol": 0.1}
    for _ in range(2):  # the second adds to the gradients of the first
        losses = stack.step(given)
        for objective, other, loss, batch in zip(objectives, alone, losses, given, strict=True):
            expected = other(*batch)
            expected.backward()
            torch.testing.assert_close(loss, expected.detach(), **tolerance)
            for (name, mine), theirs in zip(objective.model.named_parameters(), other.model.parameters(), strict=True):
                assert (mine.grad is None) is (theirs.grad is None) is (not mine.requires_grad), name
                if mine.grad is not None and theirs.grad is not None and mode.precision == "fp32":
                    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
            for mine, theirs in zip(objective.model.buffers(), other.model.buffers(), strict=True):
                torch.testing.assert_close(mine, theirs, **tolerance)
    assert not losses[0].requires_grad


def test_nothing_but_batches_is_copied() -> None:
    objectives, given = members(conv_net), batches()
    models = [objective.model for objective in objectives]
    parameters = [dict(model.named_parameters()) for model in models]
    stack = Stack(objectives)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True) for model in models]
    places = {name: [p[name].data_ptr() for p in parameters] for name in parameters[0]}
    for name, found in places.items():
        weight = parameters[0][name]
        assert [place - found[0] for place in found] == [weight.nbytes * member for member in range(MEMBERS)]
    for _ in range(3):
        stack.step(given)
        for name in ("0.weight", "1.weight", "1.bias", "5.bias"):  # handed over as they are; 5.weight comes transposed
            gradients = [gradient for p in parameters if (gradient := p[name].grad) is not None]
            assert len(gradients) == len({g.data_ptr() for g in gradients}) == MEMBERS
            assert len({g.untyped_storage().data_ptr() for g in gradients}) == 1, name
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert places == {name: [p[name].data_ptr() for p in parameters] for name in parameters[0]}
    assert stack.holds(models)
    assert not stack.holds(models[:2])
    assert not stack.holds([models[1], models[0], models[2]])
    parameters[1]["5.weight"].data = parameters[1]["5.weight"].data.clone()
    assert not stack.holds(models)


def test_what_is_written_into_a_model_is_seen_for_it_alone() -> None:
    objectives, given = members(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), batches()
    stack = Stack(objectives)
    before = stack.step(given)
    with torch.no_grad():
        objectives[1].model.get_parameter("1.weight").mul_(3)
    after = stack.step(given)
    assert [bool(a == b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def cleared(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.zero_()


def test_hooks_of_parameters_run_as_ever() -> None:
    objectives, seen = members(conv_net), list[tuple[int, bool]]()
    for place, objective in enumerate(objectives):
        weight = objective.model.get_parameter("5.weight")
        weight.register_post_accumulate_grad_hook(lambda p, place=place: seen.append((place, p.grad is not None)))
        weight.register_post_accumulate_grad_hook(cleared)
    Stack(objectives).step(batches())
    assert sorted(seen) == [(place, True) for place in range(MEMBERS)]
    assert not any(objective.model.get_parameter("5.weight").grad.any() for objective in objectives)  # type: ignore[union-attr]


def test_one_that_overflows_leaves_the_others_finite() -> None:
    objectives, given = members(conv_net), batches()
    with torch.no_grad():
        objectives[1].model.get_parameter("5.weight").fill_(torch.inf)
    losses = Stack(objectives).step(given)
    assert [bool(loss.isfinite()) for loss in losses] == [True, False, True]
    finite = [all(p.grad.isfinite().all() for p in o.model.parameters() if p.grad is not None) for o in objectives]
    assert finite == [True, False, True]


def test_layouts() -> None:
    one, other = conv_net(), conv_net()
    assert layout(one) == layout(other)
    assert layout(one) != layout(other.eval())
    assert layout(one) != layout(Tied())
    frozen = conv_net()
    frozen[5].weight.requires_grad_(False)
    assert layout(one) != layout(frozen)
    strange = members(conv_net)
    strange[2].model[0].weight.data = strange[2].model[0].weight.data.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"^0\.weight does not lie in memory in the usual order$"):
        Stack(strange)


# ---- tried and weighed


class Odd(nn.Module):
    """A net with something about it, by name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.linear, self.dropout = what, nn.Linear(192, 4), nn.Dropout(0.5)
        self.constant = torch.randn(4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        if self.what == "decides" and x.sum() > 0:
            x = -x
        if self.what == "counts":
            self.seen = self.seen + 1  # another tensor than that which is stacked
        return self.dropout(x) if self.what == "dropout" else x + self.constant if self.what == "constant" else x


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("dropout", "random"),
        ("decides", "RuntimeError: "),
        ("counts", "its buffer seen would not be what a model alone gives"),
        ("constant", "would not be what a model alone gives"),
    ],
)
def test_what_cannot_be_stacked(what: str, says: str) -> None:
    objectives, given = members(lambda: Odd(what)), batches()
    before = [copy.deepcopy(objective.model.state_dict()) for objective in objectives]
    drawn = torch.get_rng_state()
    found = weigh(objectives, given)
    assert says in found.problem
    assert not found.pays
    assert str(found).startswith("3 runs are trained one after the other: ")
    assert torch.equal(torch.get_rng_state(), drawn)
    for objective, state in zip(objectives, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in objective.model.state_dict().items())
        assert all(p.grad is None for p in objective.model.parameters())


def test_models_that_differ_in_what_is_no_parameter_are_found_out() -> None:
    with pytest.raises(Different, match="its gradients"):
        alternatives(members(lambda: Odd("constant")), batches())
    assert set(alternatives(members(lambda: Odd("")), batches())) == {"stacked", "one by one"}


def test_weighing_leaves_models_alone_and_times_both_ways() -> None:
    objectives, given = members(conv_net), batches()
    places = [p.data_ptr() for objective in objectives for p in objective.model.parameters()]
    found = weigh(objectives, given, turns=2)
    assert (found.members, found.problem) == (3, "")
    assert min(found.alone, found.together) > 0
    assert found.pays is (found.gain > 1.05)
    assert places == [p.data_ptr() for objective in objectives for p in objective.model.parameters()]


def test_what_is_said() -> None:
    gain = Weighed(members=4, alone=20.0, together=10.0, gain=2.0)
    assert (
        str(gain) == "4 runs at once take 0.50 of the time of one after the other (10.00 ms a step of all, not 20.00)"
    )
    loss = replace(gain, together=25.0, gain=0.8)
    assert str(loss).startswith("no gain, 4 runs at once take 1.25 of the time of one after the other (25.00 ms")
    assert str(loss).endswith("): trained one after the other")
    assert (gain.pays, loss.pays, replace(gain, gain=1.01).pays) == (True, False, False)
