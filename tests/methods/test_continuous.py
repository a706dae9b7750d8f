"""Continuous Sparsification against the loss as the paper writes it, L(f(x; σ(βs)⊙w)) + λ‖σ(βs)‖₁, and autograd."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from loop import MakeOptimizer, error, loss_of, train
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR
from zoo import NETS, Net

import tombola
from tombola import ContinuousSparsification, TicketSearch, sigmoid
from tombola.methods.protocol import Moment

STEPS = 8
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

# maker of the weights' optimiser, of the scores' optimiser
PAIRS: dict[str, tuple[MakeOptimizer, MakeOptimizer]] = {
    "sgd": (partial(SGD, lr=0.3), partial(SGD, lr=0.3)),
    "nesterov": (
        partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (partial(Adam, lr=0.03, weight_decay=0.01), partial(Adam, lr=0.03)),
    "adamw": (partial(AdamW, lr=0.03, weight_decay=0.1), partial(AdamW, lr=0.03, weight_decay=0.0)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"initial_score": 0.02, "penalty": 1e-3},
    "sparser": {"initial_score": -0.3, "penalty": 0.0},
    "mean": {"initial_score": 0.1, "penalty": 0.7, "penalty_on": "mean"},
    "scaled": {"initial_score": -0.1, "penalty": 2e-3, "scale": "initial", "final_temperature": 50.0},
    "scaled mean": {"initial_score": 0.1, "penalty": 0.5, "scale": "initial", "penalty_on": "mean"},
    "epochs": {"initial_score": 0.05, "penalty": 1e-3, "anneal": "epoch"},
    "supermask": {"initial_score": 0.05, "penalty": 1e-3, "train_weights": False},
}
EPOCH = 3  # steps in one, so that the last epoch of the run is cut short


def temperature(step: int, steps: int, *, anneal: str = "step", final_temperature: float = 200.0, **_: object) -> float:
    if anneal == "step":
        return final_temperature ** (step / steps)
    return final_temperature ** ((step // EPOCH) / 2)  # epochs 0, 1, 2


def plainly(
    net: Net,
    make: tuple[MakeOptimizer, MakeOptimizer],
    settings: dict[str, Any],
    *,
    schedule: Any = None,
    steps: int = STEPS,
) -> list[tuple[dict[str, Tensor], dict[str, Tensor], float]]:
    """The trajectory of (w, s, penalty) with weights and scores as separate leaves."""
    model = net.model().double()
    s0, scaled = settings["initial_score"], settings.get("scale") == "initial"
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    scores = {n: torch.full_like(weights[n], s0).requires_grad_() for n in net.masked}
    trained = [w for n, w in weights.items() if settings.get("train_weights", True) or n not in scores]
    optimizers = [make[0](trained), make[1](scores.values())]
    schedules = [schedule(optimizer) for optimizer in optimizers] if schedule else []
    total = sum(score.numel() for score in scores.values())
    price = settings["penalty"] / (total if settings.get("penalty_on") == "mean" else 1)
    passed = []
    for step in range(steps):
        masks = {n: torch.sigmoid(temperature(step, steps, **settings) * score) for n, score in scores.items()}
        if scaled:
            masks = {n: mask / torch.sigmoid(torch.tensor(s0, dtype=torch.float64)) for n, mask in masks.items()}
        effective = weights | {n: mask * weights[n] for n, mask in masks.items()}
        x = net.batch(step)
        x = x.double() if x.is_floating_point() else x
        penalty = price * sum(mask.abs().sum() for mask in masks.values())
        passed.append(({n: weights[n].detach().clone() for n in scores}, _copies(scores), penalty.item()))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (error(functional_call(model, effective, (x,)), x) + penalty).backward()
        for each in (*optimizers, *schedules):
            each.step()
    passed.append(({n: weights[n].detach().clone() for n in scores}, _copies(scores), math.nan))
    return passed


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def compare(
    net: Net, make: tuple[MakeOptimizer, MakeOptimizer], settings: dict[str, Any], schedule: Any = None
) -> None:
    model = net.model().double()
    optimizer = make[0](model.parameters())
    scheduler: LRScheduler | None = schedule(optimizer) if schedule else None
    epoch = EPOCH if settings.get("anneal") == "epoch" else None
    run = tombola.attach(model, optimizer, ContinuousSparsification(**settings), steps=STEPS, steps_per_epoch=epoch)
    scale = 1 + math.exp(-settings["initial_score"]) if settings.get("scale") == "initial" else 1.0
    expected = plainly(net, make, settings, schedule=schedule)
    for step, (weights, scores, penalty) in enumerate(expected):
        for found, wanted in ((run.weights, weights), (run.scores, scores)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        beta = temperature(step, STEPS, **settings) if step < STEPS else settings.get("final_temperature", 200.0)
        for name, parameter in run.parameters.items():
            effective = scale * torch.sigmoid(beta * scores[name]) * weights[name]
            torch.testing.assert_close(parameter.detach(), effective, rtol=0, atol=1e-10)
        if step < STEPS:
            assert run.penalty() == pytest.approx(penalty, rel=1e-12)
            train(model, optimizer, net, [step], scheduler=scheduler)
    first, last = expected[0], expected[-1]
    assert all(not torch.equal(first[1][name], last[1][name]) for name in net.masked)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_trajectories_of_weights_and_scores(
    make: tuple[MakeOptimizer, MakeOptimizer], settings: dict[str, Any]
) -> None:
    compare(NETS["mlp"], make, settings)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("settings", ["scaled mean", "supermask"])
def test_trajectories_through_every_kind_of_layer(name: str, settings: str) -> None:
    compare(NETS[name], PAIRS["adam"], SETTINGS[settings])


def test_scores_follow_learning_rate_and_momentum_of_a_schedule() -> None:
    schedule = partial(OneCycleLR, max_lr=0.3, total_steps=STEPS + 1)
    compare(NETS["mlp"], PAIRS["nesterov"], SETTINGS["paper"], schedule)


def test_scores_of_each_group_have_its_learning_rate() -> None:
    def groups(make: type[Optimizer], parameters: Any, **settings: float) -> Optimizer:
        parameters = list(parameters)  # the two last weights, biases among them or not, have an optimiser of their own
        cut = len(parameters) // 3
        return make([{"params": parameters[:cut], "lr": 0.02}, {"params": parameters[cut:]}], lr=0.2, **settings)  # type: ignore[call-arg]

    compare(NETS["mlp"], (partial(groups, SGD, weight_decay=0.01), partial(groups, SGD)), SETTINGS["paper"])


def test_own_score_optimizer_on_its_own_schedule() -> None:
    model = NETS["mlp"].model()
    optimizer = SGD(model.parameters(), lr=0.1)
    method = ContinuousSparsification(score_optimizer=partial(SGD, lr=4.0))
    run = tombola.attach(model, optimizer, method, steps=STEPS)
    assert run.score_optimizer is not None
    schedules = [StepLR(optimizer, 2, gamma=0.5), LambdaLR(run.score_optimizer, lambda step: 0.25 if step < 3 else 0.0)]
    changed = []
    for step in range(STEPS):
        before = run.scores
        train(model, optimizer, NETS["mlp"], [step])
        changed.append(any(not torch.equal(score, before[name]) for name, score in run.scores.items()))
        assert run.score_optimizer.param_groups[0]["lr"] == (1.0 if step < 3 else 0.0)  # and not the user's
        for schedule in schedules:
            schedule.step()
    assert changed == [True] * 3 + [False] * (STEPS - 3)
    run.detach()
    assert run.score_optimizer is None
    hard = tombola.attach(model, optimizer, tombola.Static(density=0.5), steps=1)
    assert hard.score_optimizer is None


def test_own_score_optimizer() -> None:
    make = partial(SGD, lr=2.0, momentum=0.5)
    compare(NETS["mlp"], (PAIRS["adamw"][0], make), SETTINGS["paper"] | {"score_optimizer": make})


@pytest.mark.parametrize("scale", ["none", "initial"])
def test_after_hardening_the_survivors_train_alone(scale: Any) -> None:
    """Up to there against the reference; from there on against w, momentum and gradient masked by hand."""
    net, soft = NETS["mlp"], STEPS // 2
    make = partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01), partial(SGD, lr=0.1, momentum=0.9)
    settings = {"initial_score": 0.0, "penalty": 1e-3, "scale": scale, "final_temperature": 30.0}
    model = net.model().double()
    optimizer = make[0](model.parameters())
    run = tombola.attach(model, optimizer, ContinuousSparsification(**settings, harden_at=0.5), steps=STEPS)
    betas = []
    run.on_step(lambda run: betas.append(run.diagnostics()["temperature"]))
    train(model, optimizer, net, range(soft))
    assert betas[:-1] == pytest.approx([30 ** (step / soft) for step in range(1, soft)])
    assert betas[-1] is None

    weights, scores, _ = plainly(net, make, settings, steps=soft)[-1]
    torch.testing.assert_close(run.scores, scores, rtol=0, atol=1e-10)
    factor = 2.0 if scale == "initial" else 1.0
    masks = {name: (score > 0).double() for name, score in scores.items()}
    survivors = {name: factor * mask * weights[name] for name, mask in masks.items()}
    torch.testing.assert_close({n: p.detach() for n, p in run.parameters.items()}, survivors, rtol=0, atol=1e-10)
    assert 0 < run.density < 1

    twin = copy.deepcopy(model)
    by_hand = make[0](twin.parameters())
    by_hand.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    named = dict(twin.named_parameters())
    for name, mask in masks.items():
        by_hand.state[named[name]]["momentum_buffer"].mul_(mask)
    for step in range(soft, STEPS):
        train(model, optimizer, net, [step])
        by_hand.zero_grad()
        loss_of(twin, net.batch(step)).backward()
        for name, mask in masks.items():
            named[name].grad.mul_(mask)
        by_hand.step()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# ---- by hand


def at(step: int, steps: int, per_epoch: int | None = None) -> Moment:
    return Moment(step=step, steps=steps, steps_per_epoch=per_epoch, weights=1)


def test_temperature_per_step() -> None:
    method = ContinuousSparsification(final_temperature=200.0)
    found = [method.temperature(at(step, 4)) for step in range(6)]
    assert found == pytest.approx([1.0, 3.7606030930863934, 14.142135623730951, 53.18295896944989, 200.0, 200.0])


@pytest.mark.parametrize("steps", [15, 13])
def test_temperature_per_epoch(steps: int) -> None:
    """Five epochs of three steps, or a last one that is cut short: β = 200^(e/4)."""
    method = ContinuousSparsification(anneal="epoch")
    found = [method.temperature(at(step, steps, 3)) for step in range(16)]
    levels = [1.0, 3.7606030930863934, 14.142135623730951, 53.18295896944989, 200.0]
    assert found == pytest.approx([level for level in levels for _ in range(3)] + [200.0])


def test_temperature_of_a_run_that_hardens() -> None:
    method = ContinuousSparsification(final_temperature=16.0, harden_at=0.8)
    assert [method.temperature(at(step, 5)) for step in range(5)] == pytest.approx([1, 2, 4, 8, 16])
    assert [method.harden_step(steps) for steps in (5, 10, 1)] == [4, 8, 1]


SCORES = torch.tensor([0.5, 0.0004, -0.0004, -0.2, 0.0])


@pytest.mark.parametrize(
    ("rule", "first", "expected"),
    [
        ("paper", 0.1, [0.1, 0.08, -0.08, -40.0, 0.0]),
        ("paper", -0.3, [-0.3, -0.3, -0.3, -40.0, -0.3]),
        ("code", 0.1, [0.1, 0.0004, -0.0004, -0.2, 0.0]),
        ("code", -0.3, [-0.3, -0.3, -0.3, -0.3, -0.3]),
    ],
)
def test_round_rules(rule: Any, first: float, expected: list[float]) -> None:
    method = ContinuousSparsification(round_rule=rule, initial_score=first)
    found = method.next_scores(SCORES, torch.full_like(SCORES, first))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.filterwarnings("ignore:.*scores are undecided")  # eight steps are no search
@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("rewind", [False, True])
def test_the_second_round_begins_as_the_rule_says(rule: Any, rewind: bool) -> None:
    net = NETS["conv"]
    model = net.model()
    method = ContinuousSparsification(initial_score=0.01, round_rule=rule, rewind=rewind, final_temperature=40.0)
    search = TicketSearch(model, method, rounds=2, rewind_step=2)
    scores: dict[str, Tensor] = {}
    rewound, trained = scores, scores
    for round_ in search:
        optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
        run = round_.attach(optimizer, steps=STEPS)
        if round_.index == 2:
            beta = 40.0 if rule == "paper" else 1.0
            expected = {n: torch.minimum(beta * s, torch.full_like(s, 0.01)) for n, s in scores.items()}
            torch.testing.assert_close(run.scores, expected, rtol=0, atol=0)
            torch.testing.assert_close(run.weights, rewound if rewind else trained, rtol=0, atol=0)
            assert run.diagnostics()["temperature"] == 1.0
        train(model, optimizer, net, range(2))
        if round_.index == 1:
            rewound = run.weights
        train(model, optimizer, net, range(2, STEPS))
        scores, trained = run.scores, run.weights
        ticket = round_.ticket()
        for name, score in scores.items():
            assert torch.equal(ticket.masks[name], score > 0)
            assert torch.equal(ticket.start[name], rewound[name] * (score > 0))


def test_a_score_of_exactly_zero_is_dropped() -> None:
    masks = ContinuousSparsification().kept({"w": torch.tensor([0.0, -0.0, 1e-30, -1e-30])}, seed=0)
    assert masks["w"].tolist() == [False, False, True, False]


def test_penalty_in_both_units() -> None:
    scores = {"a": torch.zeros(3), "b": torch.full((5,), 100.0)}
    moment = Moment(step=0, steps=1, steps_per_epoch=None, weights=8)
    assert ContinuousSparsification(penalty=0.5).penalty_of(scores, moment) == pytest.approx(0.5 * 6.5)
    mean = ContinuousSparsification(penalty=0.5, penalty_on="mean")
    assert mean.penalty_of(scores, moment) == pytest.approx(0.5 * 6.5 / 8)


def test_density_of_each_round() -> None:
    method = ContinuousSparsification(density=(0.5, 0.2))
    assert [method.in_round(index).density for index in (1, 2, 3)] == [0.5, 0.2, 0.2]
    assert ContinuousSparsification(density=0.3).in_round(4).density == 0.3


@pytest.mark.parametrize(
    "settings", [{}, {"scale": "initial", "initial_score": 0.1}, {"train_weights": False}], ids=str
)
def test_both_ways_to_compute_are_one(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In two sweeps, and operation by operation: the same weights, scores and evaluations, in channels_last too."""
    ends = []
    for swift in (True, False):
        if not swift:
            monkeypatch.setattr(sigmoid, "able", lambda *_: False)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 16, 10))
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        method = ContinuousSparsification(penalty=1e-5, final_temperature=50, **settings)
        run = tombola.attach(model, optimizer, method, steps=20)
        assert all(slot.swift is swift for slot in run._state.slots)
        x, seen = torch.randn(16, 3, 6, 6), []
        for _ in range(20):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            with run.hard():
                seen.append(model(x).detach())
            seen.append(model(x).detach())
        ends.append((seen, list(model.parameters()), list(run._state.scores.values())))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_graph_that_needs_the_weights_of_before_is_told() -> None:
    """What is written past PyTorch counts as a change as well."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tombola.attach(model, optimizer, ContinuousSparsification(train_weights=False), steps=5)
    loss = model(torch.randn(3, 4)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
