"""Stochastic Sparsification against the straight-through estimator written with autograd, given the drawn masks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from loop import MakeOptimizer, error, train
from torch import Tensor
from torch.func import functional_call
from torch.optim import SGD, Adam
from zoo import NETS, Net

import tombola
from tombola import StochasticSparsification, TicketSearch

STEPS = 8
PAIRS: dict[str, tuple[MakeOptimizer, MakeOptimizer]] = {
    "sgd": (
        partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        partial(SGD, lr=0.1, momentum=0.9),
    ),
    "adam": (partial(Adam, lr=0.03, weight_decay=0.01), partial(Adam, lr=0.03)),
}


@pytest.mark.parametrize("train_weights", [True, False])
@pytest.mark.parametrize("name", ["mlp", "conv", "gru", "attention", "tied"])
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_trajectories(name: str, make: tuple[MakeOptimizer, MakeOptimizer], train_weights: bool) -> None:
    """L(f(x; m⊙w)) + λ‖σ(s)‖₁ with m = sample + σ(s) − stopgrad(σ(s)): its value is the sample, its slope σ's."""
    net = NETS[name]
    method = StochasticSparsification(initial_score=0.3, penalty=2e-3, train_weights=train_weights)
    model = net.model().double()
    optimizer = make[0](model.parameters())
    run = tombola.attach(model, optimizer, method, steps=STEPS, seed=3)

    plain = net.model().double()
    weights = {n: p.detach().clone().requires_grad_() for n, p in plain.named_parameters()}
    scores = {n: torch.full_like(weights[n], 0.3).requires_grad_() for n in net.masked}
    trained = [w for n, w in weights.items() if train_weights or n not in scores]
    optimizers = [make[0](trained), make[1](scores.values())]
    drawn: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        samples = {n: (p.detach() != 0).double() for n, p in run.parameters.items()}
        drawn.append(samples)
        for n, parameter in run.parameters.items():
            torch.testing.assert_close(parameter.detach(), samples[n] * weights[n].detach(), rtol=0, atol=1e-10)
        masks = {n: samples[n] + torch.sigmoid(s) - torch.sigmoid(s).detach() for n, s in scores.items()}
        penalty = 2e-3 * sum(torch.sigmoid(s).sum() for s in scores.values())
        assert run.penalty() == pytest.approx(penalty.item(), rel=1e-12)
        for each in optimizers:
            each.zero_grad()
        x = net.batch(step).double()
        effective = weights | {n: mask * weights[n] for n, mask in masks.items()}
        (error(functional_call(plain, effective, (x,)), x) + penalty).backward()
        for each in optimizers:
            each.step()
        train(model, optimizer, net, [step])
        for found, wanted in ((run.weights, weights), (run.scores, scores)):
            expected = {n: wanted[n].detach() for n in net.masked}
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert any(not torch.equal(drawn[0][n], drawn[1][n]) for n in net.masked)


def wide(score: float, seed: int = 0) -> tuple[tombola.Attachment, torch.nn.Linear]:
    model = torch.nn.Linear(200, 500, bias=False)
    optimizer = SGD(model.parameters(), lr=0.0)
    return tombola.attach(model, optimizer, StochasticSparsification(initial_score=score), steps=9, seed=seed), model


@pytest.mark.parametrize("score", [-3.0, 0.0, 1.0, 4.0])
def test_masks_are_bernoulli(score: float) -> None:
    """Both the masks of training and the outcome: shares within 5 standard deviations of σ(s), positions unrelated."""
    run, model = wide(score)
    chance = 1 / (1 + math.exp(-score))
    spread = 5 * math.sqrt(chance * (1 - chance) / 100_000)
    training = model.weight.detach() != 0
    assert abs(training.float().mean() - chance) < spread
    assert abs(run.density - chance) < spread
    both = (training & run.masks["weight"]).float().mean()
    assert abs(both - chance**2) < 2 * spread


def test_the_outcome_is_one_sample_and_depends_on_the_seed() -> None:
    run, model = wide(0.0)
    before = model.weight.detach().clone()
    assert run.masks == run.masks
    with run.hard():
        assert torch.equal(model.weight.detach() != 0, run.masks["weight"])
    assert torch.equal(model.weight.detach(), before)
    assert wide(0.0)[0].masks == run.masks
    assert wide(0.0, seed=1)[0].masks != run.masks


def test_what_fell_is_gone_for_good() -> None:
    method = StochasticSparsification(initial_score=0.5)
    first = torch.full((4,), 0.5)
    found = method.next_scores(torch.tensor([0.5, 0.6, 0.4999, -torch.inf]), first)
    assert found.tolist() == pytest.approx([0.5, 0.6, -math.inf, -math.inf])


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_rounds(make: tuple[MakeOptimizer, MakeOptimizer]) -> None:
    """Algorithm 2: scores that fell go to −∞ and stay there, weights go back to the rewind point, each round."""
    net: Net = NETS["conv"]
    model = net.model()
    search = TicketSearch(model, StochasticSparsification(initial_score=1.0), rounds=3, rewind_step=1, seed=4)
    gone: dict[str, Tensor] = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in tombola.maskable(model).items()}
    rewound: dict[str, Tensor] = {}
    ends: list[dict[str, Tensor]] = []
    for round_ in search:
        optimizer = make[0](model.parameters())
        run = round_.attach(optimizer, steps=STEPS)
        for name, score in run.scores.items():
            assert torch.equal(score == -torch.inf, gone[name])
            assert not run.parameters[name].detach()[gone[name]].any()
            if ends:
                assert torch.equal(run.weights[name], rewound[name])
                kept = ~gone[name]
                assert torch.equal(score[kept], ends[-1][name][kept])
        train(model, optimizer, net, [0])
        rewound = rewound or run.weights
        train(model, optimizer, net, range(1, STEPS))
        ends.append(run.scores)
        masks = round_.ticket().masks
        for name in masks:
            assert not masks[name][gone[name]].any()
            gone[name] |= ends[-1][name] < 1.0
            assert 0 < gone[name].float().mean() < 1
