"""One table of bad arguments and moments: the error's type, the words that name what and how to mend it, and that the
model, the optimiser and the attachment are as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import copied, differ, hooks_of, train
from table import half
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer
from zoo import NETS

import tombola
from tombola import (
    IMP,
    SNIP,
    Attachment,
    Fixed,
    GradualMagnitude,
    GraNet,
    Masks,
    RigL,
    StochasticSparsification,
    Ticket,
    TicketSearch,
    global_,
)
from tombola import ContinuousSparsification as CS

NET = NETS["mlp"]
Act = Callable[[], object]


@dataclass
class Bench:
    """A model and an optimiser that have trained a little. ``run`` is what a case attached before going wrong."""

    model: nn.Sequential = field(default_factory=lambda: NET.model())  # type: ignore[arg-type, return-value]
    run: Attachment | None = None

    def __post_init__(self) -> None:
        self.optimizer: Optimizer = Adam(self.model.parameters(), lr=0.01)
        train(self.model, self.optimizer, NET, range(2))

    def attach(self, method: Any = None, *, steps: int = 3, done: int = 1, **settings: Any) -> Attachment:
        """An attachment that has made ``done`` steps."""
        self.run = tombola.attach(self.model, self.optimizer, method or CS(), steps=steps, **settings)
        train(self.model, self.optimizer, NET, range(done))
        return self.run

    def fixed(self, **settings: Any) -> Attachment:
        return self.attach(Fixed(half(self.model)), **settings)

    def fixed_by(self, masks: Masks, **settings: Any) -> Attachment:
        return self.attach(Fixed(masks), **settings)

    def backward(self, scale: float = 1.0) -> None:
        self.optimizer.zero_grad()
        (self.model(NET.batch(0)).square().mean() * scale).backward()

    def state(self) -> dict[str, Any]:
        owners = {"model": self.model, "optimizer": self.optimizer, "run": self.run}
        return {name: copied(owner.state_dict()) for name, owner in owners.items() if owner is not None}


# ---- arguments: the case is one call


def attach(bench: Bench, method: Any = None, *, steps: Any = 3, **settings: Any) -> Attachment:
    return tombola.attach(bench.model, bench.optimizer, method or CS(), steps=steps, **settings)


class Peculiar(SGD):
    """An optimiser that is made from a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)


def another(bench: Bench, optimizer: Optimizer) -> Act:
    bench.optimizer = optimizer
    return lambda: attach(bench)


def nan_weight(bench: Bench) -> Act:
    with torch.no_grad():
        bench.model[2].weight[0, 0] = torch.nan  # type: ignore[index, operator]
    return lambda: attach(bench)


def with_parameter(bench: Bench, parameter: nn.Parameter, optimizer: Optimizer | None = None) -> Act:
    bench.model.register_parameter("extra", parameter)
    return lambda: attach(bench, select=["extra"])


def masks_of(**shapes: tuple[int, ...]) -> Fixed:
    return Fixed(Masks({name.replace("_", "."): torch.ones(shape).bool() for name, shape in shapes.items()}))


def taken(bench: Bench, *, other: bool) -> Act:
    bench.fixed()
    optimizer = SGD(bench.model.parameters(), lr=0.1) if other else bench.optimizer
    return lambda: tombola.attach(bench.model, optimizer, CS(), steps=3)


def nothing_to_mask(bench: Bench) -> Act:
    plain = nn.Sequential(nn.BatchNorm1d(3))
    return lambda: tombola.attach(plain, bench.optimizer, CS(), steps=3)


def lazy(bench: Bench) -> Act:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are under development, say some versions of torch
        model = nn.LazyLinear(3)
    return lambda: tombola.maskable(model)


