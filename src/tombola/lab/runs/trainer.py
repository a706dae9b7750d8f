"""The training of one stage of a run: as its config says, measured after its epochs, from wherever it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from tombola.attach import Attachment
from tombola.lab.errors import LabError
from tombola.lab.runs.compiling import Objective, compiled
from tombola.lab.runs.notes import Notes
from tombola.lab.runs.records import epoch_record
from tombola.lab.runs.saving import restoring
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.steps import Steps
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.team import Team
from tombola.lab.runs.train import Epoch, measure_parts, objective_of, smoothed, training
from tombola.lab.runs.watch import Watch, histogram
from tombola.lab.runs.workshop import Workshop
from tombola.lab.seeds import derive

State: TypeAlias = dict[str, Any]


class Trainer:
    """Trains the networks of the run in ``folder``, whose ``notes`` these are, with ``team``.

    Attributes:
        last: the newest epoch record of the stage.
    """

    def __init__(self, folder: RunFolder, notes: Notes, team: Team) -> None:
        self.folder, self.notes, self.team = folder, notes, team
        self.last: dict[str, Any] = {}
        self._compiled: tuple[nn.Module, Objective] | None = None
        self._members: set[int] = set()  # with how many runs, itself included, it was trained as one

    def train(
        self,
        stage: Stage,
        make: Workshop,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        run: Attachment | None,
        saved: State | None,
        *,
        extra: Callable[[], State],
        after_epoch: Callable[[Epoch, Callable[[], State]], None],
    ) -> Steps[None]:
        """Train to the end of the stage, from its beginning or from where ``saved`` is; the last record is kept.

        Args:
            stage: which.
            make: makes the networks of the stage.
            wrapped: the model as the team has it.
            optimizer: of its weights.
            run: the method at work on it, if there is one.
            saved: a checkpoint in the middle of this stage; None to begin.
            extra: what a checkpoint is to hold of ``run``, or of the search that it belongs to.
            after_epoch: called with what each epoch came to, and with what makes the state to be saved then.
        """
        done, team = 0, self.team
        config, model = make.config, team.inside(wrapped)
        for caveat in team.caveats(model):
            self.notes.tell(caveat)
        if team.part.count > 1 and config.computed_batch < config.batch_size:
            raise LabError(
                f"micro_batch is {config.micro_batch}: ranks have parts of a batch already, and compute no parts of "
                "these; give --micro-batch the size of the whole batch, or leave torchrun out"
            )
        self.last = {}
        if saved is not None:
            with restoring(self.folder, saved):
                model.load_state_dict(saved["model"])  # first: it says where sparse layers have their connections
                if run is not None and "attachment" in saved["extra"]:
                    run.load_state_dict(saved["extra"]["attachment"])
                optimizer.load_state_dict(saved["optimizer"])
                done, self.last = saved["epoch"], saved["last"]
        watch = None if run is None else Watch(model, run, saved and saved.get("watch"))
        epochs = config.stretched(config.epochs)
        purpose = (stage.phase, stage.round, stage.label or "")

        def state() -> State:
            return {
                "last": self.last,
                "model": _own_state(model),
                "optimizer": optimizer.state_dict(),
                "extra": extra(),
                "watch": watch.state() if watch is not None else None,
            }

        def measured(epoch: Epoch) -> None:
            if epoch.number == epochs or epoch.number % config.evaluate_every == 0:
                self._measure(stage, make, model, run, watch, epoch)
            after_epoch(epoch, state)

        yield from training(
            model,
            optimizer,
            lambda epoch: team.epoch(
                make.data,
                derive(config.seed, *purpose, epoch),
                batch_size=config.batch_size,
                augment=config.augment,
            ),
            epochs=epochs,
            done=done,
            seed=team.seed(derive(config.seed, *purpose)),
            factor=lambda epoch: config.schedule.factor(epoch * config.epochs / epochs, config.epochs),
            objective=team.objective(wrapped, self._objective(model, make), make.data, config.batch_size),
            clip=config.clip,
            average=team.average,
            micro_batch=config.micro_batch,
            after_epoch=measured,
            stacked=self._stacked,
        )

    def _objective(self, model: nn.Module, make: Workshop) -> Objective:
        """What the training of ``model`` makes smaller, as the config wants it computed."""
        objective = objective_of(model, loss=smoothed(make.config.label_smoothing), mode=make.mode)
        if not make.config.compile:
            return objective
        tell = self.notes.tell
        if not self.team.compiles(model):
            tell("compile: trained without torch.compile: batch norms ask all ranks for their parts of the batch")
            return objective
        if self._compiled is None or self._compiled[0] is not model:  # the rounds of a search train the same one
            torch.compiler.reset()  # what was made for another one only takes room, and PyTorch compiles so often only
            size = self.team.part.size(make.config.computed_batch)
            fast = compiled(objective, model, batch_size=size, tell=tell)
            self._compiled = model, fast
        return self._compiled[1]

    def _stacked(self, members: int) -> None:
        """A step was computed as one for so many runs."""
        if members not in self._members:
            self._members.add(members)
            others = f"{members - 1} other run{'s' if members > 2 else ''}"
            self.notes.note(f"trained as one with {others}: the same but for rounding")

    def _measure(
        self,
        stage: Stage,
        make: Workshop,
        model: nn.Module,
        run: Attachment | None,
        watch: Watch | None,
        epoch: Epoch,
    ) -> None:
        hard = None
        measured = partial(
            measure_parts, model, make.data, mode=make.mode, part=self.team.part, gather=self.team.in_turns
        )
        whole = measured()
        diagnostics = run.diagnostics() if run is not None else {}
        if diagnostics.get("temperature") is not None:
            assert run is not None
            with run.hard():
                hard = measured()
        self.last = epoch_record(make.config, stage, epoch, whole, hard, diagnostics)
        if watch is not None and (moved := watch.moved()):
            self.last["moved"] = moved
        if run is not None and hard is not None and epoch.number == make.config.epochs:
            self.last["scores"] = histogram(run.scores, diagnostics["temperature"])
        self.folder.record(self.last)


def _own_state(model: nn.Module) -> State:
    """The state of ``model``, no tensor a part of a larger one, as those of models that are trained as one are: that
    would be saved as a whole."""
    state = model.state_dict()
    for name, entry in state.items():
        if isinstance(entry, torch.Tensor) and entry.untyped_storage().nbytes() > entry.nbytes:
            state[name] = entry.clone()
    return state
