"""Training as one of several ranks that train one model, and as the only one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from loop import loss_of
from table import METHODS, Entry, attached
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer
from zoo import NETS, Net

from tombola import RigL, Static, patterns, uniform
from tombola.sharded import whole

STEPS = 5
OVERFLOW = 2  # the step in which the loss of one rank overflows, if it is scaled
ENTRIES = METHODS | {
    "static N:M": Entry(attached(Static(density=0.5, budget=uniform, pattern=patterns.NM(1, 2)))),
    "srigl": Entry(attached(RigL(density=0.3, every=1, budget=uniform, pattern=patterns.ConstantFanIn(ablate=0.3)))),
}


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        method: of ``ENTRIES``.
        model: data-parallel, the same with gradients in buckets, sharded, or two copies that are.
        how: ``"whole"`` batches; each in two parts that ``"accumulate"``, and clipped by their norm; or ``"scaled"``
            in bfloat16, with an overflow in the last rank's part of one batch.
    """

    method: str
    model: Literal["ddp", "ddp view", "sharded", "hybrid"] = "ddp"
    how: Literal["whole", "accumulate", "scaled"] = "whole"

    @property
    def net(self) -> Net:
        return NETS["mlp" if self.model in ("sharded", "hybrid") or self.how == "scaled" else "gru"]

    def build(self) -> nn.Module:
        return self.net.model() if self.how == "scaled" else self.net.model().double()

    def optimizer(self, model: nn.Module) -> Optimizer:
        if self.model == "ddp view":
            return SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        return AdamW(model.parameters(), lr=0.02, fused=self.how == "scaled")


def shard(model: nn.Module, *, copies: int = 1) -> None:
    """Shard an MLP layer by layer, over all ranks or over those of each copy."""
    mesh = None
    if copies > 1:
        ranks = torch.distributed.get_world_size()
        mesh = init_device_mesh("cpu", (copies, ranks // copies), mesh_dim_names=("copies", "parts"))
    for layer in model.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def trained(case: Case, rank: int, ranks: int, *, world: int = 2, half: bool = False) -> dict[str, Any]:
    """What one rank has at the end; the only one of one takes the parts of ``world`` ranks, or the first ``half``."""
    plain = case.build()
    model = plain
    if ranks > 1 and case.model in ("sharded", "hybrid"):
        shard(plain, copies=2 if case.model == "hybrid" else 1)
    elif ranks > 1:
        model = DistributedDataParallel(plain, gradient_as_bucket_view=case.model == "ddp view")
    optimizer = case.optimizer(plain)
    run = ENTRIES[case.method].attach(model, optimizer, case.net, STEPS)
    drawn = [dict(run.masks)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=case.how == "scaled")
    for step in range(STEPS + (case.how == "scaled")):
        optimizer.zero_grad()
        parts = 2 if case.how == "accumulate" and ranks > 1 else world if case.how == "scaled" and ranks == 1 else 1
        batch = case.net.batch(step).chunk(2 if half else ranks)[rank].chunk(parts)
        for index, x in enumerate(batch):
            last = index == parts - 1
            with synchronised(model, last or ranks == 1), torch.autocast("cpu", enabled=case.how == "scaled"):
                loss = loss_of(model, x) / parts
            if case.how == "scaled" and step == OVERFLOW and last and rank == ranks - 1:
                loss = loss * torch.inf
            with synchronised(model, last or ranks == 1):
                scaler.scale(loss).backward()
        if case.how == "accumulate":
            clip_grad_norm_(plain.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        drawn.append(dict(run.masks))
    assert run.step == STEPS
    found = {"masks": drawn, "scores": gathered(run.scores), "weights": gathered(run.weights)}
    found["density"] = run.density
    run.detach()
    return found | {"model": gathered(plain.state_dict())}


def synchronised(model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[None]:
    """Whether the ranks reduce gradients in the backward passes inside."""
    if isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext() if sync else model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(sync)
    return contextlib.nullcontext()


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies of what may be sharded."""
    return {name: whole(tensor).detach().clone() for name, tensor in tensors.items()}


def as_launched(rank: int, ranks: int) -> None:
    """What torchrun tells a process about itself."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "ACCELERATE_USE_CPU": "true"}


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Inside it Accelerate has FSDP on the CPU too, as it is; it looks for it on accelerators alone otherwise."""
    from accelerate.state import AcceleratorState, DistributedType

    made = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP  # else it is that of the CPU again, with every call

    AcceleratorState._reset_state(True)
    AcceleratorState.__init__ = init
    try:
        yield
    finally:
        AcceleratorState.__init__ = made
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # which Accelerate leaves
        AcceleratorState._reset_state(True)


Job = Callable[[int, int, Path], Any]


def be_rank(rank: int, ranks: int, folder: str, jobs: dict[str, Job]) -> None:
    """Do all jobs as one of several ranks, and leave what they found in a file."""
    torch.set_num_threads(1)
    meeting = f"file://{Path(folder) / 'meeting'}"
    wait = timedelta(seconds=100)  # a rank that waits in vain fails
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=wait)
    torch.save({name: job(rank, ranks, Path(folder)) for name, job in jobs.items()}, Path(folder) / f"rank {rank}")
    torch.distributed.destroy_process_group()


def spawn(ranks: int, folder: Path, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """What each of so many ranks found."""
    folder.mkdir(exist_ok=True)
    torch.multiprocessing.spawn(be_rank, args=(ranks, str(folder), jobs), nprocs=ranks)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank {rank}", weights_only=True) for rank in range(ranks)]