Arrange = Callable[[Bench], Act]
ARGUMENTS: dict[str, tuple[Arrange, type[Exception], list[str]]] = {
    "density 0": (lambda b: lambda: attach(b, CS(density=0.0)), ValueError, ["density", "above 0", "at most 1", "0.0"]),
    "density 1.5": (lambda b: lambda: attach(b, CS(density=1.5)), ValueError, ["density", "at most 1", "1.5"]),
    "density of a round": (lambda b: lambda: CS(density=(0.5, 0.0)), ValueError, ["density", "above 0", "0.0"]),
    "no density at all": (lambda b: lambda: CS(density=()), ValueError, ["density", "each round"]),
    "density of text": (
        lambda b: lambda: CS(density="0.1"),  # type: ignore[arg-type]
        ValueError,
        ["density", "number", "'0.1'"],
    ),
    "initial_score": (lambda b: lambda: CS(initial_score=float("inf")), ValueError, ["initial_score", "finite", "inf"]),
    "penalty": (lambda b: lambda: CS(penalty=-1.0), ValueError, ["penalty", "0 or more", "-1.0"]),
    "penalty nan": (lambda b: lambda: CS(penalty=float("nan")), ValueError, ["penalty", "0 or more", "nan"]),
    "final_temperature": (lambda b: lambda: CS(final_temperature=0.5), ValueError, ["final_temperature", "1 or more"]),
    "harden_at": (lambda b: lambda: CS(harden_at=0.0), ValueError, ["harden_at", "above 0", "at most 1"]),
    "anneal": (
        lambda b: lambda: CS(anneal="batch"),  # type: ignore[arg-type]
        ValueError,
        ["anneal", "'step' or 'epoch'", "'batch'"],
    ),
    "scale": (lambda b: lambda: CS(scale=2), ValueError, ["scale", "'none' or 'initial'"]),  # type: ignore[arg-type]
    "round_rule": (
        lambda b: lambda: CS(round_rule="mine"),  # type: ignore[arg-type]
        ValueError,
        ["round_rule", "'paper' or 'code'"],
    ),
    "penalty_on": (
        lambda b: lambda: CS(penalty_on="max"),  # type: ignore[arg-type]
        ValueError,
        ["penalty_on", "'sum' or 'mean'"],
    ),
    "ss score": (lambda b: lambda: StochasticSparsification(initial_score=float("nan")), ValueError, ["initial_score"]),
    "ss penalty": (lambda b: lambda: StochasticSparsification(penalty=-1.0), ValueError, ["penalty", "0 or more"]),
    "keep": (lambda b: lambda: IMP(keep=0.0), ValueError, ["keep", "above 0", "at most 1"]),
    "keep of a layer": (lambda b: lambda: IMP(keep={"0.weight": 1.2}), ValueError, ["keep", "'0.weight'", "1.2"]),
    "scope": (
        lambda b: lambda: IMP(scope="block"),  # type: ignore[arg-type]
        ValueError,
        ["scope", "'global' or 'layer'", "'block'"],
    ),
    "no masks": (lambda b: lambda: Masks({}), ValueError, ["masks", "at least one"]),
    "masks of floats": (lambda b: lambda: Masks({"w": torch.ones(2)}), TypeError, ["'w'", "torch.float32", "!= 0"]),
    "steps 0": (lambda b: lambda: attach(b, steps=0), ValueError, ["steps", "at least 1", "0"]),
    "steps 2.5": (lambda b: lambda: attach(b, steps=2.5), ValueError, ["steps", "whole number", "2.5"]),
    "epochs": (lambda b: lambda: attach(b, steps_per_epoch=0), ValueError, ["steps_per_epoch", "at least 1"]),
    "by epochs of no length": (
        lambda b: lambda: attach(b, CS(anneal="epoch")),
        ValueError,
        ["epoch", "steps_per_epoch="],
    ),
    "no model": (
        lambda b: lambda: tombola.attach(b.optimizer, b.optimizer, CS(), steps=1),  # type: ignore[arg-type]
        TypeError,
        ["model", "Adam"],
    ),
    "no optimiser": (
        lambda b: lambda: tombola.attach(b.model, CS(), b.optimizer, steps=1),  # type: ignore[arg-type]
        TypeError,
        ["second argument", "ContinuousSparsification"],
    ),
    "no method": (lambda b: lambda: attach(b, "cs"), TypeError, ["'cs'", "ContinuousSparsification()"]),
    "a class": (lambda b: lambda: attach(b, CS), TypeError, ["ContinuousSparsification()"]),
    "a method of rounds": (lambda b: lambda: attach(b, IMP()), TypeError, ["IMP", "TicketSearch"]),
    "LBFGS": (lambda b: another(b, LBFGS(b.model.parameters())), TypeError, ["LBFGS", "closure", "Adam"]),
    "maximize": (
        lambda b: another(b, SGD(b.model.parameters(), lr=0.1, maximize=True)),
        ValueError,
        ["maximize", "minimise"],
    ),
    "not in the optimiser": (
        lambda b: another(b, SGD([*b.model[0].parameters(), *b.model[4].parameters()], lr=0.1)),
        ValueError,
        ["'2.weight'", "not in the optimiser", "select="],
    ),
    "no sibling": (
        lambda b: another(b, Peculiar(b.model)),
        TypeError,
        ["Peculiar", "scores", "score_optimizer="],
    ),
    "scores' optimiser is none": (
        lambda b: lambda: attach(b, CS(score_optimizer=lambda groups: None)),  # type: ignore[arg-type, return-value]
        TypeError,
        ["score_optimizer", "functools.partial"],
    ),
    "NaN weight": (nan_weight, ValueError, ["'2.weight'", "NaN", "initialise"]),
    "integer weights": (
        lambda b: with_parameter(b, nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)),
        ValueError,
        ["'extra'", "torch.int64", "floating point"],
    ),
    "frozen": (
        lambda b: with_parameter(b, nn.Parameter(torch.ones(2, 2), requires_grad=False)),
        ValueError,
        ["'extra'", "frozen"],
    ),
    "unknown name": (lambda b: lambda: attach(b, select=["nowhere"]), ValueError, ["'nowhere'", "0.weight", "2.bias"]),
    "one unknown name": (
        lambda b: lambda: attach(b, select=["0.weight", "nowhere"]),
        ValueError,
        ["'nowhere'", "it has", "0.weight"],
    ),
    "nothing selected": (
        lambda b: lambda: attach(b, select=lambda n, p: False),
        ValueError,
        ["nothing to mask", "select="],
    ),
    "nothing to mask": (nothing_to_mask, ValueError, ["nothing to mask", "BatchNorm1d", "select="]),
    "lazy": (lazy, ValueError, ["not initialised", "forward"]),
    "select a number": (lambda b: lambda: attach(b, select=5), ValueError, ["select", "names", "predicate"]),
    "select a layer": (lambda b: lambda: attach(b, select=b.model[0]), ValueError, ["select", "names", "predicate"]),
    "select a mixture": (lambda b: lambda: attach(b, select=["0.weight", nn.Linear]), ValueError, ["select", "names"]),
    "attached": (partial(taken, other=False), ValueError, ["'0.weight'", "already attached", "Fixed", "detach()"]),
    "attached elsewhere": (partial(taken, other=True), ValueError, ["'0.weight'", "already attached", "detach()"]),
    "mask of another shape": (
        lambda b: lambda: attach(b, masks_of(**{"2_weight": (8, 9)})),
        ValueError,
        ["'2.weight'", "(8, 9)", "(8, 10)", "another model"],
    ),
    "mask of another name": (
        lambda b: lambda: attach(b, masks_of(**{"7_weight": (8, 9)})),
        ValueError,
        ["'7.weight'", "0.weight", "select="],
    ),
}  # fmt: skip


