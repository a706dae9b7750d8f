"""Gradients that are not finite: on the CPU each step says so at once (test_errors.py), on an accelerator they are read
now and then and before masks move. That is tried here on the CPU, whose values then count as far away."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from loop import OPTIMIZERS, copied, differ, loss_of, train
from table import half
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import NETS

import tombola
from tombola import SET, SNFS, Attachment, ContinuousSparsification, Fixed, GradualMagnitude, GraNet, RigL
from tombola import gradients as watching
from tombola.gradients import Gradients
from tombola.hard import HardState
from tombola.masks import largest
from tombola.ranks import Ranks
from tombola.soft import SoftState

NET = NETS["mlp"]
STEPS = 12


@pytest.fixture(autouse=True)
def _far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "is_near", lambda tensor: False)
    for state in (HardState, SoftState):  # which look at what is near themselves
        monkeypatch.setattr(state, "vouched_for", lambda self, moment: set[str]())


class Loop:
    """A method in training, whose gradient is broken in the steps ``bad``."""

    def __init__(self, method: Any, *, steps: int = STEPS) -> None:
        self.model = NET.model()
        self.optimizer = OPTIMIZERS["momentum"](self.model.parameters())
        self.run: Attachment = tombola.attach(
            self.model, self.optimizer, method or Fixed(half(self.model)), steps=steps
        )

    def train(self, steps: range, *, bad: tuple[int, ...] = (), value: float = torch.nan) -> None:
        for step in steps:
            self.optimizer.zero_grad()
            loss_of(self.model, NET.batch(step)).backward()
            if step in bad:
                self.model[2].weight.grad.view(-1)[torch.arange(80) % 7 == 3] = value  # type: ignore[index, union-attr]
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {n: copied(o.state_dict()) for n, o in vars(self).items()}


CS = ContinuousSparsification
METHODS: dict[str, Any] = {"cs": CS(), "fixed": None}
ATTACH = sys.modules["tombola.attach"]  # tombola.attach is the function


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_look_in_so_many_steps_says_since_when(method: Any, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACH, "LOOK", 5)
    loop = Loop(method)
    loop.train(range(5), bad=(2,), value=value)  # without a word
    with pytest.raises(FloatingPointError) as caught:
        loop.train(range(5, 6))
    said = str(caught.value)
    assert "a gradient was not finite in one of the steps 1 to 4, so the loss went to NaN or infinity" in said
    assert "weights have taken it in: go on from a checkpoint of before. Lower the learning rate" in said
    assert "no weight has changed" not in said


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_seen_in_time_has_changed_nothing(method: Any, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACH, "LOOK", 5)
    loop, twin = Loop(method), Loop(method)
    for each in (loop, twin):
        each.train(range(5))
    before = loop.state()
    with pytest.raises(FloatingPointError, match=r"'2\.weight' is not finite at step 5,.* no weight has changed"):
        loop.train(range(5, 6), bad=(5,), value=value)
    assert not differ(loop.state(), before)
    for each in (loop, twin):
        each.train(range(5, STEPS))
    assert not differ(loop.state(), twin.state())


TURNS: dict[str, tuple[Any, int]] = {  # in which step masks move or harden, the second time they do
    "rigl": (RigL(density=0.5, every=3, until=1.0), 4),
    "rigl of several": (RigL(density=0.5, every=3, until=1.0, average=3), 4),
    "set": (SET(density=0.5, every=4), 4),
    "snfs": (SNFS(density=0.5, every=4), 4),
    "granet": (GraNet(density=0.3, every=4, prune_until=0.7), 4),
    "gmp": (GradualMagnitude(density=0.3, every=3, begin=0.1, until=0.6), 3),
    "hardened": (CS(harden_at=0.5), 5),
    "asked-for density": (CS(harden_at=0.5, density=0.3), 5),
}


@pytest.mark.parametrize(("method", "step"), TURNS.values(), ids=TURNS)
def test_masks_never_move_by_what_is_not_finite(method: Any, step: int) -> None:
    loop = Loop(method)
    loop.train(range(2), bad=())
    masks = loop.run.masks
    loop.train(range(2, step), bad=(2,))
    with pytest.raises(FloatingPointError, match="not finite in one of the steps 1 to"):
        loop.train(range(step, step + 1))
    assert loop.run.step == step
    if not loop.run.scores:
        assert loop.run.masks == masks


def test_the_last_step_looks() -> None:
    loop = Loop(None)
    loop.train(range(STEPS - 1), bad=(STEPS - 2,))
    with pytest.raises(FloatingPointError, match=f"not finite in one of the steps 1 to {STEPS - 2}"):
        loop.train(range(STEPS - 1, STEPS))


def test_who_leaves_before_is_warned() -> None:
    loop = Loop(CS())
    loop.train(range(4), bad=(3,))
    with pytest.warns(UserWarning, match=r"detach: a gradient was not finite in one of the steps 1 to 3") as caught:
        loop.run.detach()
    assert len([warning for warning in caught if "finite" in str(warning.message)]) == 1


def test_going_on_from_a_checkpoint_begins_anew() -> None:
    loop, twin = Loop(CS()), Loop(CS())
    for each in (loop, twin):
        each.train(range(3))
    saved = loop.state()
    loop.train(range(3, 6), bad=(4,))
    loop.model.load_state_dict(saved["model"])
    loop.optimizer.load_state_dict(saved["optimizer"])
    loop.run.load_state_dict(saved["run"])
    for each in (loop, twin):
        each.train(range(3, STEPS))
    assert not differ(loop.state(), twin.state())


class Reads(TorchDispatchMode):
    """Counts what waits for a device: reading a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero"):
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WITHOUT_WAITING: dict[str, Any] = METHODS | {
    "cs density": CS(density=0.3),
    "supermask": CS(train_weights=False),
    "ss": tombola.StochasticSparsification(initial_score=0.0),
    "rigl": RigL(density=0.5, every=50, move_at_start=False),
    "snfs": SNFS(density=0.5, every=50, move_at_start=False),
    "gmp": GradualMagnitude(density=0.5, begin=0.5),
}


