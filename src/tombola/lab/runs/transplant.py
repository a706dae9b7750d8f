"""A ticket in a network for other data: what of it fits is taken, and the rest begins as that network does.

As in the reproduction of Morcos et al., "One ticket to win them all" (arXiv 1906.02773), by Gohil et al. (ReScience
2020): the classifier of a net with another number of classes is not the ticket's, one for as many classes is. Where it
is not, it has the fresh weights that the seed gives the dense net on the new data, and stays dense, as the ticket says
nothing of it; a random mask would only blur what is measured. The same goes for a first layer that sees inputs of
another size. Norms' statistics and all else without a mask come from the ticket where they fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tombola.lab.errors import LabError
from tombola.lab.runs.workshop import Workshop
from tombola.masks import Masks
from tombola.ticket import Ticket

MOST = 0.5  # of the masked weights; when fewer fit, it is worth a warning


def transplant(ticket: Ticket, model: nn.Module, masked: Mapping[str, Tensor]) -> Masks:
    """Write what fits of ``ticket`` into ``model``, and give the masks of all its ``masked`` parameters.

    Raises:
        ValueError: nothing of the masked part fits. The model is unchanged.
    """
    masks = ticket.restore(model, strict=False)
    dense = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in masked.items()}
    return Masks({name: masks.get(name, whole) for name, whole in dense.items()})


def fresh(ticket: Iterable[tuple[str, Tensor]], masked: Mapping[str, Tensor]) -> list[str]:
    """Names of the ``masked`` parameters of a network that a ticket with these parameters leaves fresh and dense."""
    shapes = {name: tensor.shape for name, tensor in ticket}
    return [name for name, weight in masked.items() if shapes.get(name) != weight.shape]


def check(source: Workshop, target: Workshop) -> str:
    """What to warn of when tickets of ``source`` are trained in ``target``; empty: nothing.

    Raises:
        LabError: nothing of a ticket would be in the target's network.
    """
    there = target.maskable(target.model())
    left = fresh(source.maskable(source.model()).items(), there)
    taken = [name for name in there if name not in left]
    where = f"tickets from {source.config.data!r} to {target.config.data!r}"
    if not taken:
        shapes = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in there.items())
        raise LabError(
            f"transfer of {where}: no masked layer of {target.config.model!r} has the same shape for both ({shapes} "
            "there); take a model whose layers do not depend on the size of its inputs, or data of the same size"
        )
    if sum(there[name].numel() for name in taken) >= MOST * sum(weight.numel() for weight in there.values()):
        return ""
    return f"transfer of {where}: only {', '.join(taken)} fits; fresh and dense are {', '.join(left)}"