# ---- moments: an attachment is at work


def nan_loss(bench: Bench, scale: float) -> Act:
    bench.backward(scale)
    return bench.optimizer.step


def inside_hard(bench: Bench) -> Act:
    run = bench.attach()
    bench.backward()

    def act() -> None:
        with run.hard():
            bench.optimizer.step()

    return act


def used_up(bench: Bench, attached: Attachment) -> Act:
    bench.backward()
    return bench.optimizer.step


def with_closure(bench: Bench, *, keyword: bool) -> Act:
    bench.backward()
    closure = lambda: bench.model(NET.batch(0)).square().mean()  # noqa: E731
    return (lambda: bench.optimizer.step(closure=closure)) if keyword else (lambda: bench.optimizer.step(closure))


def frozen_later(bench: Bench) -> Act:
    bench.attach(RigL(density=0.5, every=1), done=0)
    bench.model.get_parameter("2.weight").requires_grad_(False)
    bench.backward()
    return bench.optimizer.step


class Sparse(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(6, 3, sparse=True))


def sparse_gradient(bench: Bench, method: Callable[[nn.Module], Any]) -> Act:
    bench.model = Sparse()
    bench.optimizer = SGD(bench.model.parameters(), lr=0.1)
    masked = ["0.weight"]
    bench.run = tombola.attach(bench.model, bench.optimizer, method(bench.model), steps=2, select=masked)
    bench.model(torch.tensor([1, 2])).sum().backward()
    return bench.optimizer.step


