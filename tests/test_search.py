"""Ticket search: rounds against the same rounds by hand, what is rewound, counted and written down, and going on."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from loop import copied, differ, hooks_of, train
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from zoo import NETS

import tombola
from tombola import IMP, Attachment, Fixed, Masks, Round, StochasticSparsification, Ticket, TicketSearch
from tombola import ContinuousSparsification as CS

NET = NETS["conv"]
STEPS, REWIND = 4, 2
METHODS: dict[str, Any] = {
    "imp": IMP(keep=0.6),
    "imp-c": IMP(keep=0.6, rewind=False),
    "cs": CS(),
    "cs rewound": CS(initial_score=0.02, rewind=True, final_temperature=40.0),
    "cs density": CS(density=(0.5, 0.3), rewind=True),
    "cs hardened": CS(harden_at=0.5),
    "iss": StochasticSparsification(initial_score=0.5),
}
every_method = pytest.mark.parametrize("name", METHODS)
pytestmark = pytest.mark.filterwarnings("ignore:.*(scores are undecided|no weight is left)")


def optimizer_of(model: nn.Module) -> Optimizer:
    return Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)


def search_of(model: nn.Module, method: Any, **settings: Any) -> TicketSearch:
    return TicketSearch(model, method, **({"rounds": 3, "rewind_step": REWIND, "seed": 3} | settings))


def trained(search: TicketSearch, round_: Round, *, steps: int = STEPS) -> Attachment:
    """A round's training: each round sees the batches in another order."""
    optimizer = optimizer_of(search.model)
    run = round_.attach(optimizer, steps=steps)
    train(search.model, optimizer, NET, range(10 * round_.index, 10 * round_.index + steps))
    return run


def tickets_of(search: TicketSearch) -> list[Ticket]:
    found = []
    for round_ in search:
        trained(search, round_)
        found.append(round_.ticket())
    return found


def contents(tickets: list[Ticket]) -> list[Any]:
    return [[dict(ticket.masks), dict(ticket.start), json.dumps(ticket.provenance)] for ticket in tickets]


# ---- the rounds, by hand


def dense_at(step: int) -> dict[str, Tensor]:
    """The network after so many plain steps of the first round."""
    model = NET.model()
    train(model, optimizer_of(model), NET, range(10, 10 + step))
    return copied(model.state_dict())


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize("step", [0, REWIND, STEPS])
def test_imp_by_hand(rewind: bool, step: int) -> None:
    """Dense training, global magnitude pruning by sorting, going back to step k or not, training with plain masks."""
    k, names = dense_at(step), ("0.weight", "4.weight")
    by_hand = NET.model()
    masks = {name: torch.ones_like(k[name], dtype=torch.bool) for name in names}
    model = NET.model()
    search = search_of(model, IMP(keep=0.6, rewind=rewind), rewind_step=step)
    for round_ in search:
        assert not differ(model.state_dict(), by_hand.state_dict())  # batch norm's statistics and biases as well
        trained(search, round_)
        optimizer = optimizer_of(by_hand)
        parameters = dict(by_hand.named_parameters())

        def mask(masks: dict[str, Tensor] = masks, parameters: Any = parameters) -> None:
            with torch.no_grad():
                for name, kept in masks.items():
                    parameters[name].masked_fill_(~kept, 0)

        mask()
        for batch in range(10 * round_.index, 10 * round_.index + STEPS):
            train(by_hand, optimizer, NET, [batch])
            mask()
        ranked = sorted(
            (float(weight.abs()), name, index)
            for name in names
            for index, weight in enumerate(parameters[name].detach().flatten())
            if masks[name].flatten()[index]
        )
        for _, name, index in ranked[: len(ranked) - round(0.6 * len(ranked))]:
            masks[name].view(-1)[index] = False
        ticket = round_.ticket()
        assert ticket.masks == Masks(masks)
        assert not differ(
            dict(ticket.start), {n: t.masked_fill(~masks[n], 0) if n in masks else t for n, t in k.items()}
        )
        if rewind:
            by_hand.load_state_dict(k)


@pytest.mark.parametrize("rewind", [True, False])
def test_the_second_round_of_cs_begins_with_all_weights(rewind: bool) -> None:
    """Soft rounds drop nothing for good: weights that the first ticket leaves out are there again."""
    model = NET.model()
    search = search_of(model, CS(rewind=rewind), rounds=2)
    rounds = iter(search)
    run = trained(search, next(rounds))
    end = run.weights | {n: t.detach().clone() for n, t in model.state_dict().items() if n not in run.parameters}
    ticket = search._current.ticket()  # type: ignore[union-attr]
    assert 0 < ticket.density < 1
    next(rounds)
    state = copied(model.state_dict())
    assert all(state[name].count_nonzero() == state[name].numel() for name in ticket.masks)
    assert bool(differ(state, end)) == rewind


