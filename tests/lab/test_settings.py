"""Optimisers and schedules as data are PyTorch's own, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from loop import differ
from torch import nn

from tombola.lab.runs.train import Epoch, cross_entropy, fit
from tombola.lab.seeds import derive
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Cosine, Drops, Optimizer, Schedule, WarmUp

BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(n)), torch.arange(8) % 3) for n in range(3)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


OPTIMIZERS: dict[str, tuple[Optimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD(lr=0.2, momentum=0.0), lambda p: torch.optim.SGD(p, lr=0.2, fused=True)),
    "momentum": (
        SGD(lr=0.05, momentum=0.8, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.01, fused=True),
    ),
    "nesterov": (
        SGD(lr=0.05, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, fused=True),
    ),
    "adam": (
        Adam(lr=0.02, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, fused=True),
    ),
    "adamw": (
        AdamW(lr=0.02, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, fused=True),
    ),
    "adam, defaults": (Adam(), lambda p: torch.optim.Adam(p, lr=3e-4, fused=True)),
    "adamw, defaults": (AdamW(), lambda p: torch.optim.AdamW(p, fused=True)),
}
SCHEDULES: dict[str, tuple[Schedule, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]]] = {
    "constant": (Constant(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    "drops": (Drops(epochs=(2, 3), by=0.3), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3], gamma=0.3)),
    "cosine": (Cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5)),
    "cosine to a floor": (
        Cosine(floor=0.25),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5, eta_min=0.25 * o.param_groups[0]["lr"]),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_steps_like_pytorchs(name: str) -> None:
    settings, plain = OPTIMIZERS[name]
    mine, theirs = net().eval(), net().eval()
    one, other = settings.make(mine.parameters()), plain(theirs.parameters())
    assert type(one) is type(other)
    for _ in range(4):
        for x, y in BATCHES:
            for model, optimizer in ((mine, one), (theirs, other)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            assert not differ(mine.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_pytorchs(name: str) -> None:
    settings, plain = SCHEDULES[name]
    optimizer = torch.optim.SGD(net().parameters(), lr=0.5)
    scheduler = plain(optimizer)
    for epoch in range(5):
        expected = optimizer.param_groups[0]["lr"]
        assert 0.5 * settings.factor(epoch, 5) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_schedule_stretched_twofold() -> None:
    # training for twice as many epochs asks for the factor at half epochs
    assert [Drops(epochs=(1, 2)).factor(epoch / 2, 3) for epoch in range(6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert Cosine().factor(0.5, 2) == pytest.approx((1 + 2**-0.5) / 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_fit_is_the_plain_loop(optimizer: str, schedule: str) -> None:
    settings, make = OPTIMIZERS[optimizer]
    mine, theirs = net(), net()
    epochs: list[Epoch] = []
    rates = SCHEDULES[schedule][0]
    fit(
        mine,
        settings.make(mine.parameters()),
        lambda epoch: BATCHES[: epoch + 1],
        epochs=3,
        factor=lambda epoch: rates.factor(epoch, 5),
        after_epoch=epochs.append,
    )
    plain = make(theirs.parameters())
    scheduler = SCHEDULES[schedule][1](plain)
    theirs.train()
    for epoch in range(3):
        losses = []
        torch.manual_seed(derive(0, "epoch", epoch))  # of dropout
        for x, y in BATCHES[: epoch + 1]:
            plain.zero_grad()
            loss = nn.functional.cross_entropy(theirs(x), y)
            loss.backward()
            plain.step()
            losses.append(float(loss.detach()))
        assert (epochs[epoch].number, epochs[epoch].steps) == (epoch + 1, epoch + 1)
        assert epochs[epoch].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert epochs[epoch].lr == pytest.approx(plain.param_groups[0]["lr"])
        scheduler.step()
    for (name, one), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7), name


def test_warming_up() -> None:
    schedule = WarmUp(epochs=4, then=Drops(epochs=(5,), by=0.1))
    # the line from 0 to 1 over four epochs, at the middle of each
    assert [schedule.factor(epoch, 8) for epoch in range(6)] == pytest.approx([0.125, 0.375, 0.625, 0.875, 1, 0.1])
    assert WarmUp(epochs=2, then=Cosine()).factor(4, 8) == pytest.approx(0.5)


def test_smoothed_labels_and_clipped_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    output, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 2, 1, 0])
    wanted = nn.functional.cross_entropy(output, 0.7 * nn.functional.one_hot(labels, 3) + 0.3 / 3)
    assert cross_entropy(output, labels, smoothing=0.3) == pytest.approx(float(wanted))
    texts = cross_entropy(output.view(1, 5, 3), labels.view(1, 5), smoothing=0.3)
    assert texts == pytest.approx(float(wanted))
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, torch.optim.SGD(model.parameters(), lr=1.0), lambda epoch: BATCHES[:1], epochs=1, clip=0.01)
    moved = torch.cat([(p.detach() - was).flatten() for p, was in zip(model.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