def loading(bench: Bench, change: Callable[[dict[str, Any]], object], method: Any = None) -> Act:
    """Loading a state with something changed in it."""
    run = bench.attach(method)
    state = copied(run.state_dict())
    return lambda: run.load_state_dict(change(state) or state)


def soft_into_hard(bench: Bench) -> Act:
    run = bench.attach(CS(harden_at=0.5), done=0)
    state = run.state_dict()
    train(bench.model, bench.optimizer, NET, range(2))
    return lambda: run.load_state_dict(state)


def after_detach(bench: Bench, method: Any = None) -> Act:
    run = bench.attach(method)
    state = run.state_dict()
    run.detach()
    return lambda: run.load_state_dict(state)


def narrower(scores: dict[str, Tensor]) -> None:
    scores["2.weight"] = scores["2.weight"][:, 1:]


def half_masks(bench: Bench) -> Fixed:
    return Fixed(half(bench.model))


MOMENTS: dict[str, tuple[Arrange, type[Exception], list[str]]] = {
    "NaN loss": (
        lambda b: b.attach() and nan_loss(b, float("nan")),
        FloatingPointError,
        ["'0.weight'", "step 1", "NaN", "learning rate"],
    ),
    "infinite loss": (lambda b: b.attach() and nan_loss(b, float("inf")), FloatingPointError, ["not finite", "step 1"]),
    "NaN loss under masks": (
        lambda b: b.fixed() and nan_loss(b, float("nan")),
        FloatingPointError,
        ["not finite", "GradScaler"],
    ),
    "steps used up": (lambda b: used_up(b, b.attach(steps=1)), RuntimeError, ["steps=1", "detach()"]),
    "steps used up under masks": (
        lambda b: used_up(b, b.fixed(steps=2, done=2)),
        RuntimeError,
        ["steps=2", "detach()"],
    ),
    "frozen before a move": (frozen_later, RuntimeError, ["'2.weight' was frozen", "RigL needs", "detach()"]),
    "step inside hard": (inside_hard, RuntimeError, ["inside hard()", "leave"]),
    "closure": (lambda b: b.attach() and with_closure(b, keyword=False), RuntimeError, ["closure", "loss.backward()"]),
    "closure by name": (lambda b: b.fixed() and with_closure(b, keyword=True), RuntimeError, ["closure"]),
    "sparse gradient": (lambda b: sparse_gradient(b, lambda m: CS()), TypeError, ["'0.weight'", "sparse=False"]),
    "sparse gradient under masks": (
        lambda b: sparse_gradient(b, lambda m: Fixed(Masks({"0.weight": m[0].weight > 0}))),  # type: ignore[index]
        TypeError,
        ["'0.weight'", "sparse=False"],
    ),
    "no state": (
        lambda b: loading(b, lambda s: {"state": {}, "param_groups": []}),
        ValueError,
        ["not the state", "'method'"],
    ),
    "half a state": (lambda b: loading(b, lambda s: s.pop("soft") and None), ValueError, ["'soft'", "'hard'"]),
    "no state at all": (
        lambda b: loading(b, lambda s: [1]),  # type: ignore[arg-type, return-value]
        ValueError,
        ["not the state"],
    ),
    "state without scores": (
        lambda b: loading(b, lambda s: s["soft"].pop("scores") and None),
        ValueError,
        ["'scores'"],
    ),
    "state of other steps": (lambda b: loading(b, lambda s: s.update(steps=9)), ValueError, ["steps=9", "steps=3"]),
    "step beyond the end": (lambda b: loading(b, lambda s: s.update(step=4)), ValueError, ["step", "4"]),
    "state of another method": (
        lambda b: loading(b, lambda s: s.update(method={"name": "RigL"})),
        ValueError,
        ["RigL", "ContinuousSparsification", "attach the same"],
    ),
    "state of other settings": (
        lambda b: loading(b, lambda s: s["method"].update(penalty=0.5)),
        ValueError,
        ["0.5", "1e-08", "attach the same"],
    ),
    "state of another shape": (
        lambda b: loading(b, lambda s: narrower(s["soft"]["scores"])),
        ValueError,
        ["'2.weight'", "(8, 9)"],
    ),
    "state of other layers": (
        lambda b: loading(b, lambda s: s["soft"]["weights"].pop("2.weight") is None),
        ValueError,
        ["'2.weight'"],
    ),
    "NaN in a state": (
        lambda b: loading(b, lambda s: s["soft"]["weights"]["2.weight"].fill_(torch.nan) is None),
        ValueError,
        ["'2.weight'", "NaN"],
    ),
    "scores' optimiser of another kind": (
        lambda b: loading(b, lambda s: s["soft"]["score_optimizer"].update(param_groups=[])),
        ValueError,
        ["score_optimizer"],
    ),
    "scores' momentum of another shape": (
        lambda b: loading(b, lambda s: s["soft"]["score_optimizer"]["state"][0].update(exp_avg=torch.ones(2))),
        ValueError,
        ["score_optimizer"],
    ),
    "generator of another kind": (
        lambda b: loading(b, lambda s: s["soft"].update(generator=torch.ones(3))),
        ValueError,
        ["generator"],
    ),
    "masks of another length": (
        lambda b: loading(b, lambda s: s["hard"]["masks"].update({"0.weight": torch.ones(2).byte()}), half_masks(b)),
        ValueError,
        ["0.weight", "packed"],
    ),
    "masks of another shape": (
        lambda b: loading(b, lambda s: s["hard"]["shapes"].update({"0.weight": [6, 10]}), half_masks(b)),
        ValueError,
        ["'0.weight'", "(6, 10)"],
    ),
    "state from before hardening": (soft_into_hard, ValueError, ["before the mask hardened", "fresh attachment"]),
    "state after detaching": (after_detach, ValueError, ["detached", "attach"]),
    "state after detaching masks": (lambda b: after_detach(b, half_masks(b)), ValueError, ["detached", "attach"]),
    "scores under hard masks": (
        lambda b: b.fixed() and (lambda: b.run.set_scores({})),  # type: ignore[union-attr]
        ValueError,
        ["no scores", "hard mask"],
    ),
    "scores of other layers": (
        lambda b: b.attach() and (lambda: b.run.set_scores({})),  # type: ignore[union-attr]
        ValueError,
        ["'0.weight'"],
    ),
}  # fmt: skip


