"""Training under given masks."""

from __future__ import annotations

import torch
from loop import loss_of, train
from table import half
from torch import nn
from torch.optim import SGD
from zoo import NETS

import tombola
from tombola import Fixed, Masks

NET = NETS["mlp"]


def test_layers_without_a_mask_stay_dense() -> None:
    model = NET.model()
    before = model[0].weight.detach().clone()  # type: ignore[index]
    mask = torch.rand(8, 10) < 0.3
    run = tombola.attach(model, SGD(model.parameters(), lr=0.1), Fixed(Masks({"2.weight": mask})), steps=3)
    assert list(run.parameters) == ["2.weight"]
    assert run.masks == Masks({"2.weight": mask})
    assert torch.equal(model[0].weight.detach(), before)  # type: ignore[index]
    train(model, run.optimizer, NET, range(3))
    assert model[0].weight.all()  # type: ignore[index]
    assert torch.equal(model[2].weight != 0, mask)  # type: ignore[index]


def test_a_plain_mapping_will_do() -> None:
    masks = {"weight": torch.tensor([[True, False]])}
    assert Fixed(masks).masks == Masks(masks)  # type: ignore[arg-type]


def test_training_is_that_of_masked_gradients() -> None:
    """Against SGD by hand on the product of weight and mask."""
    model, twin = NET.model().double(), NET.model().double()
    masks = half(model)
    run = tombola.attach(model, SGD(model.parameters(), lr=0.2), Fixed(masks), steps=5)
    named = dict(twin.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            named[name].mul_(mask)
    for step in range(5):
        train(model, run.optimizer, NET, [step])
        gradients = torch.autograd.grad(loss_of(twin, NET.batch(step)), list(named.values()))
        with torch.no_grad():
            for (name, parameter), grad in zip(named.items(), gradients, strict=True):
                parameter.sub_(0.2 * grad * (masks.get(name, 1)))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_what_the_optimizer_remembers_of_dropped_weights_is_cleared() -> None:
    model = NET.model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, NET, range(2))
    masks = half(model)
    run = tombola.attach(model, optimizer, Fixed(masks), steps=1)
    for name, mask in masks.items():
        for tensor in (run.parameters[name].grad, optimizer.state[run.parameters[name]]["momentum_buffer"]):
            assert not tensor[~mask].any()
            assert tensor[mask].any()


def test_overflow_at_a_dropped_weight_reaches_nothing() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask = torch.tensor([[True, False, False]])
    tombola.attach(model, optimizer, Fixed(Masks({"weight": mask})), steps=2)
    for bad in (torch.inf, torch.nan):
        (model(torch.ones(1, 3)) + (model.weight * torch.tensor([0.0, bad, -bad])).sum()).sum().backward()
        assert torch.equal(model.weight.grad != 0, mask)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        optimizer.step()
        assert model.weight.isfinite().all()
        optimizer.zero_grad()


def test_a_mask_of_ones_costs_no_hook() -> None:
    model = NET.model()
    masks = Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in tombola.maskable(model).items()})
    twin = NET.model()
    runs = [tombola.attach(model, SGD(model.parameters(), lr=0.1), Fixed(masks), steps=3)]
    optimizers = [runs[0].optimizer, SGD(twin.parameters(), lr=0.1)]
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        train(each, optimizer, NET, range(3))
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
