"""The tickets of a run: what is written beside them, and the networks that stages begin with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.examples import values_of
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.transplant import transplant
from tombola.lab.runs.workshop import Workshop
from tombola.lab.seeds import derive
from tombola.masks import Masks
from tombola.ticket import Ticket, model_tensors


def about(make: Workshop, run: str) -> dict[str, Any]:
    """Where the tickets of the run of this name come from: its data, and what it takes to build its model again."""
    config, data = make.config, make.data
    shape, classes = list(data.input_shape), data.classes
    model = {"model": config.model, "width": config.width, "input_shape": shape, "classes": classes}
    sparse = {"sparse": True} if config.sparse else {}
    return {"data": config.data, **model, **values_of(data), **sparse, "run": run}


def restore(folder: RunFolder, stage: Stage, model: nn.Module, *, make: Workshop, there: Workshop) -> Masks:
    """Write the stage's ticket, or the control made of it, into ``model``.

    Args:
        folder: of the run.
        stage: which.
        model: a fresh one of ``there``.
        make: makes the networks that the tickets come from.
        there: makes those of the stage.

    Raises:
        LabError: the ticket's file is missing or damaged, or does not fit.
    """
    try:
        ticket = _controlled(Ticket.load(folder.ticket_path(stage.round)), stage, make)
        if stage.transferred:
            return transplant(ticket, model, there.maskable(model))
        return ticket.restore(model)
    except (ValueError, FileNotFoundError) as error:
        raise LabError(f"{error}; delete {folder.path} to start this run over") from error


def _controlled(ticket: Ticket, stage: Stage, make: Workshop) -> Ticket:
    seed = derive(make.config.seed, str(stage.label), stage.round)
    if stage.label == "shuffled":
        return ticket.shuffled(seed=seed)
    if stage.label == "reinitialised":
        # building the model anew draws from the recipe's own distribution, whatever reset_parameters() would do
        return replace(ticket, start=model_tensors(make.model(seed=seed)))
    return ticket