def test_the_rewind_point_of_cs_is_the_raw_weight() -> None:
    """At step k the parameters hold w·σ(βs); the ticket starts from w."""
    model = NET.model()
    search = search_of(model, CS(), rounds=1)
    raw: dict[str, Tensor] = {}
    for round_ in search:
        optimizer = optimizer_of(model)
        run = round_.attach(optimizer, steps=STEPS)
        run.on_step(lambda run: raw.update(run.weights) if run.step == REWIND else None)
        train(model, optimizer, NET, range(10, 10 + STEPS))
        ticket = round_.ticket()
    assert not differ(
        {n: w.masked_fill(~ticket.masks[n], 0) for n, w in raw.items()}, {n: ticket.start[n] for n in raw}
    )


def test_scores_of_the_next_round() -> None:
    model = NET.model()
    search = search_of(model, CS(initial_score=0.01, final_temperature=30.0), rounds=2)
    rounds = iter(search)
    end = trained(search, next(rounds)).scores
    begin = next(rounds).attach(optimizer_of(model), steps=STEPS).scores
    expected = {name: torch.minimum(30.0 * score, torch.tensor(0.01)) for name, score in end.items()}
    assert not differ(begin, expected)


def test_what_fell_never_returns_in_iss() -> None:
    model = NET.model()
    search = search_of(model, StochasticSparsification(initial_score=0.5), rounds=3)
    gone = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in tombola.maskable(model).items()}
    for round_ in search:
        run = trained(search, round_)
        for name, score in run.scores.items():
            assert (score[gone[name]] == -torch.inf).all()
            gone[name] |= score < 0.5
        masks = round_.ticket().masks
        assert not any((mask & (run.scores[name] == -torch.inf)).any() for name, mask in masks.items())
    assert all(0 < int(mask.sum()) < mask.numel() for mask in gone.values())


def test_each_round_draws_its_own_masks() -> None:
    model = NET.model()
    seen = []
    search = search_of(model, StochasticSparsification(initial_score=0.5, score_optimizer=still))
    for round_ in search:
        run = trained(search, round_)
        seen.append(run.masks)
        round_.ticket()
    assert len({masks.digest() for masks in seen}) == 3


def still(groups: Any) -> Optimizer:
    return SGD(groups, lr=0.0)


# ---- what is counted and written down


def test_steps_and_epochs_spent() -> None:
    model = NET.model()
    search = search_of(model, IMP(), rounds=2, steps_per_epoch=2)
    assert (search.steps_spent, search.epochs_spent) == (0, 0.0)
    seen = []
    for round_ in search:
        run = trained(search, round_, steps=3)
        seen.append((search.steps_spent, search.epochs_spent, round_.steps_done, run.step))
        ticket = round_.ticket()
        assert ticket.provenance["steps_spent"] == search.steps_spent
        train(model, SGD(model.parameters(), lr=0.1), NET, range(2))  # the user's own steps are the user's own
    assert seen == [(3, 1.5, 3, 3), (6, 3.0, 3, 3)]
    assert (search.steps_spent, search.epochs_spent) == (6, 3.0)


