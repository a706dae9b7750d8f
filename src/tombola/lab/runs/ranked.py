"""What the ranks of ``torchrun`` do together: see ``on_ranks``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tombola.lab.config import RunConfig
from tombola.lab.data import Batch, Data, Dataset, Loaders, Part, Tokens
from tombola.lab.errors import LabError
from tombola.lab.launched import Launched
from tombola.lab.runs.compiling import Objective
from tombola.lab.runs.norms import WholeBatches, has_batch_norm
from tombola.lab.runs.parcels import Parcel, needed
from tombola.lab.runs.scratch import scratch
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.tasks import Task
from tombola.lab.runs.team import Team
from tombola.lab.seeds import derive

FAILED_TOGETHER = timedelta(seconds=10)
"""In which all ranks have come upon what is wrong, if it is wrong on all of them."""


class Ranked(Team):
    """The ranks, connected.

    Raises:
        LabError: Lightning Fabric is missing, or they cannot be connected.
    """

    def __init__(self, here: Launched, device: str) -> None:
        self.leads = here.rank == 0
        self.ranks = here.ranks
        self._rank = here.rank
        self._fabric = _connected(here, device)
        self.device: torch.device = self._fabric.device
        self._talk = distributed.new_group(backend="gloo")  # of small things, without waiting for the device
        self._failures = distributed.new_group(backend="gloo", timeout=FAILED_TOGETHER)
        self.part = Part(index=here.rank, count=here.ranks, united=self._united)

    # ---- the folder

    @contextmanager
    def folder(
        self, out: Path, config: RunConfig, *, stage: Stage | None, saved: Callable[[], None]
    ) -> Iterator[RunFolder]:
        """As of ``Team``: if rank 0 cannot have the folder, all raise what is wrong with it."""
        with ExitStack() as stack:
            folder, parcel, error = None, Parcel(), ""
            if self.leads:
                try:
                    folder = stack.enter_context(RunFolder(out, config, stage=stage, saved=saved))
                    parcel = _copy(folder)
                except (LabError, OSError) as problem:
                    error = str(problem)
            parcel, error = self._from_first((parcel, error))
            if error:
                raise LabError(error)
            if folder is None:
                copies = stack.enter_context(scratch())
                parcel.unpack(copies / config.folder_name)
                folder = stack.enter_context(RunFolder(copies, config))
            yield folder

    # ---- training

    def wrap(self, model: nn.Module) -> nn.Module:
        """As of ``Team``: Fabric's module, around ``DistributedDataParallel``."""
        wrapped: nn.Module = self._fabric.setup_module(_Losses(model))
        return wrapped

    def inside(self, wrapped: nn.Module) -> nn.Module:
        """As of ``Team``."""
        assert isinstance(wrapped.module, _Losses)
        return wrapped.module._forward_module

    def objective(self, wrapped: nn.Module, objective: Objective, data: Dataset, batch_size: int) -> Objective:
        """As of ``Team``. DDP takes the mean over the ranks, so each weighs its mean loss by its examples."""
        losses = wrapped.module
        assert isinstance(losses, _Losses)
        losses.objective = objective
        known = isinstance(data, Data | Tokens)  # whose batches all have this size

        def shared(x: Tensor, y: Tensor) -> Tensor:
            mine, whole = (len(x), batch_size) if known else (y.numel(), self._sum(y.numel()))
            if whole == 0:
                raise LabError("a batch has no example: all of them are damaged")
            losses.counts = mine > 0
            if mine == 0:  # the backward pass takes all ranks: something that weighs nothing
                x, y = (part.new_zeros(1, *part.shape[1:]) for part in (x, y))
            value: Tensor = wrapped(x, y) * (mine * self.ranks / whole)
            return value

        return shared

    def epoch(self, data: Dataset, seed: int, *, batch_size: int, augment: bool) -> Iterator[Batch]:
        """As of ``Team``.

        Raises:
            LabError: there are fewer examples in a batch than ranks.
        """
        if batch_size < self.ranks:
            raise LabError(f"batch_size is {batch_size}, but there are {self.ranks} ranks: give at least one to each")
        batches = super().epoch(data, seed, batch_size=batch_size, augment=augment)
        return _undisturbed(batches) if isinstance(data, Loaders) else batches

    def caveats(self, model: nn.Module) -> list[str]:
        """As of ``Team``."""
        modules = list(model.modules())
        dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in modules)
        if dropout or any(isinstance(module, nn.RNNBase) and module.dropout > 0 for module in modules):
            return [f"torchrun: dropout draws other numbers on {self.ranks} ranks than in one process"]
        return []

    def compiles(self, model: nn.Module) -> bool:
        """As of ``Team``: what ranks say to each other inside a network cannot be."""
        return not has_batch_norm(model)

    def seed(self, seed: int) -> int:
        """As of ``Team``."""
        return derive(seed, "rank", self._rank) if self._rank else seed

    def where(self, device: torch.device) -> str:
        """As of ``Team``."""
        return f"{self.ranks} × {device.type}"

    # ---- what ranks say to each other. Each of these is to be called on all of them.

    def average(self, losses: Tensor) -> Tensor:
        """As of ``Team``."""
        losses = losses.clone()
        distributed.all_reduce(losses)
        return losses / self.ranks

    def in_turns(self, found: Tensor) -> Tensor:
        """As of ``Team``."""
        turns = zip_longest(*(part.unbind() for part in self._from_all(found.cpu())))
        numbers = [number for turn in turns for number in turn if number is not None]
        return torch.stack(numbers) if numbers else found

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self._sum(int(flag)) > 0

    def all_failed(self) -> bool:
        """To be called where something has failed: whether it has on all ranks. If not, these are lost."""
        try:
            distributed.barrier(self._failures)
        except RuntimeError:  # some did not come, or are gone
            return False
        return True

    def _sum(self, number: int) -> int:
        total = torch.tensor(number)
        distributed.all_reduce(total, group=self._talk)
        return int(total)

    def _united(self, found: set[str]) -> set[str]:
        return set[str]().union(*self._from_all(found))

    def _from_all(self, mine: Any) -> list[Any]:
        found: list[Any] = [None] * self.ranks
        distributed.all_gather_object(found, mine, group=self._talk)
        return found

    def _from_first(self, mine: Any) -> Any:
        box = [mine]
        distributed.broadcast_object_list(box, src=0, group=self._talk)
        return box[0]


