"""From a ticket to a really sparse network in a file, and back to a network from its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tombola.lab import models
from tombola.lab.engines import DENSE, Speed, compare
from tombola.lab.errors import LabError
from tombola.sparse.convert import Converted, convert
from tombola.sparse.store import about, load, save
from tombola.ticket import Ticket


def build(said: Mapping[str, Any]) -> nn.Module:
    """The model that a ticket or a sparse file says it is of, on the CPU.

    Raises:
        LabError: it does not say, or there is no such model.
    """
    missing = [name for name in ("model", "input_shape", "classes") if name not in said]
    if missing:
        raise LabError(f"it does not say its {' and '.join(missing)}: it was not made by `tombola train` or `search`")
    shape, width = said["input_shape"], said.get("width", 1.0)
    return models.build(said["model"], input_shape=shape, classes=said["classes"], seed=0, width=width)


def export(ticket: Ticket, path: Path, *, batch: int, bf16: bool) -> Converted:
    """Convert the ticket's network for inference in batches of ``batch``, as fast as measured here, and save it.

    Raises:
        LabError: the model cannot be had or does not fit, or the file cannot be written.
    """
    said = {name: ticket.provenance[name] for name in _ABOUT if name in ticket.provenance}
    model = build(said)
    try:
        masks = ticket.restore(model)
    except ValueError as error:
        raise LabError(str(error)) from error
    fast = convert(model.eval(), masks, example=torch.randn(batch, *said["input_shape"]), bf16=bf16)
    try:
        save(fast, path, about={**said, "batch": batch, "density": ticket.density})
    except OSError as error:
        raise LabError(f"{path}: cannot be written: {error.strerror}; choose another with --output") from error
    return fast


_ABOUT = ("model", "input_shape", "classes", "width", "data", "run", "seed", "trained")


def restored(path: Path) -> Converted:
    """The network in a file of :func:`export`.

    Raises:
        LabError: there is none, or it is damaged.
    """
    try:
        return load(path, build(about(path)))
    except FileNotFoundError:
        raise LabError(f"{path}: there is no such file; `tombola export TICKET --to sparse` makes one") from None
    except (ValueError, LabError) as error:
        raise LabError.about(path, error) from error


def _dense(path: Path) -> nn.Module:
    return restored(path).to_dense()


def speeds(path: Path, batch: int, *, threads: int, turns: int, bf16: bool, tell: Any) -> list[Speed]:
    """The network in a file beside the same one, dense, in other engines.

    Raises:
        LabError: as :func:`restored`.
    """
    restored(path)  # mistakes are found here and not in every process
    x = torch.randn(batch, *about(path)["input_shape"], generator=torch.Generator().manual_seed(0))
    engines = [name for name in DENSE if bf16 or "bfloat16" not in name]
    make, dense = partial(restored, path), partial(_dense, path)
    return compare(make, dense, x, threads=threads, turns=turns, engines=engines, tell=tell)


def throughput(batch: int, speed: Speed) -> float:
    """Examples a second."""
    return batch / speed.milliseconds * 1000 if math.isfinite(speed.milliseconds) else float("nan")
