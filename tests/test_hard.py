"""Gradients under hard masks: masked when a backward pass is over, whatever kind of pass it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop import copied, differ
from table import half
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import tombola
from tombola import Attachment, ContinuousSparsification, Fixed


class Net(nn.Module):
    """Two layers, computed by one way or another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 40), nn.Linear(40, 3)
        self.through: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.through(self.first, x).relu())

    def loss(self) -> Tensor:
        return self(torch.linspace(-1, 1, 30).view(5, 6)).square().mean()


def fixed() -> tuple[Net, SGD, Attachment]:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    return model, optimizer, tombola.attach(model, optimizer, Fixed(half(model)), steps=9)


def assert_masked(model: Net, run: Attachment, *, times: float = 1) -> None:
    """Gradients are those of a plain model with these weights, times so many, where there are weights; else 0."""
    plain = Net()
    plain.load_state_dict(model.state_dict())
    plain.loss().backward()
    for name, parameter in model.named_parameters():
        expected = times * plain.get_parameter(name).grad  # type: ignore[operator]
        if name in run.masks:
            expected = torch.where(run.masks[name], expected, 0)
        torch.testing.assert_close(parameter.grad, expected)


def within(layer: nn.Module, x: Tensor) -> Tensor:
    """A pass inside the pass."""
    x = x.detach().requires_grad_()
    return checkpoint(layer, x, use_reentrant=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("through", [lambda layer, x: layer(x), within], ids=["plain", "within"])
def test_once_and_again(through: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model, _, run = fixed()
    model.through = through
    for times in (1, 2, 3):
        model.loss().backward()
        assert_masked(model, run, times=times)


def fail_in(model: Net) -> None:
    """Begin a backward pass; when it fails the second layer has its gradient."""

    def fail(gradient: Tensor) -> None:
        raise ArithmeticError

    failing = model.first.weight.register_hook(fail)
    with pytest.raises(ArithmeticError):
        model.loss().backward()
    failing.remove()


def test_after_a_pass_that_failed() -> None:
    model, optimizer, run = fixed()
    fail_in(model)
    optimizer.zero_grad()
    model.loss().backward()
    assert_masked(model, run)


def test_what_a_failed_pass_left_is_not_masked_by_masks_of_before() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, tombola.RigL(density=0.5, every=2, until=1.0, anneal="constant"), steps=20)
    for step in range(6):
        model.loss().backward()
        if step % 3:
            assert_masked(model, run)
        else:
            fail_in(model)
        before = run.masks
        optimizer.step()
        optimizer.zero_grad()
        assert (run.masks != before) == (step % 3 == 0)


def broken_by_another(model: Net) -> None:
    model.second.weight.grad = model.second.weight.grad * torch.nan  # type: ignore[operator]


def broken_by_clipping(model: Net) -> None:
    model.second.bias.grad.fill_(torch.nan)  # type: ignore[union-attr]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize(
    "breaks",
    [lambda model: model.second.weight.grad.mul_(torch.inf), broken_by_another, broken_by_clipping],
    ids=["in place", "another", "clipping"],
)
@pytest.mark.parametrize("method", ["fixed", "cs"])
def test_a_gradient_broken_after_the_pass_is_found_in_the_step(breaks: Callable[[Net], object], method: str) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    how: Any = Fixed(half(model)) if method == "fixed" else ContinuousSparsification()
    run = tombola.attach(model, optimizer, how, steps=9)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    before = copied((model.state_dict(), optimizer.state_dict(), run.state_dict()))
    optimizer.zero_grad()
    model.loss().backward()
    breaks(model)
    with pytest.raises(FloatingPointError, match=r"\.weight' is not finite at step 2, .* no weight has changed"):
        optimizer.step()
    assert not differ(before, (model.state_dict(), optimizer.state_dict(), run.state_dict()))
