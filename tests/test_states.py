"""Saved states with anything at all in any place: a ValueError of one line, and nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from loop import copied, differ, train
from table import METHODS, World, world
from torch import Tensor
from zoo import NETS

from tombola import IMP, Attachment, TicketSearch
from tombola import ContinuousSparsification as CS

NET, STEPS = NETS["mlp"], 4
GONE = object()
pytestmark = pytest.mark.filterwarnings("ignore:.*scores are undecided")


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything inside a nested state."""
    entries = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def replaced(state: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = copied(state)
    *upper, last = path
    if value is GONE:
        at(changed, tuple(upper)).pop(last)
    else:
        at(changed, tuple(upper))[last] = value
    return changed


def junk(value: object) -> Iterator[object]:
    """What may stand where ``value`` stood."""
    yield from (GONE, None, -1, 2.5, "junk", [], {}, [1, "a"], {"junk": 1}, torch.ones(2), torch.tensor(torch.nan))
    yield torch.zeros(3, 3).to_sparse()
    if isinstance(value, Tensor):
        yield from (
            value.flatten()[:0],
            value.flatten()[:-1],
            value.double() if value.is_floating_point() else value.float(),
        )
        if value.is_floating_point():
            yield torch.full_like(value, torch.nan)
    if isinstance(value, int):
        yield from (value + 1, value - 1, 10**30, value + 0.5)


def same_kind(old: object, new: object) -> bool:
    """Whether a changed value is one that the state could have had."""
    return type(old) is type(new) and not isinstance(old, (Mapping, list))


def refuses(owner: Attachment | TicketSearch, state: Any, where: Any) -> bool:
    """Whether loading the state is refused, in one line; anything but a ValueError fails the test."""
    message = None
    try:
        owner.load_state_dict(state)
    except ValueError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert message is None or "\n" not in message, (where, message)
    return message is not None


@pytest.mark.parametrize("name", ["fixed", "cs", "cs hardened", "ss", "rigl", "snfs"])
def test_an_attachments_state_with_junk_in_it(name: str) -> None:
    it = world(METHODS[name], "adam", NET, STEPS)
    train(it.model, it.optimizer, NET, range(3))
    state, before = copied(it.run.state_dict()), it.snapshot()
    refused = 0
    for path in places(state):
        for value in junk(at(state, path)):
            if refuses(it.run, replaced(state, path, value), (path, value)):
                refused += 1
                assert not differ(it.snapshot(), before), (path, value)
            else:
                loaded(it, path, value, state)
    assert refused > 100
    it.run.load_state_dict(state)
    assert not differ(it.snapshot(), before)


def loaded(it: World, path: tuple[Any, ...], value: object, state: Any) -> None:
    """What was let through is not a mistake that shows later: settings of the scores' optimiser, mostly."""
    fits = "score_optimizer" in path or same_kind(at(state, path), value)
    unused = path[-1] == "scores" and path[0] == "hard"  # of a method that never had any
    fresh = path[-1] == "memory" and value == {}
    assert fits or unused or fresh, (path, value)
    it.run.load_state_dict(state)


@pytest.mark.parametrize("method", [CS(rewind=True), IMP()], ids=["cs", "imp"])
def test_a_searchs_state_with_junk_in_it(method: Any) -> None:
    model = NET.model()
    search = TicketSearch(model, method, rounds=3, rewind_step=1)
    for round_ in search:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        round_.attach(optimizer, steps=2)
        train(model, optimizer, NET, range(1 if round_.index == 2 else 2))
        if round_.index == 2:
            break
    state = copied(search.state_dict())
    again = TicketSearch(NET.model(), method, rounds=3, rewind_step=1)
    again.load_state_dict(state)
    before = copied(again.state_dict())
    refused = 0
    for path in places(state):
        if path[0] == "run" and len(path) > 1:
            continue  # the attachment's own, checked when it is attached
        for value in junk(at(state, path)):
            if refuses(again, replaced(state, path, value), (path, value)):
                refused += 1
                assert not differ(again.state_dict(), before), (path, value)
            else:
                empty = (path == ("run",) and value is None) or (path == ("scores",) and value == {})
                assert empty or same_kind(at(state, path), value), (path, value)
                again.load_state_dict(state)
    assert refused > 100
