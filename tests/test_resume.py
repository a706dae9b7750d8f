"""Stopping anywhere and going on from what was saved equals never having stopped, bit by bit on a CPU."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from loop import copied, differ, train
from table import CS, METHODS, Entry, World, attached, world
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from zoo import NETS

import tombola

STEPS = 6
NET = NETS["conv"]

every_method = pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
OFTEN = (2, 3)  # where it is cut in the fast tests; with AdamW anywhere
Schedule = Callable[[Optimizer], LRScheduler]
SCHEDULES: dict[str, Schedule] = {
    "nesterov": partial(OneCycleLR, max_lr=0.2, total_steps=STEPS + 1),  # moves the momentum too
    "adamw": partial(StepLR, step_size=2, gamma=0.3),
    "adam fused": partial(StepLR, step_size=1, gamma=0.7),
}


def through_a_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a state when it has been written and read by the loader that executes nothing."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def begun(entry: Entry, make: str) -> tuple[World, LRScheduler]:
    it = world(entry, make, NET, STEPS)
    return it, SCHEDULES[make](it.optimizer)


@cache
def never_stopped(name: str, make: str) -> tuple[Any, Any]:
    """What there is at the end, before and after the attachment is gone."""
    it, schedule = begun(METHODS[name], make)
    train(it.model, it.optimizer, NET, range(STEPS), scheduler=schedule)
    end = it.snapshot()
    it.run.detach()
    return end, copied(it.model.state_dict())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("make", "cut"),
    [
        pytest.param(make, cut, marks=[] if make == "adamw" or cut in OFTEN else pytest.mark.slow)
        for make in SCHEDULES for cut in range(STEPS + 1)
    ],
)  # fmt: skip
def test_going_on_equals_never_having_stopped(name: str, make: str, cut: int) -> None:
    entry = METHODS[name]
    first, schedule = begun(entry, make)
    train(first.model, first.optimizer, NET, range(cut), scheduler=schedule)
    saved = through_a_file(first.snapshot() | {"schedule": schedule.state_dict()})

    second, schedule = begun(entry, make)
    parts = {"model": second.model, "optimizer": second.optimizer, "run": second.run, "schedule": schedule}
    for part in sorted(parts, reverse=bool(cut % 2)):  # the attachment's state before the others' or after
        parts[part].load_state_dict(saved[part])
    assert not differ(second.snapshot() | {"schedule": schedule.state_dict()}, saved)
    train(second.model, second.optimizer, NET, range(cut, STEPS), scheduler=schedule)

    assert second.run.step == STEPS
    straight, plain = never_stopped(name, make)
    assert not differ(second.snapshot(), straight)
    second.run.detach()
    assert not differ(second.model.state_dict(), plain)


@every_method
def test_a_state_is_a_snapshot(entry: Entry) -> None:
    """Training on changes no state that was taken before, and one state can be gone on from again and again."""
    it = world(entry, "adam", NET, STEPS)
    train(it.model, it.optimizer, NET, range(2))
    state, rest = it.run.state_dict(), [copied(it.model.state_dict()), copied(it.optimizer.state_dict())]
    before = copied(state)
    ends = []
    for _ in range(2):
        again = world(entry, "adam", NET, STEPS)
        again.run.load_state_dict(state)
        again.model.load_state_dict(copied(rest[0]))
        again.optimizer.load_state_dict(copied(rest[1]))
        train(again.model, again.optimizer, NET, range(2, STEPS))
        ends.append(again.snapshot())
        assert not differ(state, before)
    train(it.model, it.optimizer, NET, range(2, STEPS))
    assert not differ(state, before)
    assert not differ(ends[0], it.snapshot())
    assert not differ(ends[1], ends[0])


def test_a_custom_score_optimizer_goes_on_too() -> None:
    method = CS(score_optimizer=partial(torch.optim.SGD, lr=5.0, momentum=0.9))
    ends = []
    for cut in (0, 3):
        it = world(Entry(attached(method)), "adam", NET, STEPS)
        train(it.model, it.optimizer, NET, range(cut))
        saved = through_a_file(it.snapshot())
        it = world(Entry(attached(method)), "adam", NET, STEPS)
        it.run.load_state_dict(saved["run"])
        it.model.load_state_dict(saved["model"])
        it.optimizer.load_state_dict(saved["optimizer"])
        train(it.model, it.optimizer, NET, range(cut, STEPS))
        ends.append(it.snapshot())
    assert not differ(*ends)


def test_scores_stay_for_the_reader_after_the_mask_has_hardened() -> None:
    it = world(METHODS["cs hardened"], "adam", NET, STEPS)
    train(it.model, it.optimizer, NET, range(4))
    scores = it.run.scores
    assert {name: score > 0 for name, score in scores.items()}.keys() == set(NET.masked)
    assert tombola.Masks({name: score > 0 for name, score in scores.items()}) == it.run.masks
    again = world(METHODS["cs hardened"], "adam", NET, STEPS)
    again.run.load_state_dict(through_a_file(it.run.state_dict()))
    assert not differ(again.run.scores, scores)
    assert again.run.masks == it.run.masks
