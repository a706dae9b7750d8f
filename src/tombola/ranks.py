"""The ranks that train one model together, and whether they agree. Part of ``attach``.

Ranks that draw with other seeds, or hold other masks or weights, would drift apart without a word. So they compare
64-bit fingerprints: of all arguments, masks and weights when a method is attached, of masks and the generator at each
move. That is one exchange of a few numbers for each layer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from tombola.hard import mask_of
from tombola.selection import wrappers
from tombola.sharded import is_sharded, local

_WRAPPERS = (
    ("accelerate.optimizer", "AcceleratedOptimizer"),
    ("lightning.fabric.wrappers", "_FabricOptimizer"),
    ("lightning_fabric.wrappers", "_FabricOptimizer"),
)
_CHUNK = 2**20
_ALIKE = "give all ranks the same model, settings, seed and masks, and let them reduce gradients before each step"
_ODD = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴/φ: what multiples of it begin with looks random


class Marked(Protocol):
    """The state of a method, as far as ranks compare it: see :meth:`Ranks.agree`."""

    def marks(self) -> Mapping[str, object]:
        """What all ranks must have alike, by what it is called."""

    def parts(self) -> Collection[str]:
        """Those of the :meth:`marks` that are about a part that this rank has."""


class Ranks:
    """The ranks that hold or share the parameters of ``model``; none if it is neither DDP nor sharded.

    Args:
        model: as it is trained, with its wrappers.
        copies: the process group whose ranks hold copies of it, where nobody shows the wrapper that says so.

    Raises:
        TypeError: it is sharded by the first form of FSDP.
    """

    def __init__(self, model: nn.Module, *, copies: Any = None) -> None:
        groups = [w.process_group for w in wrappers(model) if isinstance(w, nn.parallel.DistributedDataParallel)]
        refuse_flattened(model)
        fsdp = _fsdp()
        self._fully_sharded = [m for m in model.modules() if fsdp is not None and isinstance(m, fsdp.FSDPModule)]
        self.reshard()
        # where what they exchange must be
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._groups: list[Any] = []
        self._shared: list[bool] = []  # whether the ranks of that group have parts of the same parameters
        sharded = next((p for p in model.parameters() if is_sharded(p)), None)
        if copies is not None and sharded is None and not groups:
            groups = [copies]
        for group in groups:
            self._add(group, shared=False)
        if sharded is not None:
            for dim, placement in enumerate(sharded.placements):
                self._add(sharded.device_mesh.get_group(dim), shared=not placement.is_replicate())

    def _add(self, group: Any, *, shared: bool) -> None:
        if distributed.get_world_size(group) > 1:
            self._groups.append(group)
            self._shared.append(shared)

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def replicated(self) -> Any:
        """The group of a data-parallel model; None without one."""
        pairs = zip(self._groups, self._shared, strict=True)
        return next((group for group, shared in pairs if not shared), None)

    def reshard(self) -> None:
        """Have the model gather its parameters anew: what FSDP2 gathered before a parameter was written is old."""
        for module in self._fully_sharded:
            module.reshard()

    def begin_alike(self, parameters: Mapping[str, Tensor], settings: Mapping[str, object]) -> None:
        """Raise RuntimeError unless all ranks are to mask the same parameters by the same settings."""
        if self:
            layers = [[name, list(parameter.shape), str(parameter.dtype)] for name, parameter in parameters.items()]
            what = {"the model, in its masked parameters,": layers, **settings}
            self.agree(what, where="attach", mend=_ALIKE)

    def hold_alike(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Raise RuntimeError unless all ranks have the same weights and are about to hold the same masks."""
        if self:
            held = {mask_of(name): mask for name, mask in masks.items()}
            held |= {f"the weight of {name!r}": parameter for name, parameter in parameters.items()}
            parts = [name for name, tensor in held.items() if is_sharded(tensor)]
            what = {name: local(tensor) for name, tensor in held.items()}
            self.agree(what, where="attach", mend=_ALIKE, parts=parts)

    def stand_alike(self, step: int, state: Marked) -> None:
        """Raise RuntimeError unless all ranks have done as many steps and their states have the same marks."""
        if self:
            what = {"the number of steps done": step, **state.marks()}
            self.agree(what, where=f"step {step}", mend=_ALIKE, parts=state.parts())

    def agree(self, what: Mapping[str, object], *, where: str, mend: str, parts: Collection[str] = ()) -> None:
        """Raise RuntimeError unless all ranks call this with the same; must be called on all of them.

        Args:
            what: what it is -> a tensor, compared by its bits, or plain data. As many entries on each rank.
            where: what was being done, to begin the message with.
            mend: how to mend it, to end it with.
            parts: entries that are this rank's part of something sharded, compared with ranks that have the same part.
        """
        marks = torch.stack([_mark(entry).to(self._device) for entry in what.values()])
        for group, shared in zip(self._groups, self._shared, strict=True):
            comparable = torch.tensor([not (shared and name in parts) for name in what], device=self._device)
            mine = marks * comparable
            extremes = torch.cat([mine, ~mine])  # ~ turns the order round, and cannot overflow
            distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=group)
            most, least = extremes.chunk(2)
            if not torch.equal(most, ~least):
                raise RuntimeError(f"{where}: {_difference(list(what), mine, group)}; {mend}")

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; must be called on all of them."""
        found = torch.tensor(int(flag), device=self._device)
        for group in self._groups:
            distributed.all_reduce(found, distributed.ReduceOp.MAX, group=group)
        return bool(found)


def _fsdp() -> Any:
    return sys.modules.get("torch.distributed.fsdp")  # slow to import; without it nothing can be sharded


def refuse_flattened(model: nn.Module) -> None:
    """Raise TypeError if ``model`` is sharded by the first form of FSDP."""
    fsdp = _fsdp()
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise TypeError(
            "attach: FullyShardedDataParallel flattens parameters, so that nobody can say which weight is which; "
            "shard the model with torch.distributed.fsdp.fully_shard (FSDP2)"
        )


def _difference(names: Iterable[str], marks: Tensor, group: Any) -> str:
    gathered = [torch.empty_like(marks) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, marks, group=group)
    by_rank, ranks = torch.stack(gathered).tolist(), distributed.get_process_group_ranks(group)
    for index, name in enumerate(names):
        others = [r for r, marks_of_it in zip(ranks, by_rank, strict=True) if marks_of_it[index] != by_rank[0][index]]
        if others:
            return f"{name} differs between rank {ranks[0]} and rank {', '.join(map(str, others))}"
    raise AssertionError


def _mark(entry: object) -> Tensor:
    """A fingerprint as a 64-bit integer."""
    if isinstance(entry, Tensor):
        return fingerprint(entry)
    content = hashlib.blake2b(json.dumps(entry, sort_keys=True).encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(content, "little", signed=True))


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """Σ bᵢ·oᵢ modulo 2⁶⁴ over the entries' bits b and odd o that look random, on the device of ``tensor``.

    A sum of integers is the same in whatever order a device adds them up.
    """
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()])
    total = torch.full((), bits.numel(), dtype=torch.int64, device=bits.device)
    for begin in range(0, bits.numel(), _CHUNK):
        part = bits[begin : begin + _CHUNK].long()
        places = torch.arange(begin + 1, begin + 1 + part.numel(), device=bits.device) * _ODD
        total += (part * ((places ^ (places >> 29)) | 1)).sum()
    return total


def bare(optimizer: Optimizer) -> Optimizer:
    """The optimiser that makes the steps, inside those of HF Accelerate and Lightning Fabric.

    These do nothing in steps that only accumulate, or that loss scaling skips; the one inside is then not called.
    """
    kinds = tuple(getattr(sys.modules[module], name) for module, name in _WRAPPERS if module in sys.modules)
    while kinds and isinstance(optimizer, kinds):
        optimizer = optimizer.optimizer
    return optimizer