@pytest.mark.parametrize("method", WITHOUT_WAITING.values(), ids=WITHOUT_WAITING)
def test_no_step_waits_for_the_device_but_those_that_look(method: Any) -> None:
    loop = Loop(method, steps=400)
    loop.train(range(1))
    for step in range(1, 6):
        loop.optimizer.zero_grad()
        loss_of(loop.model, NET.batch(step)).backward()
        with Reads() as reads:
            loop.optimizer.step()
        assert reads.found == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_parameters_of_several_types(bad: float, layer: int) -> None:
    kinds = [torch.float32, torch.float64, torch.bfloat16]
    parameters = {str(kind): Parameter(torch.ones(3, dtype=kind)) for kind in kinds}
    watched = Gradients(parameters | {"empty": Parameter(torch.ones(0, 2))}, Ranks(nn.Linear(1, 1)))
    large = [3e38, 1e300, 3e38]  # finite, although their squares and sums are not
    for parameter, value in zip(parameters.values(), large, strict=True):
        parameter.grad = torch.full_like(parameter, value)
    watched.check(3, look=False)
    watched.check(4, look=True)
    list(parameters.values())[layer].grad[1] = bad  # type: ignore[index]
    watched.check(5, look=False)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    watched.check(6, look=False)
    with pytest.raises(FloatingPointError, match="one of the steps 5 to 6"):
        watched.check(7, look=True)
    watched.check(7, look=True)  # it is said once


@pytest.mark.parametrize("keep", [3, 6])
def test_nan_is_never_ranked(keep: int) -> None:
    values = torch.tensor([3.0, torch.nan, 1.0, torch.nan, 2.0, 5.0, torch.nan, torch.nan])
    with pytest.raises(FloatingPointError, match="NaN among them"):
        largest(values, keep)
    assert _positions(largest(values.nan_to_num(0), 3)) == [0, 4, 5]


def _positions(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_gradients_of_the_cpu_are_looked_at_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "is_near", lambda tensor: tensor.is_cpu)
    loop = Loop(CS())
    with pytest.raises(FloatingPointError, match=r"'2\.weight' is not finite at step 3,.* no weight has changed"):
        loop.train(range(STEPS), bad=(3,))
    train(loop.model, loop.optimizer, NET, range(3, STEPS))
