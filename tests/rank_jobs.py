"""What ranks do in one process group after another, besides training: JOBS. Every rank does every job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from loop import loss_of
from table import half
from together import ENTRIES, Job, shard
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam
from zoo import NETS

import tombola
from tombola import IMP, ContinuousSparsification, Fixed, Masks, RigL, Static, Ticket, TicketSearch, checkpoint
from tombola.masks import largest, largest_of
from tombola.methods.density import _sample, steer
from tombola.methods.protocol import Moment
from tombola.sharded import drawn, greatest, local, part_of, total, whole

NET = NETS["mlp"]


def message(job: Callable[[], object]) -> str:
    """Of the error that ``job`` raises."""
    try:
        job()
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        return str(error)
    return "no error"


def ddp() -> DistributedDataParallel:
    return DistributedDataParallel(NET.model().double())


def sharded() -> nn.Module:
    model = NET.model().double()
    shard(model)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, update: bool = True) -> None:
    optimizer.zero_grad()
    loss_of(model, NET.batch(0)).backward()  # type: ignore[no-untyped-call]
    if update:
        optimizer.step()


def attach(model: nn.Module, method: Any, *, seed: int = 0) -> tuple[tombola.Attachment, SGD]:
    optimizer = SGD(model.parameters(), lr=0.1)
    return tombola.attach(model, optimizer, method, steps=5, seed=seed), optimizer


# ---- selections


def selections(rank: int, ranks: int, folder: Path) -> str:
    """Draws and selections of sharded tensors are those of whole ones, bit by bit."""
    mesh = init_device_mesh("cpu", (ranks,))
    for seed in range(30):
        torch.manual_seed(seed)
        kind = (torch.float32, torch.float64, torch.bfloat16)[seed % 3]
        layers = [torch.randn(int(torch.randint(1, 8, ())), 5).to(kind) for _ in range(3)]
        if seed % 2:  # with many that are equal, be it with another sign
            layers = [layer.round() * 0.0 if index == 1 else layer.round() for index, layer in enumerate(layers)]
        spread = [distribute_tensor(layer, mesh, [Shard(0)]) for layer in layers[:2]]
        mixed = dict(enumerate([*spread, layers[2]]))
        size = sum(layer.numel() for layer in layers)
        for keep in (0, 1, size // 3, size):
            for with_generator in (False, True):
                one, other = (torch.Generator().manual_seed(seed) if with_generator else None for _ in range(2))
                alone = largest_of(dict(enumerate(layers)), keep, generator=one)  # type: ignore[arg-type]
                here = largest_of(mixed, keep, generator=other)  # type: ignore[arg-type]
                assert all(torch.equal(alone[index], whole(here[index])) for index in alone), (seed, keep)
                if one is not None and other is not None:
                    assert torch.equal(one.get_state(), other.get_state())
        for layer, part in zip(layers, spread, strict=False):
            assert torch.equal(largest(layer, 2), whole(largest(part, 2)))
            assert float(greatest(part)) == float(layer.max())
            assert int(total(part > 0)) == int((layer > 0).sum())
            one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
            assert torch.equal(drawn(layer, one), whole(drawn(part, other)))
            assert torch.equal(one.get_state(), other.get_state())
    steered(mesh)
    return "all alike"


def steered(mesh: Any) -> None:
    """Density control of more scores than it looks at one by one."""
    torch.manual_seed(0)
    alone = {"a": torch.randn(301, 500), "b": torch.randn(7, 3000)}
    spread = {name: distribute_tensor(score, mesh, [Shard(0)]) for name, score in alone.items()}
    for phase in (0, 1, 5):
        assert torch.equal(_sample(list(alone.values()), phase), _sample(list(spread.values()), phase))
    for at in (3, 7, 10):
        moment = Moment(step=at, steps=10, steps_per_epoch=None, weights=0)
        steer(alone, 0.1, moment)
        steer(spread, 0.1, moment)
        assert all(torch.equal(score, whole(spread[name])) for name, score in alone.items())


# ---- differences


def seeds(rank: int, ranks: int, folder: Path) -> str:
    return message(lambda: attach(ddp(), Static(density=0.5), seed=rank))


def methods(rank: int, ranks: int, folder: Path) -> str:
    model = ddp()
    masks = half(model)
    return message(lambda: attach(model, Fixed(masks if rank == 0 else masks.shuffled(torch.Generator()))))


def models(rank: int, ranks: int, folder: Path) -> str:
    """Of which each rank believes that it is sharded, so that DDP does not look."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10 + rank), nn.Linear(10 + rank, 2))
    return message(lambda: attach(fully_shard(model), Static(density=0.5)))  # type: ignore[arg-type]


