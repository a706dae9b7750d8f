"""A run at work, stage after stage: training, or the rounds of a search, then retrainings, then controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tombola.attach import Attachment, attach
from tombola.describe import describe, versions
from tombola.lab.arithmetic import planned_counts
from tombola.lab.errors import LabError
from tombola.lab.methods import Dense
from tombola.lab.runs.events import Event, Stopped
from tombola.lab.runs.ledger import Ledger
from tombola.lab.runs.lottery import begin_with
from tombola.lab.runs.notes import Notes
from tombola.lab.runs.records import epoch_text, measured, result_record
from tombola.lab.runs.saving import Checkpoints, midway, restoring
from tombola.lab.runs.stages import Stage, plan
from tombola.lab.runs.steps import Steps
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.team import Team
from tombola.lab.runs.thin import thicken
from tombola.lab.runs.tickets import about, restore
from tombola.lab.runs.train import Epoch, measure_parts
from tombola.lab.runs.trainer import Trainer
from tombola.lab.runs.workshop import Workshop
from tombola.lab.seeds import derive
from tombola.methods.fixed import Fixed
from tombola.search import TicketSearch
from tombola.ticket import Ticket, model_tensors

MEASURED = ("test_accuracy", "test_loss", "valid_loss")


class Run:
    """A run at work. What must survive a stop is in ``_standing``; everything else follows from the config.

    What trains is a generator, which waits at each step for its loss and gradients: see ``steps``.
    """

    def __init__(
        self,
        folder: RunFolder,
        make: Workshop,
        target: Workshop | None,
        emit: Callable[[Event], None],
        checkpoint_share: float,
        stop: Callable[[], bool],
        team: Team,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.folder, self.make, self.data, self.team = make.config, folder, make, make.data, team
        self.target = target  # where tickets are transferred to
        self.emit, self.checkpoint_share, self.stop, self.clock = emit, checkpoint_share, stop, clock
        self.steps = make.steps
        self.stages = plan(make.config)
        self.position = 0  # of the stage at work
        self.searched: dict[str, dict[str, Any]] = {}  # round -> the last epoch record of its search
        self.ledger = Ledger(make, self.stages, clock)
        self.notes = Notes(folder, emit)
        self.checkpoints = Checkpoints(folder, checkpoint_share, clock)
        self.trainer = Trainer(folder, self.notes, team)

    def go(self, saved: dict[str, Any] | None) -> Steps[None]:
        """Do all stages, or those that are left."""
        saved = self._stand(saved)
        if self.position < len(self.stages) and self.stages[self.position].phase == "search":
            yield from self._search(saved)
            saved = None
        while self.position < len(self.stages):
            stage = self.stages[self.position]
            if stage.phase == "train":
                yield from self._once(stage, midway(saved))
            elif self.folder.has_part(stage):
                yield from self._take_part(stage)
            elif stage.epochs == 0:
                self._look_at(stage)
            else:
                yield from self._retrain(stage, midway(saved))
            saved = None
            self.position += 1

    def go_to(self, place: int, saved: dict[str, Any] | None) -> Steps[None]:
        """Do the stage at this place alone, the rounds before it having been done, in the folder that it has."""
        self.position = place
        saved = self._stand(saved)
        if self.stages[place].apart:
            if saved is None:
                self.searched, self.notes.told = self.folder.remembered()
            yield from self._retrain(self.stages[place], saved)
        elif self.position <= place:
            yield from self._search(saved, place + 1)

    def _stand(self, saved: dict[str, Any] | None) -> dict[str, Any] | None:
        """Stand where ``saved`` is."""
        if saved is not None:
            with restoring(self.folder, saved):
                self.position, self.searched = saved["stage"], saved["searched"]
                self.ledger.seconds, self.notes.told = saved.get("seconds", {}), saved.get("told", [])
            done = {place: stage.epochs for place, stage in enumerate(self.stages[: self.position])}
            self.emit({"event": "resumed", "epochs": done})
        return saved

    # ---- stages

    def _take_part(self, stage: Stage) -> Steps[None]:
        """Take in what was trained in a folder of its own, having finished it if need be."""
        with RunFolder(self.folder.root.parent, self.config, stage=stage) as folder:
            if not folder.finished:
                saved = folder.resume(warn=lambda text: None, device=self.make.device)
                beside = (self.checkpoint_share, self.stop, self.team, self.clock)
                run = Run(folder, self.make, self.target, self.emit, *beside)
                yield from run.go_to(self.position, saved)
                folder.finish()
        self.ledger.seconds[str(self.position)], _ = self.folder.take(stage, self.notes.told)
        self.folder.took(stage, self.ledger.seconds_of(stage, self.position), self.team.where(self.make.device))

    def _once(self, stage: Stage, saved: dict[str, Any] | None) -> Steps[None]:
        config, model = self.config, self.make.model()
        masked = self.make.maskable(model)
        if isinstance(config.method, Dense):
            last = yield from self._train(stage, self.team.wrap(model), self.make.optimizer(model), None, saved, dict)
            sizes = {name: weight.numel() for name, weight in masked.items()}
            self._result(stage, last, sizes, sizes, arithmetic=self.make.arithmetic(model))
            return
        method, steps, names = config.training_method, config.epochs * self.steps, list(masked)
        with self._fitting(), self.notes.python_warnings(silent=saved is not None):
            planned_counts(method, masked)
        del masked  # with sparse layers nothing dense is to stay
        with self._fitting():
            if config.sparse:
                self.make.thin(model)
            wrapped, optimizer = self.team.wrap(model), self.make.optimizer(model)
            run = attach(
                wrapped, optimizer, method, steps=steps, select=names, steps_per_epoch=self.steps,
                seed=self.make.mask_seed,
            )  # fmt: skip
        last = yield from self._train(stage, wrapped, optimizer, run, saved, lambda: {"attachment": run.state_dict()})
        masks = run.masks
        run.detach()
        if config.supermask:  # what is asked for is the hard mask, and training measured the soft one
            hard = {key: last[f"hard_{key}"] for key in MEASURED if key in last}
            self.searched["0"], last = last, last | hard
        if config.sparse:
            thicken(model)
        provenance = {
            "method": describe(method), "seed": config.seed, "steps": steps, "density": masks.density,
            "trained": True, "versions": versions(), **about(self.make, self.folder.name),
        }  # fmt: skip
        Ticket(masks, model_tensors(model), provenance).save(self.folder.ticket_path(0))
        if config.lottery != "no":
            start = model_tensors(self.make.model())
            Ticket(masks, start, provenance | {"trained": False}).save(self.folder.ticket_path(1))
        counts = masks.counts()
        self._result(stage, last, counts, masks.sizes(), arithmetic=self.make.arithmetic(model, counts))

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Inside it, what goes wrong does so because method, model and data do not fit together."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise LabError(f"{self.config.method_name} on model {self.config.model!r}: {error}") from error

    def _search(self, saved: dict[str, Any] | None, end: int | None = None) -> Steps[None]:
        """The rounds that are left; or those before the place ``end``, where a checkpoint is made then."""
        config, model = self.config, self.make.model()
        wrapped = self.team.wrap(model)
        search = TicketSearch(
            wrapped,
            config.search_method,
            rounds=config.rounds,
            rewind_step=config.rewind_step,
            select=list(self.make.maskable(model)),
            steps_per_epoch=self.steps,
            seed=config.seed,
            about=about(self.make, self.folder.name),
        )
        if saved is not None:
            with restoring(self.folder, saved):
                search.load_state_dict(saved["extra"]["search"])
            saved = midway(saved)
        for round_ in search:
            stage = self.stages[self.position]
            optimizer = self.make.optimizer(model)
            with restoring(self.folder, saved):
                run = round_.attach(optimizer, steps=config.epochs * self.steps)
            trained = run.masks if config.free_retraining and round_.index > 1 else None
            last = yield from self._train(
                stage, wrapped, optimizer, run, saved, lambda: {"search": search.state_dict()}
            )
            saved = None
            if trained is not None:
                self._result(replace(stage, round=round_.index - 1), last, trained.counts(), trained.sizes())
            with self.notes.python_warnings():
                ticket = round_.ticket()
            ticket.save(self.folder.ticket_path(round_.index))
            self.searched[str(round_.index)] = last | {"share": self.make.share(ticket.masks.counts())}
            self.position += 1
            if self.position == end:
                self._save_between({"search": search.state_dict()})
                return

    def _retrain(self, stage: Stage, saved: dict[str, Any] | None) -> Steps[None]:
        make = self._where(stage)
        model = make.model()
        masks = restore(self.folder, stage, model, make=self.make, there=make)
        wrapped, optimizer, moving = self.team.wrap(model), make.optimizer(model), self.config.lottery == "moving"
        method = self.config.training_method if moving else Fixed(masks)
        begin = partial(
            attach, wrapped, optimizer, method, steps=make.config.epochs * make.steps, select=list(masks),
            steps_per_epoch=make.steps, seed=derive(self.config.seed, "masks", "again"),
        )  # fmt: skip
        run = begin_with(masks, model, begin) if moving else begin()
        last = yield from self._train(stage, wrapped, optimizer, run, saved, lambda: {"attachment": run.state_dict()})
        arithmetic = None
        if self.config.lottery != "no" and (once := self.make.arithmetic(model)) is not None:
            share = self.make.share(masks.counts())
            arithmetic = 2 * once if moving or share is None else once + share * self.config.epochs
        masks = run.masks
        self._result(stage, last, masks.counts(), masks.sizes(), arithmetic=arithmetic)
        run.detach()

    def _look_at(self, stage: Stage) -> None:
        """Measure the control of a supermask as it is."""
        model = self.make.model()
        masks = restore(self.folder, stage, model, make=self.make, there=self._where(stage))
        self.ledger.begin()
        last = measured(measure_parts(model, self.data, mode=self.make.mode))
        self.ledger.count(self.position)
        self._result(stage, last, masks.counts(), masks.sizes(), arithmetic=self.make.arithmetic(model))

    def _where(self, stage: Stage) -> Workshop:
        """What makes the networks of the stage: that of the run's own data, or of those tickets are transferred to."""
        if not stage.transferred:
            return self.make
        assert self.target is not None
        return self.target

    def _train(
        self,
        stage: Stage,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        run: Attachment | None,
        saved: dict[str, Any] | None,
        extra: Callable[[], dict[str, Any]],
    ) -> Steps[dict[str, Any]]:
        """Train to the end of the stage, from its beginning or from where ``saved`` is: the last epoch's record."""
        trainer, checkpoints = self.trainer, self.checkpoints

        def after_epoch(epoch: Epoch, state: Callable[[], dict[str, Any]]) -> None:
            self.ledger.count(self.position)
            done, text = stage.epochs_before + epoch.number, epoch_text(stage, epoch, trainer.last)
            place = {"stage": self.position, "epoch": epoch.number}
            self.emit({"event": "epoch", **place, "done": done, "text": text})
            due, stopping = checkpoints.due, self.stop()
            if self.team.leads and (due or stopping):
                checkpoints.save({**self._standing(epoch.number), **state()})
            if stopping:
                raise Stopped

        self.ledger.begin()
        yield from trainer.train(
            stage, self._where(stage), wrapped, optimizer, run, saved, extra=extra, after_epoch=after_epoch
        )
        return trainer.last

    def _save_between(self, extra: dict[str, Any]) -> None:
        """Save where no stage is at work: the next one begins with nothing but what the search has found."""
        self.folder.remember(self.searched, self.notes.told)
        self.folder.save({**self._standing(0), "extra": extra})

    def _standing(self, epoch: int) -> dict[str, Any]:
        return {
            "stage": self.position, "epoch": epoch, "searched": self.searched, "seconds": self.ledger.seconds,
            "told": self.notes.told,
        }  # fmt: skip

    # ---- what comes out

    def _result(
        self,
        stage: Stage,
        last: dict[str, Any],
        counts: dict[str, int],
        sizes: dict[str, int],
        *,
        arithmetic: float | None = None,
    ) -> None:
        config, make, searched = self.config, self._where(stage), self.searched.get(str(stage.round))
        if config.searches:
            arithmetic = self.ledger.arithmetic_of(stage.round, counts, self.searched, make)
        record = result_record(
            config, make.config, stage, last, searched, counts, sizes, steps=(self.steps, make.steps),
            arithmetic=arithmetic, weighed=make.weigh(counts),
        )  # fmt: skip
        self.folder.record(record)
        self.folder.took(stage, self.ledger.seconds_of(stage, self.position), self.team.where(self.make.device))
        self.emit({"event": "result", **record})
