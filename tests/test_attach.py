"""What an attachment shows and does beside the table of promises: looking, logging, detaching, attaching again."""

from __future__ import annotations

import gc
import math
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from loop import copied, differ, hooks_of, train
from table import METHODS, Entry, World, half, hard_now, world
from torch import Tensor, nn
from torch.optim import SGD, Adam
from zoo import NETS

import tombola
from tombola import Attachment, ContinuousSparsification, Fixed, Masks, StochasticSparsification

STEPS = 6
NET = NETS["mlp"]
CS = ContinuousSparsification
every_method = pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
soft_methods = pytest.mark.parametrize(
    "entry",
    [entry for entry in METHODS.values() if not entry.hard],
    ids=[name for name, entry in METHODS.items() if not entry.hard],
)


def one_layer(method: Any, weight: list[float], *, steps: int = 2, lr: float = 0.1) -> tuple[nn.Linear, Attachment]:
    """An attachment to a single row of weights."""
    model = nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))
    return model, tombola.attach(model, SGD(model.parameters(), lr=lr), method, steps=steps)


def scored(scores: list[float], **settings: Any) -> tuple[nn.Linear, Attachment]:
    """Weights 1, 2, … with these scores."""
    model, run = one_layer(CS(**settings), [float(index + 1) for index in range(len(scores))])
    run.set_scores({"weight": torch.tensor([scores])})
    return model, run


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- hard()


@every_method
def test_after_hard_everything_is_as_before(entry: Entry) -> None:
    it = world(entry, "momentum", NET, STEPS)
    train(it.model, it.optimizer, NET, range(2))
    before = it.snapshot()
    with it.run.hard():
        inside = copied(it.model.state_dict())
        with it.run.hard():  # again, by a function that is called inside
            assert not differ(it.model.state_dict(), inside)
        assert not differ(it.model.state_dict(), inside)
    assert not differ(it.snapshot(), before)
    assert hard_now(entry, it.run) != bool(differ(inside, before["model"]))
    with pytest.raises(KeyError, match="mine"), it.run.hard():
        raise KeyError("mine")
    assert not differ(it.snapshot(), before)


def test_hard_is_the_ticket_by_hand() -> None:
    model, run = scored([0.5, -0.5, 0.0, 3.0])
    assert torch.allclose(model.weight, torch.tensor([[sigmoid(0.5), 2 * sigmoid(-0.5), 1.5, 4 * sigmoid(3.0)]]))
    with run.hard():
        assert model.weight.tolist() == [[1.0, 0.0, 0.0, 4.0]]
    assert model.weight[0, 2] == 1.5


def test_hard_at_the_scale_of_the_scaled_mask() -> None:
    model, run = scored([0.5, -0.5], scale="initial", initial_score=0.3)
    with run.hard():
        assert torch.allclose(model.weight, torch.tensor([[1 / sigmoid(0.3), 0.0]]))


@soft_methods
def test_detaching_inside_hard_leaves_the_ticket(entry: Entry) -> None:
    it = world(entry, "momentum", NET, STEPS)
    train(it.model, it.optimizer, NET, range(2))
    with it.run.hard():
        inside = copied(it.model.state_dict())
        it.run.detach()
    assert not differ(it.model.state_dict(), inside)


def test_hard_takes_no_part_in_the_graph() -> None:
    model, run = scored([0.5, -0.5])
    with run.hard():
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[1.0, 1.0]]
    assert model.weight.requires_grad
    assert model.weight.is_leaf


# ---- looking


def test_penalty_by_hand() -> None:
    expected = sigmoid(0.5) + sigmoid(-0.5) + sigmoid(2.0)
    assert scored([0.5, -0.5, 2.0], penalty=0.01)[1].penalty() == pytest.approx(0.01 * expected)
    assert scored([0.5, -0.5, 2.0], penalty=0.6, penalty_on="mean")[1].penalty() == pytest.approx(0.2 * expected)
    scaled = scored([0.5, -0.5, 2.0], penalty=0.01, scale="initial", initial_score=1.0)[1].penalty()
    assert scaled == pytest.approx(0.01 * expected / sigmoid(1.0))
    _, run = one_layer(StochasticSparsification(initial_score=1.0, penalty=0.5), [1.0, 2.0])
    assert run.penalty() == pytest.approx(sigmoid(1.0))
    _, run = one_layer(Fixed(Masks({"weight": torch.tensor([[True, False]])})), [1.0, 2.0])
    assert run.penalty() == 0.0