class _Losses(nn.Module):
    """A batch to its loss, by an objective of ``model``: what DDP needs around what may be compiled.

    ``counts``: whether what comes next is a part of the batch, and not something in place of an empty part.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._forward_module = model  # what `attach` takes the model's names from
        self.objective: Objective | None = None
        self.counts = True
        self._norms = has_batch_norm(model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        assert self.objective is not None
        if not self._norms:
            return self.objective(x, y)
        with WholeBatches(counts=self.counts):
            return self.objective(x, y)


def _connected(here: Launched, device: str) -> Any:
    try:
        fabric = _fabric()
    except ImportError as error:
        raise LabError(
            f"torchrun: to train on {here.ranks} ranks Lightning Fabric has to be installed ({error}): pip install "
            "'tombola[lightning]'"
        ) from None
    if here.ranks % here.local_ranks:
        raise LabError(f"torchrun: {here.ranks} ranks, {here.local_ranks} of them here: give each machine as many")
    logging.getLogger(fabric.__module__.partition(".")[0]).setLevel(logging.WARNING)  # how it goes is for us to say
    nodes = here.ranks // here.local_ranks
    try:
        connected = fabric(accelerator=device, devices=here.local_ranks, num_nodes=nodes, strategy="ddp")
        connected.launch()
    except Exception as error:  # Fabric has its own for devices that are not there, PyTorch for networks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabError(f"torchrun: the {here.ranks} ranks cannot be connected: {reason}") from error
    return connected


def _fabric() -> Any:
    try:
        from lightning_fabric import Fabric  # alone it is imported in half the time
    except ImportError:
        from lightning.fabric import Fabric
    return Fabric


def _copy(folder: RunFolder) -> Parcel:
    """What the other ranks need of it."""
    parcel = needed(Task(folder.config, None), folder.root)
    if not folder.finished:
        return parcel
    return Parcel({name: parcel.files[name] for name in ("config.json", "metrics.jsonl", "done.json")})


def _undisturbed(batches: Iterator[Batch]) -> Iterator[Batch]:
    """These batches, whose random numbers come from PyTorch's generator, whatever is drawn from it between them: on all
    ranks the same."""
    state = torch.get_rng_state()
    while True:
        before = torch.get_rng_state()
        torch.set_rng_state(state)
        batch = next(batches, None)
        state = torch.get_rng_state()
        torch.set_rng_state(before)
        if batch is None:
            return
        yield batch