CASES = ARGUMENTS | MOMENTS


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:no weight is left in ")  # of what is detached before it has trained
def test_the_message_names_the_mistake_and_nothing_has_changed(name: str) -> None:
    arrange, error, words = CASES[name]
    bench = Bench()
    act = arrange(bench)
    before, hooks = bench.state(), hooks_of(bench.model, bench.optimizer)
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert not differ(bench.state(), before)
    assert hooks_of(bench.model, bench.optimizer) == hooks
    if name in ARGUMENTS and bench.run is None:
        assert not hooks
        if name != "NaN weight":  # and the same call without the mistake works
            optimizer = SGD(bench.model.parameters(), lr=0.1)
            tombola.attach(bench.model, optimizer, CS(), steps=1, select=["0.weight"]).detach()


@pytest.mark.parametrize("name", ["NaN loss", "infinite loss", "step inside hard", "closure", "NaN in a state"])
def test_training_goes_on_after_a_mistake(name: str) -> None:
    bench, twin = Bench(), Bench()
    act = MOMENTS[name][0](bench)
    with pytest.raises(MOMENTS[name][1]):
        act()
    twin.attach()
    for each in (bench, twin):
        train(each.model, each.optimizer, NET, [1])
    assert not differ(bench.state(), twin.state())


# ---- rounds of a ticket search