def test_provenance() -> None:
    model = NET.model()
    about = {"data": "noise", "tags": [1, None, {"deep": True}]}
    search = search_of(model, IMP(keep=0.6), rounds=2, about=about)
    ticket = tickets_of(search)[1]
    sizes = {"0.weight": 72, "4.weight": 180}
    assert json.loads(json.dumps(ticket.provenance)) == {
        "method": {"name": "IMP", "keep": 0.6, "scope": "global", "rewind": True},
        "round": 2,
        "rounds": 2,
        "seed": 3,
        "rewind_step": 2,
        "steps": 4,
        "steps_spent": 8,
        "undecided": 0.0,
        "density": 91 / 252,  # round(0.6 · round(0.6 · 252))
        "layers": {name: kept / sizes[name] for name, kept in ticket.masks.counts().items()},
        "model": "Sequential",
        "versions": {
            "tombola": tombola.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "data": "noise",
        "tags": [1, None, {"deep": True}],
    }


def test_provenance_names_every_setting_of_the_method() -> None:
    model = NET.model()
    ticket = tickets_of(search_of(model, CS(score_optimizer=still, penalty=0.5), rounds=1))[0]
    assert ticket.provenance["method"] == {
        "name": "ContinuousSparsification",
        "initial_score": 0.0,
        "penalty": 0.5,
        "penalty_on": "sum",
        "final_temperature": 200.0,
        "anneal": "step",
        "scale": "none",
        "round_rule": "paper",
        "rewind": False,
        "density": None,
        "harden_at": None,
        "train_weights": True,
        "score_optimizer": f"{__name__}.still",
    }


def test_selected_and_wrapped() -> None:
    model = NET.model()
    wrapped = torch.compile(model, backend="eager")
    ticket = tickets_of(search_of(wrapped, IMP(keep=0.5), select=nn.Linear, rounds=1))[0]
    assert ticket.masks.counts() == {"4.weight": 90}
    assert set(ticket.start) == set(model.state_dict())
    assert ticket.provenance["model"] == "Sequential"


# ---- the user's freedom


@every_method
def test_between_rounds_the_model_is_the_users(name: str) -> None:
    ends = []
    for careless in (False, True):
        model = NET.model()
        found = []
        search = search_of(model, METHODS[name])
        for round_ in search:
            trained(search, round_)
            found.append(round_.ticket())
            assert round_.ticket() is found[-1]
            if careless:
                masks = found[-1].restore(model)
                optimizer = SGD(model.parameters(), lr=0.3)
                run = tombola.attach(model, optimizer, Fixed(masks), steps=2)
                train(model, optimizer, NET, range(2))
                run.detach()
                with torch.no_grad():
                    for tensor in model.state_dict().values():
                        tensor.fill_(7)
                for tensor in found[-1].start.values():
                    tensor.zero_()
        ends.append([[dict(t.masks), json.dumps(t.provenance)] for t in found])
    assert not differ(*ends)


@every_method
def test_rounds_without_asking_for_tickets(name: str) -> None:
    model, twin = NET.model(), NET.model()
    expected = tickets_of(search_of(model, METHODS[name]))
    search = search_of(twin, METHODS[name])
    for round_ in search:
        trained(search, round_)
    assert not differ(contents([round_.ticket()]), contents(expected[-1:]))
    assert not hooks_of(twin, optimizer_of(twin))
    assert list(search) == []  # all rounds are done


@every_method
def test_the_model_is_plain_after_a_round(name: str) -> None:
    """With the trained weights under the masks of the round: the ticket's, or those that IMP trained under."""
    model = NET.model()
    search = search_of(model, METHODS[name], rounds=2)
    for round_ in search:
        run = trained(search, round_)
        masks, weights = run.masks, run.weights
        round_.ticket()
        assert not hooks_of(model, run.optimizer)
        for layer, mask in masks.items():
            weight = model.get_parameter(layer).detach()
            assert not differ(weight, weights[layer].masked_fill(~mask, 0))


@every_method
def test_a_round_that_was_given_up_begins_anew(name: str) -> None:
    model, twin = NET.model(), NET.model()
    expected = tickets_of(search_of(model, METHODS[name]))
    search = search_of(twin, METHODS[name])
    found = []
    for cut in (3, 4):  # at the rewind point and behind it
        for round_ in search:
            optimizer = optimizer_of(twin)
            round_.attach(optimizer, steps=STEPS)
            train(twin, optimizer, NET, range(70, 70 + cut - len(found)))  # other batches
            break
        for round_ in search:
            trained(search, round_)
            found.append(round_.ticket())
            break
    found += tickets_of(search)
    assert not differ(contents(found), contents(expected))


def test_a_round_has_one_attachment() -> None:
    model = NET.model()
    search = search_of(model, CS())
    round_ = next(iter(search))
    trained(search, round_)
    before = copied(model.state_dict())
    with pytest.raises(RuntimeError, match=r"round 1 is attached already; .* iterate over the search anew"):
        round_.attach(optimizer_of(model), steps=STEPS)
    assert not differ(model.state_dict(), before)


# ---- interrupting and continuing


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


Saved = dict[str, Any]


def stopped(method: Any, at: tuple[int, int]) -> tuple[list[Ticket], Saved]:
    """A search that is stopped in round ``at[0]`` after ``at[1]`` steps, or, with STEPS + 1, after its ticket."""
    model = NET.model()
    search = search_of(model, method)
    found: list[Ticket] = []
    for round_ in search:
        optimizer = optimizer_of(model)
        round_.attach(optimizer, steps=STEPS)
        begin = 10 * round_.index
        if round_.index < at[0]:
            train(model, optimizer, NET, range(begin, begin + STEPS))
            found.append(round_.ticket())
            continue
        train(model, optimizer, NET, range(begin, begin + min(at[1], STEPS)))
        if at[1] > STEPS:
            found.append(round_.ticket())
        state = {"search": search.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return found, through_a_file(state)
    raise AssertionError


def gone_on(method: Any, at: tuple[int, int], saved: Saved) -> list[Ticket]:
    model = NET.model(seed=9)  # as it is in a new process, whatever its weights
    search = search_of(model, method)
    search.load_state_dict(saved["search"])
    found: list[Ticket] = []
    for round_ in search:
        optimizer = optimizer_of(model)
        run = round_.attach(optimizer, steps=STEPS)
        done = 0
        if not found and at[1] <= STEPS:
            assert round_.index == at[0]
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            done = at[1]
        assert run.step == done
        begin = 10 * round_.index
        train(model, optimizer, NET, range(begin + done, begin + STEPS))
        found.append(round_.ticket())
    return found


@cache
def never_stopped(name: str) -> list[Any]:
    return contents(tickets_of(search_of(NET.model(), METHODS[name])))


@every_method
@pytest.mark.parametrize(
    "at",
    [
        pytest.param((index, step), marks=[] if index == 2 or step in (0, 1, STEPS + 1) else pytest.mark.slow)
        for index in (1, 2, 3) for step in range(STEPS + 2)
    ],
)  # fmt: skip
def test_going_on_equals_never_having_stopped(name: str, at: tuple[int, int]) -> None:
    found, saved = stopped(METHODS[name], at)
    found += gone_on(METHODS[name], at, saved)
    assert [ticket.provenance["round"] for ticket in found] == [1, 2, 3]
    assert not differ(contents(found), never_stopped(name))


def test_a_state_that_was_loaded_can_be_saved_again_before_the_round_is_attached() -> None:
    at = (2, 3)
    _, saved = stopped(METHODS["cs"], at)
    search = search_of(NET.model(), METHODS["cs"])
    search.load_state_dict(saved["search"])
    assert search.steps_spent == STEPS
    again = through_a_file(search.state_dict())
    assert not differ(again, saved["search"])


def test_a_state_is_a_snapshot() -> None:
    model = NET.model()
    search = search_of(model, METHODS["cs"])
    states: list[tuple[Any, Any]] = []
    for round_ in search:
        optimizer = optimizer_of(model)
        run = round_.attach(optimizer, steps=STEPS)
        run.on_step(lambda run: states.append((state := search.state_dict(), copied(state))))
        train(model, optimizer, NET, range(STEPS))
    for state, copy in states:
        assert not differ(state, copy)


CHANGES: dict[str, Callable[[Saved], object]] = {
    "no start behind the first round": lambda s: s.update(start=None),
    "no scores behind the first round": lambda s: s.update(scores=None),
    "NaN in the beginning": lambda s: s["begin"]["1.running_mean"].fill_(torch.nan),
    "a score of infinity": lambda s: s["scores"]["0.weight"].fill_(torch.inf),
    "another type": lambda s: s["begin"].update({"1.bias": torch.ones(4).double()}),
    "layers in another order": lambda s: s.update(masks=dict(reversed(s["masks"].items()))),
    "bits behind the end": lambda s: s["masks"]["4.weight"].bitwise_or_(1),
    "a mask of text": lambda s: s["masks"].update({"0.weight": "1"}),
    "steps of text": lambda s: s.update(steps_before="4"),
    "steps below 0": lambda s: s.update(steps_before=-1),
    "a round of no number": lambda s: s.update(index=True),
    "a run of numbers": lambda s: s.update(run=[1]),
    "another seed": lambda s: s.update(seed=4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_state_changes_nothing(name: str) -> None:
    _, saved = stopped(METHODS["cs"], (2, 1))
    model = NET.model()
    search = search_of(model, METHODS["cs"])
    before, weights = copied(search.state_dict()), copied(model.state_dict())
    CHANGES[name](saved["search"])
    with pytest.raises(ValueError, match=r"saved|not the state"):
        search.load_state_dict(saved["search"])
    assert not differ(search.state_dict(), before)
    assert not differ(model.state_dict(), weights)
