"""METHODS: every method, one line each, as the table of promises runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from loop import OPTIMIZERS, MakeOptimizer, copied, train
from torch import nn
from torch.optim import SGD, Optimizer
from zoo import Net

import tombola
from tombola import (
    IMP,
    SET,
    SNFS,
    SNIP,
    Attachment,
    ContinuousSparsification,
    Fixed,
    GradualMagnitude,
    GraNet,
    Masks,
    RigL,
    Static,
    StochasticSparsification,
    TicketSearch,
    uniform,
)
from tombola.methods.protocol import HardMethod, SoftMethod

Start = Callable[[nn.Module, Optimizer, Net, int], Attachment]
Kept = Callable[[Mapping[str, int], int, int], int | None]


@dataclass(frozen=True)
class Entry:
    """A method at work: how to attach it, and what it promises.

    Attributes:
        attach: (model, optimizer, net, steps) -> attachment.
        hard: its masks are bits from the first step on.
        kept: (sizes of the masked layers, steps done, steps) -> weights kept then; None: it has no budget, or not yet.
        hardens: the step of ``steps`` after which the mask is hard; None: never by itself.
        trains_weights: False: masked weights stay as they are.
        steers: it moves scores whatever the learning rate.
        moves: its masks change between steps; connections that are new begin at 0.
    """

    attach: Start
    hard: bool = False
    kept: Kept = lambda sizes, done, steps: None
    hardens: Callable[[int], int] | None = None
    trains_weights: bool = True
    steers: bool = False
    moves: bool = False


def attached(method: SoftMethod | HardMethod) -> Start:
    return lambda model, optimizer, net, steps: tombola.attach(model, optimizer, method, steps=steps, seed=5)


def half(model: nn.Module) -> Masks:
    """Masks that keep half of each layer, rounded down, at positions that only the shapes determine."""
    generator = torch.Generator().manual_seed(7)
    masks = {}
    for name, parameter in tombola.maskable(model).items():
        mask = torch.arange(parameter.numel()) < parameter.numel() // 2
        masks[name] = mask[torch.randperm(mask.numel(), generator=generator)].view(parameter.shape)
    return Masks(masks)


def fixed(model: nn.Module, optimizer: Optimizer, net: Net, steps: int) -> Attachment:
    return tombola.attach(model, optimizer, Fixed(half(model)), steps=steps)


def second_round(model: nn.Module, optimizer: Optimizer, net: Net, steps: int) -> Attachment:
    """The round in which IMP trains under the masks that it made in the first."""
    rounds = iter(TicketSearch(model, IMP(keep=0.4), rounds=2, seed=5))
    first, own = next(rounds), SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    first.attach(own, steps=2)
    train(model, own, net, range(2))
    own.zero_grad()
    first.ticket()
    return next(rounds).attach(optimizer, steps=steps)


def share(density: float) -> Kept:
    return lambda sizes, done, steps: round(density * sum(sizes.values()))


def in_the_end(density: float) -> Kept:
    return lambda sizes, done, steps: share(density)(sizes, done, steps) if done == steps else None


def at_once(density: float) -> Kept:
    """From the first step on."""
    return lambda sizes, done, steps: share(density if done else 1.0)(sizes, done, steps)


def cubically(start: float, end: float, done: float) -> float:
    """The density when so large a share of the pruning is done."""
    return end + (start - end) * (1 - min(max(done, 0.0), 1.0)) ** 3


def by_gmp(sizes: Mapping[str, int], done: int, steps: int) -> int:
    """GRADUAL prunes after each update, from the first tenth of them to 0.6."""
    begin, end = max(1, round(0.1 * steps)), round(0.6 * steps)
    return round(cubically(1.0, 0.3, (done - begin) / (end - begin)) * sum(sizes.values()))


def by_granet(sizes: Mapping[str, int], done: int, steps: int) -> int:
    """GRANET prunes after the first update and every other from then on, and when half of them are done."""
    end = round(0.5 * steps)
    last = max((update for update in range(1, done + 1) if update % 2 == 1 or update == end), default=0)
    return round(cubically(0.5, 0.3, last / end) * sum(sizes.values()))


def dynamic(method: RigL | SET | SNFS) -> Entry:
    return Entry(attached(method), hard=True, kept=share(method.density), moves=True)


CS = ContinuousSparsification
GRADUAL = GradualMagnitude(density=0.3, every=1, begin=0.1, until=0.6)
GRANET = GraNet(density=0.3, every=2, prune_until=0.5, drop_fraction=0.5)
METHODS = {
    "fixed": Entry(fixed, hard=True, kept=lambda sizes, done, steps: sum(size // 2 for size in sizes.values())),
    "imp": Entry(second_round, hard=True, kept=share(0.4)),
    "cs": Entry(attached(CS())),
    "cs scaled": Entry(attached(CS(scale="initial", final_temperature=50.0))),
    "cs mean": Entry(attached(CS(penalty_on="mean", penalty=0.1))),
    "cs density": Entry(attached(CS(density=0.3)), kept=in_the_end(0.3), steers=True),
    "cs hardened": Entry(attached(CS(harden_at=0.5)), hardens=lambda steps: steps // 2),
    "cs supermask": Entry(attached(CS(train_weights=False)), trains_weights=False),
    "ss": Entry(attached(StochasticSparsification(initial_score=0.0))),
    "ss supermask": Entry(attached(StochasticSparsification(train_weights=False)), trains_weights=False),
    "static": Entry(attached(Static(density=0.3)), hard=True, kept=share(0.3)),
    "rigl": dynamic(RigL(density=0.3, every=1, drop_fraction=0.5)),
    "rigl mean": dynamic(RigL(density=0.3, every=2, average=2, budget=uniform, move_at_start=False, until=1.0)),
    "set": dynamic(SET(density=0.3, every=2)),
    "snfs": dynamic(SNFS(density=0.3, every=2, anneal="linear")),
    "granet": Entry(attached(GRANET), hard=True, kept=by_granet, moves=True),
    "snip": Entry(attached(SNIP(density=0.3)), hard=True, kept=at_once(0.3), moves=True),
    "gradual": Entry(attached(GRADUAL), hard=True, kept=by_gmp, moves=True),
}


@dataclass
class World:
    """A model, its optimiser and the method at work on it."""

    net: Net
    model: nn.Module
    optimizer: Optimizer
    run: Attachment

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that training changes."""
        states = {"model": self.model, "optimizer": self.optimizer, "run": self.run}
        return {name: copied(owner.state_dict()) for name, owner in states.items()}


