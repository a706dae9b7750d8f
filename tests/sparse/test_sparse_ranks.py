"""Sparse layers on two ranks: the gradients of one that has the whole batch, and moves that all ranks make alike."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import same
from reference import draws
from test_sparse_attach import METHODS, STEPS, batch, sparse
from together import spawn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import tombola
from tombola.sparse import SparseConv2d, SparseLinear

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo: two ranks cannot be tried here",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    return spawn(2, tmp_path_factory.mktemp("ranks"), {"gradients": gradients_of_rank, "moves": moves_of_rank})


# ---- gradients


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=draws(9))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Everything in it, also what is not in its state dict."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def pair(seed: int) -> nn.Module:
    """Whose positions and values depend on the seed."""
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseConv2d(3, 6, 3, padding=1, density=0.5),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(6 * 8 * 8, 5, density=0.1),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def gradients_of_rank(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    model = pair(seed=rank)
    wrapped = DistributedDataParallel(model)  # which has to be there until the gradients are
    wrapped(images(8).chunk(ranks)[rank]).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"state": state_of(model), "gradients": gradients}


def test_two_ranks_are_one(two: list[dict[str, Any]]) -> None:
    """Each with half of a batch has the gradients of one with the whole, and the first one's positions and values."""
    one, other = (rank["gradients"] for rank in two)
    alone = pair(seed=0)
    alone(images(8)).square().mean().backward()
    assert not same(state_of(alone), state_of(pair(seed=1)))
    for part in ("state", "gradients"):
        assert same(one[part], other[part])
    assert same(one["state"], state_of(alone))
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(one["gradients"][name], parameter.grad, msg=name)


# ---- moves


def moved(rank: int, ranks: int, method: str) -> list[str]:
    model = sparse("conv")
    used: nn.Module = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = tombola.attach(used, optimizer, METHODS[method], steps=STEPS)
    found = []
    for step in range(23):
        x, y = (tensor.chunk(ranks)[rank] for tensor in batch("conv", step))
        optimizer.zero_grad()
        cross_entropy(used(x), y).backward()
        optimizer.step()
        found.append(run.masks.digest())
    return found


def moves_of_rank(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {method: moved(rank, ranks, method) for method in ("rigl", "set")}
    model = sparse("mlp")
    wrapped, optimizer = DistributedDataParallel(model), SGD(model.parameters(), lr=0.1)
    try:
        tombola.attach(wrapped, optimizer, METHODS["granet"], steps=10)
    except ValueError as error:
        found["granet"] = str(error)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    found["warnings"] = [str(warning.message) for warning in heard]
    return found


def test_two_ranks_move_as_one(two: list[dict[str, Any]]) -> None:
    one, other = (rank["moves"] for rank in two)
    for method in ("rigl", "set"):
        assert one[method] == other[method]
        assert one[method] == moved(0, 1, method)
        assert len(set(one[method])) >= 2
    assert "DistributedDataParallel cannot follow" in one["granet"]
    assert any("attach to the wrapped model" in text for text in one["warnings"])
