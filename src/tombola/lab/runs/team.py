"""The processes that train a run: usually this one alone. Several, started by ``torchrun``, are in ``on_ranks``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from tombola.lab.config import RunConfig
from tombola.lab.data import WHOLE, Batch, Dataset, Part
from tombola.lab.runs.compiling import Objective
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.store import RunFolder


class Team:
    """One process, which does everything itself.

    Attributes:
        part: which part of the data is this process's.
        leads: whether this process keeps the run's folder.
    """

    part: Part = WHOLE
    leads: bool = True

    def folder(
        self, out: Path, config: RunConfig, *, stage: Stage | None, saved: Callable[[], None]
    ) -> AbstractContextManager[RunFolder]:
        """The folder to work in: the run's own, or in a process that does not lead a copy that vanishes with it.

        Raises:
            LabError: as ``RunFolder``.
        """
        return RunFolder(out, config, stage=stage, saved=saved)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to attach to, so that what all processes must have alike is compared."""
        return model

    def inside(self, wrapped: nn.Module) -> nn.Module:
        """The model that was wrapped."""
        return wrapped

    def objective(self, wrapped: nn.Module, objective: Objective, data: Dataset, batch_size: int) -> Objective:
        """``objective`` of the model inside ``wrapped``, as a function of this process's part of a batch whose
        gradients, when all processes have gone back, are in each those of the whole batch."""
        return objective

    def epoch(self, data: Dataset, seed: int, *, batch_size: int, augment: bool) -> Iterator[Batch]:
        """This process's part of the batches of an epoch."""
        return data.epoch(seed, batch_size=batch_size, augment=augment, part=self.part)

    def caveats(self, model: nn.Module) -> list[str]:
        """What is not as in one process when ``model`` trains, to be told."""
        return []

    def compiles(self, model: nn.Module) -> bool:
        """Whether its training can be compiled."""
        return True

    def seed(self, seed: int) -> int:
        """The seed of what is random for each example alone, dropout say."""
        return seed

    def average(self, losses: Tensor) -> Tensor:
        """The average over all processes of what ``objective`` has given them."""
        return losses

    def in_turns(self, found: Tensor) -> Tensor:
        """What each process has found of its batches, in the order of all batches."""
        return found

    def where(self, device: torch.device) -> str:
        """What computes, for people."""
        return str(device)


ALONE = Team()