def search_of(bench: Bench, method: Any = None, **settings: Any) -> TicketSearch:
    return TicketSearch(bench.model, method or CS(), **({"rounds": 2} | settings))


def first_round(bench: Bench, *, steps: int = 2, done: int = 2, **settings: Any) -> Any:
    round_ = next(iter(search_of(bench, **settings)))
    bench.run = round_.attach(bench.optimizer, steps=steps)
    train(bench.model, bench.optimizer, NET, range(done))
    return round_


def not_attached(bench: Bench) -> Act:
    return next(iter(search_of(bench))).ticket  # type: ignore[no-any-return]


def behind_the_round(bench: Bench) -> Act:
    round_ = next(iter(search_of(bench, rewind_step=5)))
    return lambda: round_.attach(bench.optimizer, steps=4)


def over(bench: Bench) -> Act:
    round_ = first_round(bench, method=IMP())
    round_.ticket()
    return lambda: round_.attach(bench.optimizer, steps=2)


def resuming(bench: Bench, change: Callable[[dict[str, Any]], object], **settings: Any) -> Act:
    state = copied(search_of(bench).state_dict())
    return lambda: search_of(bench, **settings).load_state_dict(change(state) or state)


def resumed_attach(bench: Bench, change: Callable[[dict[str, Any]], object]) -> Act:
    """The search's state is sound but that of the attachment in it is not."""
    search = search_of(bench)
    round_ = next(iter(search))
    run = round_.attach(bench.optimizer, steps=2)
    state = copied(search.state_dict())
    run.detach()
    state = change(state) or state
    again = search_of(bench)
    again.load_state_dict(state)
    round_ = next(iter(again))
    return lambda: round_.attach(bench.optimizer, steps=2)


def pop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state.pop(path[-1])

    return change