def test_penalty_follows_the_temperature_and_ends_with_the_soft_part() -> None:
    method = CS(penalty=1.0, initial_score=0.1, final_temperature=16.0, harden_at=0.5)
    _, run = one_layer(method, [1.0], steps=4, lr=0.0)
    seen = [run.penalty()]
    for _ in range(3):
        run.optimizer.step()
        seen.append(run.penalty())
    assert seen == pytest.approx([sigmoid(0.1), sigmoid(0.4), 0.0, 0.0])


def test_diagnostics_by_hand() -> None:
    _, run = scored([3.9, -3.9, 4.1, -0.1, -9.0])
    assert run.diagnostics() == {"density": 0.4, "undecided": 0.6, "temperature": 1.0, "dead_layers": []}
    run.set_scores({"weight": torch.full((1, 5), -5.0)})
    assert run.diagnostics() == {"density": 0.0, "undecided": 0.0, "temperature": 1.0, "dead_layers": ["weight"]}
    _, run = one_layer(Fixed(Masks({"weight": torch.tensor([[True, False]])})), [1.0, 2.0])
    assert run.diagnostics() == {"density": 0.5, "undecided": 0.0, "temperature": None, "dead_layers": []}


def test_diagnostics_follow_the_temperature() -> None:
    _, run = one_layer(CS(initial_score=0.1, final_temperature=100.0), [1.0, 2.0])
    found = []
    for _ in range(2):
        found.append((run.diagnostics()["temperature"], run.diagnostics()["undecided"]))
        run.optimizer.step()
    found.append((run.diagnostics()["temperature"], run.diagnostics()["undecided"]))
    assert found == [(1.0, 1.0), (pytest.approx(10.0), 1.0), (pytest.approx(100.0), 0.0)]


def test_density_counts_all_masked_weights() -> None:
    it = world(METHODS["fixed"], "adam", NET, STEPS)
    assert it.run.density == (30 + 40 + 12) / (60 + 80 + 24)
    assert it.run.masks == half(it.model)


def test_repr() -> None:
    _, run = scored([1.0, -1.0])
    assert repr(run) == "Attachment(ContinuousSparsification, step 0 of 2, density 0.5)"
    run.optimizer.step()
    assert repr(run) == "Attachment(ContinuousSparsification, step 1 of 2, density 0.5)"


@every_method
def test_what_it_shows_are_copies(entry: Entry) -> None:
    it = world(entry, "momentum", NET, STEPS)
    train(it.model, it.optimizer, NET, range(2))
    before = it.snapshot()
    for shown in (it.run.weights, it.run.scores, it.run.masks):
        for tensor in shown.values():
            tensor.zero_()
    assert not differ(it.snapshot(), before)


# ---- scores from outside


def test_set_scores_takes_effect_at_once_and_copies() -> None:
    model, run = scored([0.0, 0.0])
    mine = {"weight": torch.tensor([[2.0, -2.0]])}
    run.set_scores(mine)
    assert torch.allclose(model.weight, torch.tensor([[sigmoid(2.0), 2 * sigmoid(-2.0)]]))
    mine["weight"].fill_(7.0)
    assert run.scores["weight"].tolist() == [[2.0, -2.0]]
    assert run.density == 0.5


def test_a_score_of_minus_infinity_stays_there() -> None:
    model, run = one_layer(StochasticSparsification(initial_score=5.0), [1.0, 1.0], steps=9, lr=100.0)
    run.set_scores({"weight": torch.tensor([[5.0, -torch.inf]])})
    for _ in range(9):
        run.optimizer.zero_grad()
        model(torch.ones(1, 2)).square().sum().backward()
        run.optimizer.step()
        assert model.weight[0, 1] == 0
        assert run.scores["weight"][0, 1] == -torch.inf
        assert run.scores["weight"][0, 0].isfinite()
    assert run.diagnostics()["undecided"] in (0.0, 0.5)


@pytest.mark.parametrize("wrong", [{}, {"weight": torch.ones(2)}, {"weight": torch.ones(1, 2), "more": torch.ones(1)}])
def test_wrong_scores_change_nothing(wrong: dict[str, Tensor]) -> None:
    _, run = scored([1.0, -1.0])
    before = copied(run.state_dict())
    with pytest.raises(ValueError, match=r"weight|more"):
        run.set_scores(wrong)
    assert not differ(run.state_dict(), before)


