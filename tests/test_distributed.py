"""Several ranks, each with its part of every batch, train the network that one rank trains on whole batches. Real
processes over gloo; skipped where torch has none."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ
from rank_jobs import JOBS, RESUMED, begun, load
from table import METHODS
from together import ENTRIES, Case, spawn, trained
from torch import Tensor

from tombola import Masks, checkpoint

pytestmark = [
    pytest.mark.skipif(
        sys.platform == "win32" or not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this torch has no gloo: several ranks cannot be tried here",
    ),
    pytest.mark.filterwarnings("ignore:no weight is left in "),  # in layers as small as the zoo's
]

SHARDABLE = [name for name in ENTRIES if name != "imp"]  # a search keeps whole copies of the model
VARIANTS = ("cs", "cs scaled", "cs mean", "cs supermask", "ss supermask")  # of which others are enough, in short
CASES = [
    *(Case(name) for name in METHODS),
    *(Case(name, "ddp view", "accumulate") for name in ("fixed", "cs", "ss", "rigl")),
    *(Case(name, "ddp", "scaled") for name in ("cs density", "rigl mean", "snip")),
    *(Case(name, "sharded", "accumulate") for name in SHARDABLE if name not in VARIANTS),
    *(Case(name, "sharded", "scaled") for name in ("cs", "rigl")),
]
EVERYTHING = [
    *(Case(name, model, how) for name in METHODS for model in ("ddp", "ddp view") for how in ("accumulate", "scaled")),
    *(Case(name, "sharded", how) for name in SHARDABLE for how in ("whole", "accumulate", "scaled")),
    *(Case(name, "hybrid", "accumulate") for name in SHARDABLE),
]


def run_case(rank: int, ranks: int, folder: Path, *, case: Case) -> dict[str, Any]:
    return trained(case, rank, ranks, world=ranks)


def jobs_of(cases: list[Case]) -> dict[str, Any]:
    return {str(case): partial(run_case, case=case) for case in cases}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    return spawn(2, tmp_path_factory.mktemp("ranks") / "two", jobs_of(CASES) | JOBS)


@pytest.fixture(scope="module")
def folder(two: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they left it."""
    return next(tmp_path_factory.getbasetemp().glob("ranks*")) / "two"


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each of two and of four ranks found, of everything."""
    folder = tmp_path_factory.mktemp("more")
    return {ranks: spawn(ranks, folder / str(ranks), jobs_of(EVERYTHING)) for ranks in (2, 4)}


def close(one: dict[str, Tensor], other: dict[str, Tensor], case: Case) -> None:
    assert one.keys() == other.keys()
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if case.how == "scaled" else {"rtol": 1e-9, "atol": 1e-11}
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def check(case: Case, ranks: list[dict[str, Any]]) -> None:
    found = [rank[str(case)] for rank in ranks]
    assert not any(differ(found[0], other) for other in found[1:])  # bit by bit, in masks, scores and weights
    alone = trained(case, 0, 1, world=len(ranks))
    for step, (mine, theirs) in enumerate(zip(alone["masks"], found[0]["masks"], strict=True)):
        assert Masks(mine) == Masks(theirs), f"step {step}"
    for part in ("model", "scores", "weights"):
        close(alone[part], found[0][part], case)
    assert alone["density"] == found[0]["density"] == Masks(found[0]["masks"][-1]).density
    assert 0 < alone["density"] < 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_are_one(case: Case, two: list[dict[str, Any]]) -> None:
    check(case, two)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_ranks_are_one(case: Case, ranks: int, more: dict[int, list[dict[str, Any]]]) -> None:
    check(case, more[ranks])


def test_the_ranks_see_different_samples(two: list[dict[str, Any]]) -> None:
    """Else the tests above could not fail: half of each batch alone leads elsewhere."""
    case = Case("fixed")
    half = trained(case, 0, 1, half=True)["model"]
    assert max(float((two[0][str(case)]["model"][name] - tensor).abs().max()) for name, tensor in half.items()) > 1e-4


# ---- selections


def test_selections_do_not_depend_on_the_ranks(two: list[dict[str, Any]]) -> None:
    assert two[0]["selections"] == two[1]["selections"] == "all alike"


# ---- what ranks tell of their differences


@pytest.mark.parametrize(
    ("job", "message"),
    {
        "seeds": "attach: the seed differs between rank 0 and rank 1; give all ranks the same",
        "methods": "attach: the method differs between rank 0 and rank 1",
        "models": "attach: the model, in its masked parameters, differs between rank 0 and rank 1",
        "weights": "attach: the weight of '2.weight' differs between rank 0 and rank 1",
        "gradients": "step 1: the mask of '0.weight' differs between rank 0 and rank 1",
        "generators": "step 3: the state of the random generator differs",
        "generators, sharded": "step 3: the state of the random generator differs",
        "states": "step 2: the mask of '0.weight' differs",
        "sharded twice": "'0.weight' is no longer the model's parameter that attach() was given",
        "columns": "attach: '0.weight' cannot be masked: it lies over the ranks as",
        "search": "TicketSearch: '0.weight' is sharded",
        "first form": "shard the model with torch.distributed.fsdp.fully_shard",
        "other mesh": "save with torch.distributed.checkpoint, which deals out anew, or save state_dict(full=True)",
        "other method": "attach: Plain cannot work on sharded parameters",
    }.items(),
)
def test_differences_stop_the_run(job: str, message: str, two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert message in rank[job], rank[job]


def test_a_broken_gradient_on_one_rank_stops_all(two: list[dict[str, Any]]) -> None:
    mine, other = (rank["not finite"] for rank in two)
    assert "a gradient on another rank is not finite at step 0" in mine
    assert "the gradient of '0.weight' is not finite at step 0" in other


# ---- looking at a sharded run


def test_hard_shows_the_ticket_after_an_evaluation(two: list[dict[str, Any]]) -> None:
    """What was gathered for the evaluation before must not be used again."""
    for rank in two:
        found = rank["hard"]
        torch.testing.assert_close(found["inside"], found["expected"])
        torch.testing.assert_close(found["after"], found["before"])
        assert not torch.equal(found["inside"], found["before"])
        assert found["repr"] == "Attachment(ContinuousSparsification, step 1 of 5)"


def test_scores_are_sharded_like_their_weights(two: list[dict[str, Any]]) -> None:
    assert [rank["shards"] for rank in two] == [{"scores": (5, 6), "momentum": (5, 6)}] * 2


def test_a_ticket_is_restored_into_a_sharded_model(two: list[dict[str, Any]]) -> None:
    assert all(rank["restored"] == "the ticket" for rank in two)


# ---- going on


def check_resumed(found: dict[str, Any], straight: dict[str, Any]) -> None:
    for name in RESUMED:
        for form in ("dcp", "full"):
            mine, other = found[f"{form} {name}"], straight[name]
            assert Masks(mine["masks"]) == Masks(other["masks"]), f"{form} {name}"
            close(mine["model"], other["model"], Case(name))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_goes_on_from_what_two_ranks_saved(two: list[dict[str, Any]], folder: Path) -> None:
    check_resumed(load(0, 1, folder, saved=folder, sharding=False), two[0]["save"])


@pytest.mark.slow
def test_four_ranks_go_on_from_what_two_saved(two: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    for rank in spawn(4, tmp_path / "four", {"load": partial(load, saved=folder)}):
        check_resumed(rank["load"], two[0]["save"])


def test_what_is_no_checkpoint_is_refused(two: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    _, _, run = begun("static", sharding=False)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.empty(run, tmp_path)
    with pytest.raises(ValueError, match="holds no attachment under 'model'"):
        checkpoint.empty(run, folder / "dcp snfs", key="model")
    with pytest.raises(ValueError, match="not the state of an attachment, or damaged"):
        checkpoint.load(run, {"plain": torch.zeros(3, dtype=torch.uint8)})
