"""HF Accelerate and Lightning Fabric wrap model and optimiser: the method works inside what they return. Skipped where
they are not installed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import differ, loss_of
from together import ENTRIES, as_launched, gathered, on_cpu, spawn
from torch import nn
from torch.optim import SGD
from zoo import NETS

import tombola
from tombola import Masks
from tombola.selection import unwrapped
from tombola.sharded import is_sharded

NET = NETS["mlp"]
METHODS = ("cs density", "rigl", "static")
STEPS = 5


def parts_of(step: int, rank: int, ranks: int) -> tuple[torch.Tensor, ...]:
    return NET.batch(step).double().chunk(ranks)[rank].chunk(2)


def result(run: tombola.Attachment, model: nn.Module, drawn: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    assert run.step == STEPS
    run.detach()
    return {"masks": drawn, "model": gathered(unwrapped(model).state_dict())}


def accelerated(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    from accelerate import Accelerator

    as_launched(rank, ranks)
    return with_accelerator(Accelerator(cpu=True, gradient_accumulation_steps=2), rank, ranks)


def accelerated_sharded(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    as_launched(rank, ranks)
    with on_cpu():
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, fsdp_plugin=plugin)
        return with_accelerator(accelerator, rank, ranks, sharded=True)


def with_accelerator(accelerator: Any, rank: int, ranks: int, *, sharded: bool = False) -> dict[str, Any]:
    assert accelerator.num_processes == ranks
    found = {}
    for name in METHODS:
        plain = NET.model().double()
        model, optimizer = accelerator.prepare(plain, SGD(plain.parameters(), lr=0.1, momentum=0.9))
        assert all(is_sharded(parameter) is sharded for parameter in model.parameters())
        run, drawn = ENTRIES[name].attach(model, optimizer, NET, STEPS), []
        for step in range(STEPS):
            for x in parts_of(step, rank, ranks):
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model, x))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.05)
                    optimizer.step()
                    optimizer.zero_grad()
            drawn.append(dict(run.masks))
        found[name] = result(run, model, drawn)
        accelerator.free_memory()  # of the model, for it knows one at a time
    return found


def in_fabric(rank: int, ranks: int, folder: Path, *, strategy: str) -> dict[str, Any]:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    as_launched(rank, ranks)
    chosen: Any = strategy
    if strategy == "fsdp2":
        chosen = ModelParallelStrategy(parallelize_fn=sharded, data_parallel_size=ranks, tensor_parallel_size=1)
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy=chosen)
    fabric.launch()
    found = {}
    for name in METHODS:
        plain = NET.model().double()
        if strategy == "fsdp2":
            model = fabric.setup_module(plain)
            optimizer = fabric.setup_optimizers(SGD(model.parameters(), lr=0.1, momentum=0.9))
        else:
            model, optimizer = fabric.setup(plain, SGD(plain.parameters(), lr=0.1, momentum=0.9))
        run, drawn = ENTRIES[name].attach(model, optimizer, NET, STEPS), []
        for step in range(STEPS):
            for index, x in enumerate(parts_of(step, rank, ranks)):
                with fabric.no_backward_sync(model, enabled=index == 0):
                    fabric.backward(loss_of(model, x) / 2)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            drawn.append(dict(run.masks))
        found[name] = result(run, model, drawn)
    return found


def sharded(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh["data_parallel"])


def alone(name: str) -> dict[str, Any]:
    model = NET.model().double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    run, drawn = ENTRIES[name].attach(model, optimizer, NET, STEPS), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, NET.batch(step)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        drawn.append(dict(run.masks))
    return result(run, model, drawn)


JOBS = {
    "accelerate": ("accelerate", accelerated),
    "accelerate fsdp2": ("accelerate", accelerated_sharded),
    "fabric ddp": ("lightning", partial(in_fabric, strategy="ddp")),
    "fabric fsdp2": ("lightning", partial(in_fabric, strategy="fsdp2")),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", JOBS)
def test_what_a_launcher_returns_can_be_attached_to(launcher: str, tmp_path: Path) -> None:
    package, job = JOBS[launcher]
    pytest.importorskip(package)
    found = spawn(2, tmp_path / "two", {"it": job})
    assert not differ(found[0], found[1])
    for name in METHODS:
        mine, theirs = alone(name), found[0]["it"][name]
        assert all(Masks(a) == Masks(b) for a, b in zip(mine["masks"], theirs["masks"], strict=True)), name
        for key, tensor in mine["model"].items():
            torch.testing.assert_close(tensor, theirs["model"][key], rtol=1e-9, atol=1e-11)