def test_scores_that_are_not_numbers_change_nothing() -> None:
    _, run = scored([1.0, -1.0])
    before = copied(run.state_dict())
    with pytest.raises(ValueError, match=r"'weight'.*NaN"):
        run.set_scores({"weight": torch.tensor([[1.0, torch.nan]])})
    assert not differ(run.state_dict(), before)


# ---- on_step


def test_callbacks_come_in_order_after_the_step() -> None:
    _, run = scored([1.0, -1.0])
    seen: list[tuple[str, int]] = []
    run.on_step(lambda attachment: seen.append(("one", attachment.step)))
    run.on_step(lambda attachment: seen.append(("two", attachment.step)))
    for _ in range(2):
        run.optimizer.step()
    assert seen == [("one", 1), ("two", 1), ("one", 2), ("two", 2)]


def test_a_callback_sees_the_weights_of_after_the_step() -> None:
    it = world(METHODS["cs"], "momentum", NET, STEPS)
    seen: list[dict[str, Tensor]] = []
    it.run.on_step(lambda run: seen.append(copied(it.model.state_dict())))
    for step in range(3):
        train(it.model, it.optimizer, NET, [step])
        assert not differ(seen[step], it.model.state_dict())


def test_a_callback_may_detach() -> None:
    it = world(METHODS["cs"], "momentum", NET, STEPS)
    it.run.on_step(lambda run: run.detach() if run.step == 2 else None)
    train(it.model, it.optimizer, NET, range(5))
    assert it.run.step == 2
    assert not hooks_of(it.model, it.optimizer)


# ---- leaving and coming back


@every_method
def test_detaching_again_changes_nothing(entry: Entry) -> None:
    it = world(entry, "momentum", NET, STEPS)
    train(it.model, it.optimizer, NET, range(3))
    it.run.detach()
    before, masks = it.snapshot(), it.run.masks
    train(it.model, it.optimizer, NET, [3])
    after = copied(it.model.state_dict())
    it.run.detach()
    assert not differ(it.model.state_dict(), after)
    assert it.run.masks == masks
    assert differ(after, before["model"])
    with it.run.hard():
        assert not differ(it.model.state_dict(), after)
    assert it.run.penalty() == 0.0
    assert it.run.diagnostics()["temperature"] is None


@every_method
def test_a_second_attachment_after_the_first(entry: Entry) -> None:
    it = world(entry, "adamw", NET, STEPS)
    train(it.model, it.optimizer, NET, range(3))
    it.run.detach()
    masks = it.run.masks
    ticket = copied(it.model.state_dict())
    second = tombola.attach(it.model, it.optimizer, Fixed(masks), steps=3)
    assert not differ(it.model.state_dict(), ticket)
    train(it.model, it.optimizer, NET, range(3))
    assert second.masks == masks
    assert all(not second.parameters[name].detach()[~mask].any() for name, mask in masks.items())
    second.detach()
    third = entry.attach(it.model, it.optimizer, NET, 2)
    train(it.model, it.optimizer, NET, range(2))
    assert third.step == 2


def test_an_optimiser_that_is_gone_frees_its_model() -> None:
    model = NET.model()
    run = tombola.attach(model, SGD(model.parameters(), lr=0.1), CS(), steps=3)
    gone = weakref.ref(run)
    del run
    again = tombola.attach(model, SGD(model.parameters(), lr=0.1), Fixed(half(model)), steps=3)
    gc.collect()
    assert gone() is None
    train(model, again.optimizer, NET, range(3))


def test_masks_that_are_gone_leave_no_hook() -> None:
    model = NET.model()
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, Fixed(half(model)), steps=3)
    assert len(hooks_of(model, optimizer)) == 5
    del run, optimizer
    gc.collect()
    assert not hooks_of(model, SGD(model.parameters(), lr=0.1))


def test_the_user_needs_not_keep_the_attachment() -> None:
    model = NET.model()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = half(model)
    tombola.attach(model, optimizer, Fixed(masks), steps=3)
    gc.collect()
    train(model, optimizer, NET, range(3))
    assert not model[0].weight[~masks["0.weight"]].any()  # type: ignore[index]


