"""Two ranks, each with half of every batch, train the network that one rank trains on whole batches. Real processes
over gloo; skipped where torch has none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ, loss_of
from table import METHODS, Entry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from zoo import NETS

from tombola import Attachment, Masks

STEPS, RANKS = 5, 2
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo: two ranks cannot be tried here",
)

CASES = {
    f"{name}, {wrapping}": (name, wrapping)
    for name in METHODS
    for wrapping in (("plain", "view") if name in ("fixed", "cs", "ss", "rigl") else ("plain",))
}


def optimizer_of(model: nn.Module, wrapping: str) -> Optimizer:
    if wrapping == "view":
        return SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return AdamW(model.parameters(), lr=0.02)


def trained(case: str, rank: int, ranks: int) -> dict[str, Any]:
    """What one rank has at the end of its training; the only one of one rank is not wrapped."""
    name, wrapping = CASES[case]
    entry: Entry = METHODS[name]
    net = NETS["gru"]
    plain = net.model().double()
    model: nn.Module = plain
    if ranks > 1:
        model = DistributedDataParallel(plain, gradient_as_bucket_view=wrapping == "view")
    optimizer = optimizer_of(plain, wrapping)
    run: Attachment = entry.attach(model, optimizer, net, STEPS)
    drawn = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, net.batch(step).chunk(ranks)[rank]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        drawn.append(dict(run.masks))
    state = {"model": dict(plain.state_dict()), "scores": run.scores, "weights": run.weights, "masks": drawn}
    run.detach()
    return state | {"ticket": {key: value.clone() for key, value in plain.state_dict().items()}}


def be_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{Path(folder) / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    torch.save({case: trained(case, rank, RANKS) for case in CASES}, Path(folder) / f"rank {rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has at the end of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(be_rank, args=(str(folder),), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank {rank}", weights_only=True) for rank in range(RANKS)]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(case: str, ranks: list[dict[str, Any]]) -> None:
    one, other = (rank[case] for rank in ranks)
    assert not differ(one, other)  # the ranks agree bit by bit, in masks, scores and weights
    alone = trained(case, 0, 1)
    for step, (mine, theirs) in enumerate(zip(alone["masks"], one["masks"], strict=True)):
        assert Masks(mine) == Masks(theirs), f"step {step}"
    for part in ("model", "scores", "weights", "ticket"):
        close(alone[part], one[part])
    assert 0 < Masks(alone["masks"][-1]).density < 1


def test_the_ranks_see_different_samples(ranks: list[dict[str, Any]]) -> None:
    """Else the test above could not fail: half a batch alone leads elsewhere."""
    half = trained("fixed, plain", 0, 1)
    net = NETS["gru"]
    assert not torch.equal(net.batch(0).chunk(RANKS)[0], net.batch(0).chunk(RANKS)[1])
    model = net.model().double()
    optimizer = optimizer_of(model, "plain")
    METHODS["fixed"].attach(model, optimizer, net, STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, net.batch(step).chunk(RANKS)[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert max(float((model.state_dict()[n] - t).abs().max()) for n, t in half["model"].items()) > 1e-4