def world(
    entry: Entry,
    make: str | MakeOptimizer,
    net: Net,
    steps: int,
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
) -> World:
    """The method attached to a fresh model, or to the given one."""
    model = net.model() if model is None else model
    if optimizer is None:
        optimizer = (OPTIMIZERS[make] if isinstance(make, str) else make)(model.parameters())
    return World(net, model, optimizer, entry.attach(model, optimizer, net, steps))


def hard_now(entry: Entry, run: Attachment) -> bool:
    """Whether the mask is bits by now."""
    return entry.hard or (entry.hardens is not None and run.step >= entry.hardens(run.steps))


class Account:
    """Sees to it, from now on and after each step, that counts are exact and that what has grown begins with nothing.

    Attributes:
        grown: connections that have.
    """

    def __init__(self, entry: Entry, it: World) -> None:
        self.entry = entry
        self.optimizer = it.optimizer
        self.masks = it.run.masks
        self.grown = 0
        self._check_counts(it.run)
        it.run.on_step(self)

    def __call__(self, run: Attachment) -> None:
        before, self.masks = self.masks, run.masks
        self._check_counts(run, before)
        for name, mask in self.masks.items() if self.entry.moves else ():
            parameter, grown = run.parameters[name], mask & ~before[name]
            state = [entry for entry in self.optimizer.state[parameter].values() if entry.shape == mask.shape]
            assert not any(entry[grown].any() for entry in (parameter.detach(), *state))
            self.grown += int(grown.sum())

    def _check_counts(self, run: Attachment, before: Masks | None = None) -> None:
        sizes = {name: parameter.numel() for name, parameter in run.parameters.items()}
        kept = self.entry.kept(sizes, run.step, run.steps)
        if kept is None:
            return
        assert self.masks.sizes() == sizes
        assert self.masks.kept == kept
        assert run.density == kept / sum(sizes.values())
        if self.entry.hard and before is not None and before.kept == kept:  # then each layer keeps what it had
            assert self.masks.counts() == before.counts()