def put(value: object, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


SEARCHES: dict[str, tuple[Arrange, type[Exception], list[str]]] = {
    "no rounds in it": (lambda b: lambda: search_of(b, half_masks(b)), TypeError, ["Fixed", "no rounds", "IMP"]),
    "a class": (lambda b: lambda: search_of(b, IMP), TypeError, ["IMP()"]),
    "rounds 0": (lambda b: lambda: search_of(b, rounds=0), ValueError, ["rounds", "at least 1", "0"]),
    "rewind_step": (lambda b: lambda: search_of(b, rewind_step=-1), ValueError, ["rewind_step", "at least 0", "-1"]),
    "steps_per_epoch": (
        lambda b: lambda: search_of(b, steps_per_epoch=0),
        ValueError,
        ["steps_per_epoch", "at least 1"],
    ),
    "select": (lambda b: lambda: search_of(b, select=["nowhere"]), ValueError, ["'nowhere'", "0.weight"]),
    "keep": (lambda b: lambda: search_of(b, IMP(keep={"nowhere": 0.5})), ValueError, ["keep", "'nowhere'", "0.weight"]),
    "provenance": (lambda b: lambda: search_of(b, about={"x": object()}), TypeError, ["about", "JSON"]),
    "epochs": (lambda b: lambda: search_of(b).epochs_spent, ValueError, ["steps_per_epoch"]),
    "nothing attached": (not_attached, RuntimeError, ["round 1", "round_.attach"]),
    "nothing trained": (lambda b: first_round(b, done=0).ticket, RuntimeError, ["round 1", "no optimiser step"]),
    "rewind point beyond the round": (behind_the_round, ValueError, ["rewind_step=5", "steps=4"]),
    "rewind point not reached": (
        lambda b: first_round(b, rewind_step=2, done=1).ticket,
        RuntimeError,
        ["rewind_step=2", "not reached", "1 steps"],
    ),
    "round over": (over, RuntimeError, ["round 1 is over"]),
    "another method": (
        lambda b: resuming(b, lambda s: None, method=IMP()),
        ValueError,
        ["method", "IMP", "the same search"],
    ),
    "other rounds": (lambda b: resuming(b, lambda s: None, rounds=9), ValueError, ["rounds=2", "9"]),
    "no state": (lambda b: resuming(b, lambda s: {"a": 1}), ValueError, ["not the state", "search"]),
    "no state at all": (lambda b: resuming(b, lambda s: [1]), ValueError, ["not the state", "search"]),
    "state without masks": (lambda b: resuming(b, pop("masks")), ValueError, ["'masks'"]),
    "state without a mask": (lambda b: resuming(b, pop("masks", "0.weight")), ValueError, ["other parameters"]),
    "short mask": (
        lambda b: resuming(b, put(torch.ones(1).byte(), "masks", "0.weight")),
        ValueError,
        ["0.weight", "packed"],
    ),
    "weights of another shape": (
        lambda b: resuming(b, put(torch.ones(2, 2), "begin", "0.weight")),
        ValueError,
        ["'0.weight'", "(2, 2)", "(10, 6)"],
    ),
    "weights gone": (lambda b: resuming(b, put(None, "begin", "0.weight")), ValueError, ["'0.weight'"]),
    "scores of another shape": (
        lambda b: resuming(b, put({"0.weight": torch.ones(2)}, "scores")),
        ValueError,
        ["scores"],
    ),
    "round beyond the end": (lambda b: resuming(b, put(7, "index")), ValueError, ["index", "7"]),
    "attachment's state of other steps": (
        lambda b: resumed_attach(b, put(7, "run", "steps")),
        ValueError,
        ["steps=7", "steps=2"],
    ),
    "attachment's state cut short": (
        lambda b: resumed_attach(b, pop("run", "soft", "scores")),
        ValueError,
        ["'scores'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.filterwarnings("ignore:.*scores are undecided")
def test_mistakes_in_a_search(name: str) -> None:
    arrange, error, words = SEARCHES[name]
    bench = Bench()
    act = arrange(bench)
    before, hooks = bench.state(), hooks_of(bench.model, bench.optimizer)
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert not differ(bench.state(), before)
    assert hooks_of(bench.model, bench.optimizer) == hooks


# ---- what is no mistake, but should be known


def faint_output(bench: Bench, method: Any) -> Act:
    """The last layer has the smallest weights, and the least effect on the loss, of all by far."""
    with torch.no_grad():
        bench.model[4].weight *= 1e-6  # type: ignore[operator]
    bench.attach(method, steps=6, done=0)
    return partial(train, bench.model, bench.optimizer, NET, range(6))


def empty_output(bench: Bench) -> Act:
    masks = {name: mask & (name != "4.weight") for name, mask in half(bench.model).items()}
    return partial(bench.fixed_by, Masks(masks), done=0)


def ends_round(bench: Bench, method: Any, **settings: Any) -> Act:
    return first_round(bench, method=method, done=1, steps=1, **settings).ticket  # type: ignore[no-any-return]


NOTHING_LEFT = ["no weight is left in 4.weight"]
NOTHING_AT_ALL = ["no weight is left in 0.weight, 2.weight, 4.weight"]
WARNINGS: dict[str, tuple[Arrange, list[str]]] = {
    "a round leaves nothing": (lambda b: ends_round(b, CS(initial_score=-3.0)), ["round 1:", *NOTHING_AT_ALL]),
    "a round of IMP empties a layer": (
        lambda b: ends_round(b, IMP(keep={"4.weight": 0.01})),
        ["round 1:", *NOTHING_LEFT],
    ),
    "undecided scores": (
        lambda b: ends_round(b, CS(initial_score=0.001)),
        ["round 1: 100.0% of the scores are undecided", "final_temperature"],
    ),
    "masks that keep nothing of a layer": (empty_output, [*NOTHING_LEFT, "at step 0 of Fixed", "keep more weights"]),
    "detached before any score is positive": (
        lambda b: b.attach(CS(initial_score=-3.0)).detach,
        [*NOTHING_AT_ALL, "at step 1 of ContinuousSparsification"],
    ),
    "hardened before any score is positive": (
        lambda b: faint_output(b, CS(initial_score=-3.0, harden_at=0.5)),
        [*NOTHING_AT_ALL, "at step 3 of"],
    ),
    "pruned over all layers": (
        lambda b: faint_output(b, GradualMagnitude(density=0.3, every=1, begin=0.1, until=0.5)),
        [*NOTHING_LEFT, "of GradualMagnitude", "a budget that leaves some in each layer"],
    ),
    "pruned over all layers, then moved": (
        lambda b: faint_output(b, GraNet(density=0.2, every=1)),
        [*NOTHING_LEFT, "of GraNet"],
    ),
    "pruned at once over all layers": (
        lambda b: faint_output(b, SNIP(density=0.01, budget=global_)),  # two weights for three layers
        ["no weight is left in", "at step 1 of SNIP"],
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_the_warning_names_what_it_is_about_and_comes_once(name: str) -> None:
    arrange, words = WARNINGS[name]
    bench = Bench()
    act = arrange(bench)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
        assert bench.run is not None
        bench.run.detach()
    (said,) = [str(warning.message) for warning in caught]
    assert [word for word in words if word not in said] == [], said


def test_who_goes_on_is_not_warned_again() -> None:
    method = GradualMagnitude(density=0.3, every=1, begin=0.1, until=0.9)
    bench, again = Bench(), Bench()
    faint_output(bench, method)
    with pytest.warns(UserWarning, match=NOTHING_LEFT[0]):
        train(bench.model, bench.optimizer, NET, range(4))
    run = again.attach(method, steps=6, done=0)
    for name, owner in vars(again).items():
        owner.load_state_dict(copied(getattr(bench, name).state_dict()))
    train(again.model, again.optimizer, NET, range(4, 6))  # the masks move on, and warnings are errors here
    assert run.diagnostics()["dead_layers"] == ["4.weight"]


# ---- tickets


def small(**changes: Any) -> Ticket:
    parts = {
        "masks": Masks({"weight": torch.tensor([[True, False]])}),
        "start": {"weight": torch.ones(1, 2), "bias": torch.zeros(1)},
    } | changes
    return Ticket(**parts)  # type: ignore[arg-type]


class Own(nn.Module):
    """A module with a parameter that nobody knows how to initialise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))


TICKETS: dict[str, tuple[Act, type[Exception], list[str]]] = {
    "no start": (lambda: small(start={}), ValueError, ["'weight'", "no start"]),
    "another shape": (lambda: small(start={"weight": torch.ones(2)}), ValueError, ["'weight'", "(1, 2)", "(2,)"]),
    "NaN": (lambda: small(start={"weight": torch.full((1, 2), torch.nan)}), ValueError, ["'weight'", "not finite"]),
    "provenance": (lambda: small(provenance=[1]), TypeError, ["provenance", "mapping"]),
    "no such folder": (lambda: small().save("/nowhere/a.safetensors"), FileNotFoundError, ["/nowhere"]),
    "no such file": (lambda: Ticket.load("/nowhere/a.safetensors"), FileNotFoundError, ["/nowhere/a.safetensors"]),
    "provenance with objects": (
        lambda: small(provenance={"x": object()}).save("/tmp/never"),
        TypeError,
        ["provenance", "JSON"],
    ),
    "net without it": (lambda: small().restore(nn.Conv1d(1, 1, 1)), ValueError, ["'weight'", "(1, 2)", "strict=False"]),
    "larger net": (lambda: small().restore(nn.Bilinear(1, 2, 1)), ValueError, ["'weight'", "shape"]),
    "net with more": (
        lambda: small(start={"weight": torch.ones(1, 2)}).restore(nn.Linear(2, 1)),
        ValueError,
        ["'bias'", "Linear", "not in the ticket", "strict=False"],
    ),
    "net with less": (
        lambda: small().restore(nn.Linear(2, 1, bias=False)),
        ValueError,
        ["Linear", "no 'bias'", "strict=False"],
    ),
    "nothing fits": (lambda: small().restore(nn.Linear(3, 1), strict=False), ValueError, ["no masked", "weight"]),
    "cannot initialise": (lambda: small().reinitialised(Own()), ValueError, ["Own", "reset_parameters()"]),
    "initialises otherwise": (
        lambda: small().reinitialised(nn.Linear(3, 1)),
        ValueError,
        ["'weight'", "shape"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TICKETS)
def test_mistakes_with_tickets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    act, error, words = TICKETS[name]
    with pytest.raises(error) as caught:
        act()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert not list(tmp_path.iterdir())