# ---- the seed


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    ends: list[World] = []
    for seed in (1, 1, 2):
        model = NET.model()
        optimizer = Adam(model.parameters(), lr=0.01)
        before = torch.get_rng_state()
        run = tombola.attach(model, optimizer, StochasticSparsification(initial_score=0.0), steps=STEPS, seed=seed)
        train(model, optimizer, NET, range(STEPS))
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(World(NET, model, optimizer, run))
    assert not differ(ends[0].snapshot(), ends[1].snapshot())
    assert differ(ends[0].model.state_dict(), ends[2].model.state_dict())


# ---- precision, and the scores' optimiser


@every_method
def test_a_model_of_low_precision(entry: Entry) -> None:
    it = world(entry, "adamw", NET, STEPS, model=NET.model().to(torch.bfloat16))
    train(it.model, it.optimizer, NET, range(3))
    again = world(entry, "adamw", NET, STEPS, model=NET.model().to(torch.bfloat16))
    for part in ("run", "model", "optimizer"):
        getattr(again, part).load_state_dict(copied(getattr(it, part).state_dict()))
    for each in (it, again):
        train(each.model, each.optimizer, NET, range(3, STEPS))
    assert not differ(it.snapshot(), again.snapshot())
    assert {parameter.dtype for parameter in it.model.parameters()} == {torch.bfloat16}
    assert {score.dtype for score in it.run.scores.values()} <= {torch.float32}
    with it.run.hard():
        assert all(not it.run.parameters[name].detach()[~mask].any() for name, mask in it.run.masks.items())


@pytest.mark.parametrize(("make", "fused"), [(Adam, True), (SGD, True), (torch.optim.Adagrad, False)])
def test_scores_take_the_fused_form_only_where_every_device_has_it(make: Any, fused: bool) -> None:
    model = NET.model()
    run = tombola.attach(model, make(model.parameters(), lr=0.1), CS(), steps=1)
    group = run.state_dict()["soft"]["score_optimizer"]["param_groups"][0]
    assert bool(group["fused"]) == fused


# ---- where the optimiser's step finds the weights


class Flat(SGD):
    """An optimiser that keeps its own view of all parameters in one vector, as some of several processes do."""

    def __init__(self, parameters: Any, lr: float) -> None:
        parameters = list(parameters)
        super().__init__(parameters, lr=lr)
        self.flat = torch.cat([p.detach().flatten() for p in parameters])
        begin = 0
        for p in parameters:
            p.data = self.flat[begin : begin + p.numel()].view(p.shape)
            begin += p.numel()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            self.flat -= self.param_groups[0]["lr"] * torch.cat(gradients)


def test_an_optimiser_with_views_of_the_parameters_steps_like_one_without() -> None:
    ends = []
    for make in (SGD, Flat):
        model = NET.model()
        optimizer = make(model.parameters(), lr=0.1)
        run = tombola.attach(model, optimizer, CS(score_optimizer=partial(SGD, lr=0.1)), steps=STEPS)
        train(model, optimizer, NET, range(STEPS))
        ends.append(model.state_dict() | {f"w {name}": weight for name, weight in run.weights.items()})
    torch.testing.assert_close(ends[1], ends[0])


@soft_methods
def test_parameters_keep_their_memory(entry: Entry) -> None:
    it = world(entry, "adam", NET, STEPS)
    places = [parameter.data_ptr() for parameter in it.model.parameters()]
    view = next(iter(it.run.parameters.values())).detach().view(-1)
    train(it.model, it.optimizer, NET, range(2))
    assert [parameter.data_ptr() for parameter in it.model.parameters()] == places
    assert torch.equal(view, next(iter(it.run.parameters.values())).detach().view(-1))


@soft_methods
def test_a_step_that_fails_half_way_loses_nothing(entry: Entry) -> None:
    it = world(entry, "momentum", NET, STEPS)
    train(it.model, it.optimizer, NET, range(2))
    before = it.snapshot()

    def fail(*ignored: object) -> None:
        raise KeyError("mine")

    hook = it.optimizer.register_step_pre_hook(fail)  # runs after that of the attachment
    with pytest.raises(KeyError, match="mine"):
        train(it.model, it.optimizer, NET, range(2, 3))
    hook.remove()
    for part in ("run", "model", "optimizer"):
        getattr(it, part).load_state_dict(before[part])
    assert not differ(it.snapshot(), before)
    train(it.model, it.optimizer, NET, range(2, STEPS))
    again = world(entry, "momentum", NET, STEPS)
    train(again.model, again.optimizer, NET, range(STEPS))
    assert not differ(it.snapshot(), again.snapshot())
