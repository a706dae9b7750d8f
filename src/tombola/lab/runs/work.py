"""A run at work, stage after stage: training, or the rounds of a search, then retrainings, then controls."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from tombola.attach import Attachment, attach
from tombola.describe import describe, versions
from tombola.lab.arithmetic import planned_counts
from tombola.lab.config import Dense
from tombola.lab.errors import LabError
from tombola.lab.examples import values_of
from tombola.lab.runs.compiling import Objective, compiled
from tombola.lab.runs.ledger import Ledger
from tombola.lab.runs.lottery import begin_with
from tombola.lab.runs.records import epoch_record, epoch_text, measured, result_record
from tombola.lab.runs.stages import Stage, plan
from tombola.lab.runs.steps import Steps
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.team import Team
from tombola.lab.runs.thin import thicken
from tombola.lab.runs.train import Epoch, measure_parts, objective_of, smoothed, training
from tombola.lab.runs.transplant import transplant
from tombola.lab.runs.watch import Watch, histogram
from tombola.lab.runs.workshop import Workshop
from tombola.lab.seeds import derive
from tombola.masks import Masks
from tombola.methods.fixed import Fixed
from tombola.search import TicketSearch
from tombola.ticket import Ticket, model_tensors

Event: TypeAlias = dict[str, Any]
MEASURED = ("test_accuracy", "test_loss", "valid_loss")


class Stopped(Exception):
    """The run was asked to stop; it has saved where it stands."""


def _own_state(model: nn.Module) -> dict[str, Any]:
    """The state of ``model``, no tensor a part of a larger one, as those of models that are trained as one are: that
    would be saved as a whole."""
    state = model.state_dict()
    for name, entry in state.items():
        if isinstance(entry, torch.Tensor) and entry.untyped_storage().nbytes() > entry.nbytes:
            state[name] = entry.clone()
    return state


def _midway(saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was saved, if that was in the middle of a stage; None if the next one is to begin."""
    return saved if saved is not None and saved["epoch"] > 0 else None