def weights(rank: int, ranks: int, folder: Path) -> str:
    """A start that only the first rank loads, after the model was wrapped."""
    model = ddp()
    if rank == 0:
        torch.nn.init.ones_(model.module[2].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = message(lambda: attach(model, RigL(density=0.5)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return found


def gradients(rank: int, ranks: int, folder: Path) -> str:
    """That somebody forgot to reduce."""
    model = ddp()
    _, optimizer = attach(model, RigL(density=0.3, every=1, drop_fraction=0.9))
    step(model, optimizer, update=False)
    if rank == 1:
        assert isinstance(model.module[0].weight.grad, Tensor)
        model.module[0].weight.grad.copy_(torch.randn(10, 6))
    return message(optimizer.step)


def generators(rank: int, ranks: int, folder: Path) -> str:
    return _generators(ddp(), rank)


def generators_sharded(rank: int, ranks: int, folder: Path) -> str:
    return _generators(sharded(), rank)


def _generators(model: nn.Module, rank: int) -> str:
    run, optimizer = attach(model, RigL(density=0.3, every=1))
    step(model, optimizer)
    if rank == 1:
        torch.rand(1, generator=run._state.generator)  # type: ignore[union-attr]
    step(model, optimizer)  # between moves nobody looks
    return message(lambda: step(model, optimizer))


def states(rank: int, ranks: int, folder: Path) -> str:
    """Of other runs, that each rank goes on from."""
    net = NET.model().double()
    own, optimizer = attach(net, Fixed(half(net).shuffled(torch.Generator().manual_seed(rank))))
    for _ in range(2):
        step(net, optimizer)
    state = own.state_dict() | {"method": {"name": "Fixed"}}
    model = ddp()
    run, optimizer = attach(model, Fixed(half(model)))
    state["method"] = run.state_dict()["method"]
    run.load_state_dict(state)
    return message(lambda: step(model, optimizer))


def sharded_twice(rank: int, ranks: int, folder: Path) -> str:
    """Attached first and sharded after."""
    model = NET.model().double()
    _, optimizer = attach(model, Static(density=0.5))
    shard(model)
    return message(lambda: step(model, optimizer))


def columns(rank: int, ranks: int, folder: Path) -> str:
    model = NET.model()
    fully_shard(model, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    return message(lambda: attach(model, Static(density=0.5)))


def search(rank: int, ranks: int, folder: Path) -> str:
    return message(lambda: TicketSearch(sharded(), IMP(), rounds=2))


def first_form(rank: int, ranks: int, folder: Path) -> str:
    model = FullyShardedDataParallel(NET.model(), device_id=torch.device("cpu"), use_orig_params=True)
    return message(lambda: attach(model, Static(density=0.5)))


class Plain:
    """A method that knows nothing of shards."""

    def start(self, parameters: dict[str, Tensor], *, generator: torch.Generator) -> Masks:
        return Masks({name: parameter > 0 for name, parameter in parameters.items()})


def other_method(rank: int, ranks: int, folder: Path) -> str:
    return message(lambda: attach(sharded(), Plain()))


def not_finite(rank: int, ranks: int, folder: Path) -> str:
    model = sharded()
    _, optimizer = attach(model, Static(density=0.5))
    step(model, optimizer, update=False)
    if rank == 1:
        model[0].weight.grad.to_local().fill_(torch.nan)  # type: ignore[index,union-attr,operator]
    return message(optimizer.step)


# ---- looking at a sharded run


def hard(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    model = sharded()
    run, optimizer = attach(model, ContinuousSparsification(penalty=0.3))
    step(model, optimizer)
    shown = repr(run) if rank == 0 else "Attachment(ContinuousSparsification, step 1 of 5)"  # one rank may ask alone
    x = NET.batch(7).double()
    with torch.no_grad():
        before = model(x).clone()
        expected = NET.model().double()
        ticket = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        for name, mask in run.masks.items():
            ticket[name] = whole(run.weights[name]) * mask
        expected.load_state_dict(ticket)
        with run.hard():
            inside = model(x).clone()
        after = model(x).clone()
        return {"before": before, "inside": inside, "after": after, "expected": expected(x), "repr": shown}


def shards(rank: int, ranks: int, folder: Path) -> dict[str, tuple[int, ...]]:
    model = sharded()
    optimizer = Adam(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, ContinuousSparsification(), steps=5)
    step(model, optimizer)
    momentum = run.state_dict()["soft"]["score_optimizer"]["state"][0]["exp_avg"]
    assert run.scores["0.weight"].shape == momentum.shape == (10, 6)
    found = {"scores": run.scores["0.weight"], "momentum": momentum}
    return {name: tuple(tensor.to_local().shape) for name, tensor in found.items()}  # type: ignore[operator]


def restored(rank: int, ranks: int, folder: Path) -> str:
    start = NET.model(seed=3).double()
    ticket = Ticket(half(start), start.state_dict())
    model = sharded()
    masks = ticket.restore(model)
    run, _ = attach(model, Fixed(masks))
    assert all(torch.equal(whole(t), ticket.start[name]) for name, t in model.state_dict().items())
    assert run.masks == ticket.masks
    return "the ticket"


# ---- going on


RESUMED = ("cs density", "cs hardened", "ss", "rigl mean", "snfs")
CUT = 3  # of 5 steps


def begun(name: str, *, sharding: bool) -> tuple[nn.Module, torch.optim.Optimizer, tombola.Attachment]:
    model = NET.model().double()
    if sharding:
        shard(model)
    optimizer = SGD(model.parameters(), lr=0.05)
    return model, optimizer, ENTRIES[name].attach(model, optimizer, NET, 5)


def go_on(
    model: nn.Module, optimizer: torch.optim.Optimizer, run: tombola.Attachment, steps: range, rank: int, ranks: int
) -> dict[str, Any]:
    """Some steps; what is there then."""
    for at in steps:
        optimizer.zero_grad()
        loss_of(model, NET.batch(at).chunk(ranks)[rank]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    masks = dict(run.masks)
    run.detach()
    return {"masks": masks, "model": {name: whole(t).clone() for name, t in model.state_dict().items()}}


def save(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Train, save in the midst in both forms, go on."""
    found = {}
    for name in RESUMED:
        model, optimizer, run = begun(name, sharding=True)
        go = partial(go_on, model, optimizer, run, rank=rank, ranks=ranks)
        for at in range(CUT):
            optimizer.zero_grad()
            loss_of(model, NET.batch(at).chunk(ranks)[rank]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        full = run.state_dict(full=True)
        dcp.save({"model": model.state_dict(), "run": checkpoint.tensors(run)}, checkpoint_id=folder / f"dcp {name}")
        weights = {key: whole(tensor).clone() for key, tensor in model.state_dict().items()}
        if rank == 0:
            torch.save({"model": weights, "run": full}, folder / f"full {name}")
        found[name] = go(steps=range(CUT, 5))
    return found


def load(rank: int, ranks: int, folder: Path, *, saved: Path, sharding: bool = True) -> dict[str, Any]:
    """Go on from what other ranks saved, in each form."""
    found = {}
    for name in RESUMED:
        model, optimizer, run = begun(name, sharding=sharding)
        state: dict[str, Any] = {"model": model.state_dict(), "run": checkpoint.empty(run, saved / f"dcp {name}")}
        dcp.load(state, checkpoint_id=saved / f"dcp {name}")
        model.load_state_dict(state["model"])
        checkpoint.load(run, state["run"])
        found[f"dcp {name}"] = go_on(model, optimizer, run, range(CUT, 5), rank, ranks)

        model, optimizer, run = begun(name, sharding=sharding)
        state = torch.load(saved / f"full {name}", weights_only=True)
        for key, tensor in model.state_dict().items():
            local(tensor).copy_(part_of(state["model"][key], tensor))
        run.load_state_dict(state["run"])
        found[f"full {name}"] = go_on(model, optimizer, run, range(CUT, 5), rank, ranks)
    return found


def other_mesh(rank: int, ranks: int, folder: Path) -> str:
    """A state whose tensors are sharded over other ranks."""
    model = NET.model().double()
    shard(model, copies=ranks)
    theirs, _ = attach(model, ContinuousSparsification())
    run, _ = attach(sharded(), ContinuousSparsification())
    return message(lambda: run.load_state_dict(theirs.state_dict()))


JOBS: dict[str, Job] = {
    "save": save,
    "other mesh": other_mesh,
    "selections": selections,
    "seeds": seeds,
    "methods": methods,
    "models": models,
    "weights": weights,
    "gradients": gradients,
    "generators": generators,
    "generators, sharded": generators_sharded,
    "states": states,
    "sharded twice": sharded_twice,
    "columns": columns,
    "search": search,
    "first form": first_form,
    "other method": other_method,
    "not finite": not_finite,
    "hard": hard,
    "shards": shards,
    "restored": restored,
}
