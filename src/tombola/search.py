"""TicketSearch: the rounds of a search for winning tickets, around the user's own training function."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tombola.attach import Attachment
from tombola.describe import describe, versions
from tombola.masks import Masks, pack
from tombola.methods.fixed import Fixed
from tombola.methods.protocol import PruningMethod, RoundMethod, SearchMethod
from tombola.selection import Select, maskable, unwrapped
from tombola.sharded import is_sharded
from tombola.states import check_count, check_keys, check_plain, check_tensors, checked_masks
from tombola.ticket import Ticket, model_tensors

TRUSTED_UNDECIDED = 0.2  # a soft mask with more undecided scores is not yet the mask that it will be


class TicketSearch:
    """Rounds of training that each end in a ticket.

    ::

        search = TicketSearch(model, IMP(), rounds=12, rewind_step=780)
        for round_ in search:             # the model is prepared for this round
            train(model, round_.attach)   # it builds its optimiser and calls attach(optimizer, steps=…)
            ticket = round_.ticket()

    After ``round_.ticket()`` the model is free for other uses, retraining the ticket say: the search keeps copies.

    Args:
        model: the network, in its initial state.
        method: :class:`~tombola.IMP`, :class:`~tombola.ContinuousSparsification` or
            :class:`~tombola.StochasticSparsification`.
        rounds: how many.
        rewind_step: tickets start from the weights (and buffers, and unmasked parameters) after this many optimiser
            steps of the first round; 0 is the initialisation.
        select: which parameters to mask, see :func:`~tombola.maskable`.
        steps_per_epoch: optimiser steps of one epoch, for ``epochs_spent`` and methods that anneal by epochs.
        seed: seed of every random choice of the method.
        about: plain data for the tickets' provenance, for instance ``{"data": "cifar10"}``.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        method: SearchMethod,
        *,
        rounds: int,
        rewind_step: int = 0,
        select: Select | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(method, type):
            raise TypeError(f"TicketSearch: {method.__name__} is a class; pass a method, {method.__name__}()")
        if not isinstance(method, (PruningMethod, RoundMethod)):
            raise TypeError(f"TicketSearch: {method!r} has no rounds; use IMP, ContinuousSparsification, …")
        for name, value, least in (
            ("rounds", rounds, 1),
            ("rewind_step", rewind_step, 0),
            ("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"TicketSearch: {name} must be a whole number, at least {least}, not {value!r}")
        check_plain("about", about)
        self.model = model
        self.method = method
        self.rounds = rounds
        self.rewind_step = rewind_step
        self.select = select
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.about = dict(about or {})
        parameters = maskable(model, select)
        if parameters.sparse:
            raise ValueError(
                f"TicketSearch: {next(iter(parameters.sparse))!r} is a sparse layer, but a search needs all weights; "
                "begin with the dense model, and make the ticket sparse afterwards"
            )
        if sharded := [name for name, parameter in parameters.items() if is_sharded(parameter)]:
            raise ValueError(
                f"TicketSearch: {sharded[0]!r} is sharded, but a search keeps whole copies of the model; search with "
                "DDP or on one device, and train the ticket sharded: attach(model, optimizer, Fixed(ticket.masks), …)"
            )
        self._steps_before = 0  # of rounds that are over
        self._index = 1
        self._masks = Masks({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})
        if isinstance(method, PruningMethod):
            method.check(self._masks)
        self._scores: dict[str, Tensor] | None = None
        self._begin = _copies(model_tensors(model))  # the model at the beginning of this round
        self._start = self._begin if rewind_step == 0 else None  # and at the rewind point, once it is reached
        self._resumed: Mapping[str, Any] | None = None
        self._current: Round | None = None

    @property
    def steps_spent(self) -> int:
        """Optimiser steps of all rounds so far."""
        return self._steps_before + (self._current.steps_done if self._current else 0)

    @property
    def epochs_spent(self) -> float:
        """The same in epochs.

        Raises:
            ValueError: the search was not given ``steps_per_epoch``.
        """
        if self.steps_per_epoch is None:
            raise ValueError("epochs_spent needs TicketSearch(…, steps_per_epoch=…)")
        return self.steps_spent / self.steps_per_epoch

    def __iter__(self) -> Iterator[Round]:
        """The rounds that are left. One that was left in its middle begins anew, or, after :meth:`load_state_dict`,
        goes on."""
        while self._index <= self.rounds:
            if self._current is not None and self._current.run is not None:
                self._current.run.detach()
            if self._index == 1 and self.rewind_step > 0 and self._resumed is None:
                self._start = None  # that of a first round which was given up, say
            self._write(self._begin)
            self._current = Round(self, self._index)
            yield self._current
            self._current.ticket()  # a round that the user asks no ticket of still ends like the others
            self._current = None

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in model_tensors(self.model).items():
            tensor.copy_(tensors[name])

    # ---- what a round needs of the search

    def _attach(self, optimizer: Optimizer, steps: int) -> Attachment:
        if self._start is None and steps < self.rewind_step:
            raise ValueError(f"rewind_step={self.rewind_step} lies behind the end of a round of steps={steps}")
        method = self.method.in_round(self._index) if isinstance(self.method, RoundMethod) else Fixed(self._masks)
        run = Attachment(
            self.model, optimizer, method, steps=steps, select=list(self._masks),
            steps_per_epoch=self.steps_per_epoch, seed=self.seed + self._index - 1, state=self._resumed, warns=False,
        )  # fmt: skip
        if self._scores is not None and self._resumed is None:
            run.set_scores(self._scores)
        self._resumed = None
        if self._start is None:
            run.on_step(self._remember)
        return run

    def _remember(self, run: Attachment) -> None:
        if run.step == self.rewind_step:
            self._start = _raw_state(self.model, run)

    def _end_round(self, run: Attachment) -> Ticket:
        if run.step == 0:
            raise RuntimeError(f"round {self._index}: no optimiser step was made; train before asking for the ticket")
        if self._start is None:
            raise RuntimeError(f"rewind_step={self.rewind_step} was not reached: round 1 made {run.step} steps")
        found = run.diagnostics()
        masks = self.method.prune(run.weights, run.masks) if isinstance(self.method, PruningMethod) else run.masks
        annealed = (found["temperature"] or 1.0) > 1.0  # a Bernoulli mask is undecided by design
        _warn(self._index, masks, found["undecided"] if annealed else 0.0)
        provenance = {
            "method": describe(self.method), "round": self._index, "rounds": self.rounds, "seed": self.seed,
            "rewind_step": self.rewind_step, "steps": run.step, "steps_spent": self.steps_spent,
            "undecided": found["undecided"], "density": masks.density,
            "layers": {name: kept / max(masks[name].numel(), 1) for name, kept in masks.counts().items()},
            "model": type(unwrapped(self.model)).__name__, "versions": versions(), **self.about,
        }  # fmt: skip
        ticket = Ticket(masks, self._start, provenance)
        if isinstance(self.method, RoundMethod):
            first = {name: self.method.scores(weight) for name, weight in run.weights.items()}
            self._scores = {name: self.method.next_scores(s, first[name]) for name, s in run.scores.items()}
        self._begin = self._start if self.method.rewind else _raw_state(self.model, run)
        self._masks = masks
        self._steps_before += run.step
        self._index += 1
        return ticket

    # ---- interrupting and continuing

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data. Inside a round it holds the state of the round's attachment too; save the model's
        and the optimiser's state beside it."""
        run = self._current.run if self._current is not None and not self._current.over else None
        return {
            "method": describe(self.method), "rounds": self.rounds, "rewind_step": self.rewind_step, "seed": self.seed,
            "index": self._index, "steps_before": self._steps_before,
            "masks": {name: pack(mask) for name, mask in self._masks.items()},
            "scores": self._scores, "begin": self._begin, "start": self._start,
            "run": run.state_dict() if run is not None else self._resumed,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`: iterating yields the interrupted round again, and its ``attach`` restores the
        attachment. Load the model's and the optimiser's own state after that ``attach``.

        Raises:
            ValueError: the state is of another search or another model, or damaged. Nothing has changed then.
        """
        check_keys(state, self.state_dict(), "a ticket search")
        for key in ("method", "rounds", "rewind_step", "seed"):
            mine, theirs = describe(getattr(self, key)), describe(state[key])
            if theirs != mine:
                raise ValueError(f"the saved search has {key}={theirs!r}, this one {mine!r}; make the same search")
        check_count("index", state["index"], least=1, most=self.rounds + 1)
        check_count("steps_before", state["steps_before"], least=0)
        masks = checked_masks(state["masks"], self._masks)
        first = state["index"] == 1
        parts = {"begin": self._begin}
        if state["start"] is not None or not first or self.rewind_step == 0:
            parts["start"] = self._begin
        rounds_scores = self.method.scores if isinstance(self.method, RoundMethod) else None
        if state["scores"] is not None or (rounds_scores and not first):
            parts["scores"] = {n: rounds_scores(self._begin[n]) for n in self._masks} if rounds_scores else {}
        for part, mine in parts.items():
            check_tensors(part, state[part], mine, infinite=part == "scores")
        if state["run"] is not None:
            check_keys(state["run"], ("method", "step", "steps"), "an attachment")
        self._masks, self._begin, self._start = masks, dict(state["begin"]), state["start"]
        self._scores, self._resumed = state["scores"] if rounds_scores else None, state["run"]
        self._index, self._steps_before = state["index"], state["steps_before"]
        self._current = None


class Round:
    """One round of a :class:`TicketSearch`. ``index`` counts from 1; ``run`` is its attachment, once there is one."""

    def __init__(self, search: TicketSearch, index: int) -> None:
        self.index = index
        self.run: Attachment | None = None
        self._search = search
        self._ticket: Ticket | None = None

    @property
    def over(self) -> bool:
        """Whether its ticket has been asked for."""
        return self._ticket is not None

    @property
    def steps_done(self) -> int:
        """Optimiser steps of this round that are not yet in the count of rounds that are over."""
        return self.run.step if self.run is not None and not self.over else 0

    def attach(self, optimizer: Optimizer, *, steps: int) -> Attachment:
        """Like :func:`tombola.attach` with the search's model and method, as this round has them.

        Raises:
            RuntimeError: the round is over, or has its attachment already.
            ValueError: as ``tombola.attach``, or the rewind point lies behind ``steps``.
        """
        if self.over:
            raise RuntimeError(f"round {self.index} is over; go on to the next one")
        if self.run is not None:
            raise RuntimeError(f"round {self.index} is attached already; to begin it anew iterate over the search anew")
        self.run = self._search._attach(optimizer, steps)
        return self.run

    def ticket(self) -> Ticket:
        """End the round and return its ticket. The model is plain from here on and free for other uses.

        Raises:
            RuntimeError: nothing was trained in this round.
        """
        if self._ticket is None:
            if self.run is None:
                raise RuntimeError(f"round {self.index}: call round_.attach(optimizer, steps=…) and train first")
            self._ticket = self._search._end_round(self.run)
            self.run.detach()
        return self._ticket


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _raw_state(model: nn.Module, run: Attachment) -> dict[str, Tensor]:
    """Copies of all tensors of the model, masked parameters as the optimiser sees them."""
    return _copies(model_tensors(model)) | run.weights


def _warn(index: int, masks: Masks, undecided: float) -> None:
    if dead := masks.dead():
        warnings.warn(f"round {index}: no weight is left in {', '.join(dead)}", stacklevel=4)
    if undecided > TRUSTED_UNDECIDED:
        warnings.warn(
            f"round {index}: {undecided:.1%} of the scores are undecided (|β·s| < 4), so the ticket differs from the "
            "network that was trained; train longer, or raise final_temperature or the scores' learning rate",
            stacklevel=4,
        )