class Run:
    """A run at work. What must survive a stop is in ``_save``; everything else follows from the config.

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
        self.last: dict[str, Any] = {}  # the newest epoch record of this stage
        self.searched: dict[str, dict[str, Any]] = {}  # round -> the last epoch record of its search
        self.watch: Watch | None = None  # over the masks of this stage
        self.saved_at, self.save_seconds = clock(), 0.0  # when the last checkpoint was done, what it took
        self.ledger = Ledger(make, self.stages, clock)
        self.told: list[str] = []  # of what was compiled, and of data that were read on the way
        self._compiled: tuple[nn.Module, Objective] | None = None
        self._members: set[int] = set()  # with how many runs, itself included, it was trained as one

    def go(self, saved: dict[str, Any] | None) -> Steps[None]:
        """Do all stages, or those that are left."""
        saved = self._stand(saved)
        if self.position < len(self.stages) and self.stages[self.position].phase == "search":
            yield from self._search(saved)
            saved = None
        while self.position < len(self.stages):
            stage = self.stages[self.position]
            if stage.phase == "train":
                yield from self._once(stage, _midway(saved))
            elif self.folder.has_part(stage):
                yield from self._take_part(stage)
            elif stage.epochs == 0:
                self._look_at(stage)
            else:
                yield from self._retrain(stage, _midway(saved))
            saved = None
            self.position += 1

    def go_to(self, place: int, saved: dict[str, Any] | None) -> Steps[None]:
        """Do the stage at this place alone, the rounds before it having been done, in the folder that it has."""
        self.position = place
        saved = self._stand(saved)
        if self.stages[place].apart:
            if saved is None:
                self.searched, self.told = self.folder.remembered()
            yield from self._retrain(self.stages[place], saved)
        elif self.position <= place:
            yield from self._search(saved, place + 1)

    def _stand(self, saved: dict[str, Any] | None) -> dict[str, Any] | None:
        """Stand where ``saved`` is."""
        if saved is not None:
            with self._restoring(saved):
                self.position, self.searched = saved["stage"], saved["searched"]
                self.ledger.seconds, self.told = saved.get("seconds", {}), saved.get("told", [])
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
        self.ledger.seconds[str(self.position)], _ = self.folder.take(stage, self.told)
        self.folder.took(stage, self.ledger.seconds_of(stage, self.position), self.team.where(self.make.device))

    def _once(self, stage: Stage, saved: dict[str, Any] | None) -> Steps[None]:
        config, model = self.config, self.make.model()
        masked = self.make.maskable(model)
        if isinstance(config.method, Dense):
            yield from self._train(stage, self.team.wrap(model), self.make.optimizer(model), None, saved, dict)
            sizes = {name: weight.numel() for name, weight in masked.items()}
            self._result(stage, sizes, sizes, arithmetic=self.make.arithmetic(model))
            return
        method, steps, names = config.training_method, config.epochs * self.steps, list(masked)
        with self._fitting(), self._python_warnings(silent=saved is not None):
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
        yield from self._train(stage, wrapped, optimizer, run, saved, lambda: {"attachment": run.state_dict()})
        masks = run.masks
        run.detach()
        if config.supermask:  # what is asked for is the hard mask, and training measured the soft one
            hard = {key: self.last[f"hard_{key}"] for key in MEASURED if key in self.last}
            self.searched["0"], self.last = self.last, self.last | hard
        if config.sparse:
            thicken(model)
        provenance = {
            "method": describe(method), "seed": config.seed, "steps": steps, "density": masks.density,
            "trained": True, "versions": versions(), **self._about,
        }  # fmt: skip
        Ticket(masks, model_tensors(model), provenance).save(self.folder.ticket_path(0))
        if config.lottery != "no":
            start = model_tensors(self.make.model())
            Ticket(masks, start, provenance | {"trained": False}).save(self.folder.ticket_path(1))
        counts = masks.counts()
        self._result(stage, counts, masks.sizes(), arithmetic=self.make.arithmetic(model, counts))

    @property
    def _about(self) -> dict[str, Any]:
        shape, classes = list(self.data.input_shape), self.data.classes
        model = {"model": self.config.model, "width": self.config.width, "input_shape": shape, "classes": classes}
        sparse = {"sparse": True} if self.config.sparse else {}
        return {"data": self.config.data, **model, **values_of(self.data), **sparse, "run": self.folder.name}

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
            about=self._about,
        )
        if saved is not None:
            with self._restoring(saved):
                search.load_state_dict(saved["extra"]["search"])
            saved = _midway(saved)
        for round_ in search:
            stage = self.stages[self.position]
            optimizer = self.make.optimizer(model)
            with self._restoring(saved):
                run = round_.attach(optimizer, steps=config.epochs * self.steps)
            trained = run.masks if config.free_retraining and round_.index > 1 else None
            yield from self._train(stage, wrapped, optimizer, run, saved, lambda: {"search": search.state_dict()})
            saved = None
            if trained is not None:
                self._result(replace(stage, round=round_.index - 1), trained.counts(), trained.sizes())
            with self._python_warnings():
                ticket = round_.ticket()
            ticket.save(self.folder.ticket_path(round_.index))
            self.searched[str(round_.index)] = self.last | {"share": self.make.share(ticket.masks.counts())}
            self.position += 1
            if self.position == end:
                self._save_between({"search": search.state_dict()})
                return

    def _retrain(self, stage: Stage, saved: dict[str, Any] | None) -> Steps[None]:
        make = self._where(stage)
        model = make.model()
        masks = self._restore(stage, model)
        wrapped, optimizer, moving = self.team.wrap(model), make.optimizer(model), self.config.lottery == "moving"
        method = self.config.training_method if moving else Fixed(masks)
        begin = partial(
            attach, wrapped, optimizer, method, steps=make.config.epochs * make.steps, select=list(masks),
            steps_per_epoch=make.steps, seed=derive(self.config.seed, "masks", "again"),
        )  # fmt: skip
        run = begin_with(masks, model, begin) if moving else begin()
        yield from self._train(stage, wrapped, optimizer, run, saved, lambda: {"attachment": run.state_dict()})
        arithmetic = None
        if self.config.lottery != "no" and (once := self.make.arithmetic(model)) is not None:
            share = self.make.share(masks.counts())
            arithmetic = 2 * once if moving or share is None else once + share * self.config.epochs
        masks = run.masks
        self._result(stage, masks.counts(), masks.sizes(), arithmetic=arithmetic)
        run.detach()

    def _look_at(self, stage: Stage) -> None:
        """Measure the control of a supermask as it is."""
        model = self.make.model()
        masks = self._restore(stage, model)
        self.ledger.begin()
        self.last = measured(measure_parts(model, self.data, mode=self.make.mode))
        self.ledger.count(self.position)
        self._result(stage, masks.counts(), masks.sizes(), arithmetic=self.make.arithmetic(model))

    def _restore(self, stage: Stage, model: nn.Module) -> Masks:
        """Write the stage's ticket, or the control made of it, into ``model``."""
        try:
            ticket = self._controlled(Ticket.load(self.folder.ticket_path(stage.round)), stage)
            if stage.transferred:
                return transplant(ticket, model, self._where(stage).maskable(model))
            return ticket.restore(model)
        except (ValueError, FileNotFoundError) as error:
            raise LabError(f"{error}; delete {self.folder.path} to start this run over") from error

    def _controlled(self, ticket: Ticket, stage: Stage) -> Ticket:
        seed = derive(self.config.seed, str(stage.label), stage.round)
        if stage.label == "shuffled":
            return ticket.shuffled(seed=seed)
        if stage.label == "reinitialised":
            # building the model anew draws from the recipe's own distribution, whatever reset_parameters() would do
            return replace(ticket, start=model_tensors(self.make.model(seed=seed)))
        return ticket

    def _where(self, stage: Stage) -> Workshop:
        """What makes the networks of the stage: that of the run's own data, or of those tickets are transferred to."""
        if not stage.transferred:
            return self.make
        assert self.target is not None
        return self.target

    # ---- training one stage

    def _train(
        self,
        stage: Stage,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        run: Attachment | None,
        saved: dict[str, Any] | None,
        extra: Callable[[], dict[str, Any]],
    ) -> Steps[None]:
        """Train to the end of the stage, from its beginning or from where ``saved`` is; the last record is kept.
        ``wrapped`` is the model as the team has it."""
        make, done, team = self._where(stage), 0, self.team
        config, model = make.config, team.inside(wrapped)
        for caveat in team.caveats(model):
            self.tell(caveat)
        if team.part.count > 1 and config.computed_batch < config.batch_size:
            raise LabError(
                f"micro_batch is {config.micro_batch}: ranks have parts of a batch already, and compute no parts of "
                "these; give --micro-batch the size of the whole batch, or leave torchrun out"
            )
        self.last = {}
        self.ledger.begin()
        if saved is not None:
            with self._restoring(saved):
                model.load_state_dict(saved["model"])  # first: it says where sparse layers have their connections
                if run is not None and "attachment" in saved["extra"]:
                    run.load_state_dict(saved["extra"]["attachment"])
                optimizer.load_state_dict(saved["optimizer"])
                done, self.last = saved["epoch"], saved["last"]
        self.watch = None if run is None else Watch(model, run, saved and saved.get("watch"))
        epochs = config.stretched(config.epochs)
        purpose = (stage.phase, stage.round, stage.label or "")

        def after_epoch(epoch: Epoch) -> None:
            if epoch.number == epochs or epoch.number % config.evaluate_every == 0:
                self._measure(stage, model, run, epoch)
            self.ledger.count(self.position)
            done, text = stage.epochs_before + epoch.number, epoch_text(stage, epoch, self.last)
            place = {"stage": self.position, "epoch": epoch.number}
            self.emit({"event": "epoch", **place, "done": done, "text": text})
            due = self.clock() - self.saved_at >= self.save_seconds / self.checkpoint_share
            stopping = self.stop()
            if team.leads and (due or stopping):
                self._save(epoch.number, model, optimizer, extra())
            if stopping:
                raise Stopped

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
            after_epoch=after_epoch,
            stacked=self._stacked,
        )

    def _objective(self, model: nn.Module, make: Workshop) -> Objective:
        """What the training of ``model`` makes smaller, as the config wants it computed."""
        objective = objective_of(model, loss=smoothed(make.config.label_smoothing), mode=make.mode)
        if not make.config.compile:
            return objective
        if not self.team.compiles(model):
            self.tell("compile: trained without torch.compile: batch norms ask all ranks for their parts of the batch")
            return objective
        if self._compiled is None or self._compiled[0] is not model:  # the rounds of a search train the same one
            torch.compiler.reset()  # what was made for another one only takes room, and PyTorch compiles so often only
            size = self.team.part.size(make.config.computed_batch)
            fast = compiled(objective, model, batch_size=size, tell=self.tell)
            self._compiled = model, fast
        return self._compiled[1]

    def tell(self, text: str) -> None:
        """Record what a person should know of this run, once."""
        if self._note(text):
            self.emit({"event": "warning", "text": text})

    def _note(self, text: str) -> bool:
        """The same among the records alone; whether it is new."""
        if text in self.told:
            return False
        self.told.append(text)
        self.folder.record({"kind": "warning", "text": text})
        return True

    def _stacked(self, members: int) -> None:
        """A step was computed as one for so many runs."""
        if members not in self._members:
            self._members.add(members)
            others = f"{members - 1} other run{'s' if members > 2 else ''}"
            self._note(f"trained as one with {others}: the same but for rounding")

    def _measure(self, stage: Stage, model: nn.Module, run: Attachment | None, epoch: Epoch) -> None:
        make, hard = self._where(stage), None
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
        if self.watch is not None and (moved := self.watch.moved()):
            self.last["moved"] = moved
        if run is not None and hard is not None and epoch.number == make.config.epochs:
            self.last["scores"] = histogram(run.scores, diagnostics["temperature"])
        self.folder.record(self.last)

    def _save(self, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> None:
        began = self.clock()
        self.folder.save(
            {
                **self._standing(epoch),
                "last": self.last,
                "model": _own_state(model),
                "optimizer": optimizer.state_dict(),
                "extra": extra,
                "watch": self.watch.state() if self.watch is not None else None,
            }
        )
        self.saved_at = self.clock()
        self.save_seconds = self.saved_at - began

    def _save_between(self, extra: dict[str, Any]) -> None:
        """Save where no stage is at work: the next one begins with nothing but what the search has found."""
        self.folder.remember(self.searched, self.told)
        self.folder.save({**self._standing(0), "extra": extra})

    def _standing(self, epoch: int) -> dict[str, Any]:
        return {
            "stage": self.position, "epoch": epoch, "searched": self.searched, "seconds": self.ledger.seconds,
            "told": self.told,
        }  # fmt: skip

    @contextmanager
    def _restoring(self, saved: dict[str, Any] | None) -> Iterator[None]:
        """Inside it, what goes wrong does so because ``saved``, if there is one, is of another model or other data."""
        try:
            yield
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if saved is None:
                raise
            reason = " ".join(str(error).split())[:300]
            raise LabError(
                f"{self.folder.path}: its checkpoint does not fit the model and the data as they are now ({reason}); "
                "bring these back, or delete the folder to start this run over"
            ) from error

    # ---- what comes out

    def _result(
        self, stage: Stage, counts: dict[str, int], sizes: dict[str, int], *, arithmetic: float | None = None
    ) -> None:
        config, make, searched = self.config, self._where(stage), self.searched.get(str(stage.round))
        if config.searches:
            arithmetic = self.ledger.arithmetic_of(stage.round, counts, self.searched, make)
        record = result_record(
            config, make.config, stage, self.last, searched, counts, sizes, steps=(self.steps, make.steps),
            arithmetic=arithmetic, weighed=make.weigh(counts),
        )  # fmt: skip
        self.folder.record(record)
        self.folder.took(stage, self.ledger.seconds_of(stage, self.position), self.team.where(self.make.device))
        self.emit({"event": "result", **record})

    @contextmanager
    def _python_warnings(self, *, silent: bool = False) -> Iterator[None]:
        """Turn what the library warns of into records and events, or into nothing if ``silent``."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in () if silent else caught:
            self.folder.record({"kind": "warning", "text": str(warning.message)})
            self.emit({"event": "warning", "text": str(warning.message)})
