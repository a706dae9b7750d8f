"""From a ticket to its network in a file of another form, and from a really sparse one back to a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.lab import models
from tombola.lab.engines import DENSE, Speed, compare
from tombola.lab.errors import LabError
from tombola.lab.examples import KEY, example
from tombola.lab.forms import FORMS, write
from tombola.masks import Masks
from tombola.methods.protocol import is_number
from tombola.sparse import semi_structured
from tombola.sparse.convert import Converted, convert
from tombola.sparse.store import about, check_sizes, load, save
from tombola.ticket import Ticket

MOST_VALUES = 2**27
"""In one example, those of a volume of 512³."""


def build(
    said: Mapping[str, Any],
    *,
    own: str | None = None,
    check: Callable[[nn.Module], object] = lambda outline: None,
) -> nn.Module:
    """The model that a ticket or a sparse file says it is of, on the CPU.

    Anybody can have made the file, so a ``module:function`` that it names is not imported on its word alone.

    Args:
        said: by the file.
        own: that name once more, as the person gives it; None: a built-in model, or nothing.
        check: called before with a built-in model on the meta device, which has shapes and takes no memory, whatever
            sizes the file claims; it raises ValueError if the file's tensors contradict them.

    Raises:
        ValueError: of ``check``.
        LabError: it does not say, or nonsense; there is no such model; or it is code that nobody has asked for.
    """
    missing = [name for name in ("model", "input_shape", "classes") if name not in said]
    if missing:
        raise LabError(f"it does not say its {' and '.join(missing)}: it was not made by `tombola train` or `search`")
    name, shape, classes, width = said["model"], said["input_shape"], said["classes"], said.get("width", 1.0)
    sound = {
        "model": isinstance(name, str),
        "input_shape": isinstance(shape, list | tuple)
        and all(type(size) is int and size > 0 for size in shape)
        and math.prod(shape) <= MOST_VALUES,
        "classes": type(classes) is int and classes > 0,
        "width": is_number(width) and width > 0,
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise LabError(f"its {key} is {said[key]!r:.60}, which no model has; the file is damaged or foreign")
    if own is None and ":" in name:
        raise LabError(f"its model {name!r} is somebody's own code; if you trust that, run it with --model {name!r}")
    if own not in (None, name):
        raise LabError(f"it is of the model {name!r}, not of {own!r}: leave --model out, or give that one")
    make = partial(models.build, name, input_shape=shape, classes=classes, seed=0, width=width)
    if name in models.MODELS:
        with torch.device("meta"):
            outline = make()
        check(outline)
    return make()


def network(ticket: Ticket, *, own: str | None = None) -> tuple[nn.Module, Masks]:
    """The network of the ticket, in inference mode on the CPU, with zeros where nothing is kept; and its masks.

    Here and below ``own`` is that of :func:`build`.

    Raises:
        LabError: the model cannot be had or does not fit.
    """
    try:
        model = build(ticket.provenance, own=own, check=ticket.restore)
        masks = ticket.restore(model)
    except ValueError as error:
        raise LabError(str(error)) from error
    return model.eval(), masks


def export_sparse(ticket: Ticket, path: Path, *, batch: int, bf16: bool, own: str | None = None) -> Converted:
    """Convert the ticket's network for inference in batches of ``batch``, as fast as measured here, and save it.

    Raises:
        LabError: the model cannot be had or does not fit, or the file cannot be written.
    """
    model, masks = network(ticket, own=own)
    x = _fitting(model, ticket.provenance, batch)
    fast = convert(model, masks, example=x, bf16=bf16)
    with _writing(path):
        save(fast, path, about={**_about(ticket), "batch": batch})
    return fast


def export_semi_structured(ticket: Ticket, path: Path, *, bf16: bool, own: str | None = None) -> dict[str, str | None]:
    """Write the ticket's network with semi-structured weights; masked parameter -> why it stays dense, or None.

    Raises:
        LabError: the model cannot be had or does not fit, no weight fits 2:4, or the file cannot be written.
    """
    model, masks = network(ticket, own=own)
    try:
        with _writing(path):
            dtype = torch.bfloat16 if bf16 else torch.float16
            return semi_structured.save(model, masks, path, dtype=dtype, about=_about(ticket))
    except ValueError as error:
        raise LabError(str(error)) from error


def export_dense(ticket: Ticket, path: Path, *, form: str, own: str | None = None) -> str:
    """Write the ticket's network, dense with zeros, in a form of ``tombola.lab.forms``; what was checked, or "".

    Raises:
        LabError: the model cannot be had or does not fit, or cannot be exported so, or the file cannot be written.
    """
    model, _ = network(ticket, own=own)
    x = _fitting(model, ticket.provenance, 3) if FORMS[form].run else torch.empty(0)
    return write(form, model, x, path)


@torch.no_grad()
def _fitting(model: nn.Module, said: Mapping[str, Any], batch: int) -> Tensor:
    """A batch that ``model`` is sure to take."""
    x = example(said, batch)
    try:
        model(x)
    except Exception as error:  # whatever a model that somebody else wrote may raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        known = "" if KEY in said else ", which is meant where a ticket does not say; train once more for one that does"
        inputs = f"inputs of shape {tuple(x.shape)} and {x.dtype}{known}"
        raise LabError(f"its model {said['model']!r} does not take {inputs} ({reason})") from error
    return x


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LabError(f"{path}: cannot be written: {error.strerror}; choose another with --output") from error


def _about(ticket: Ticket) -> dict[str, Any]:
    said = {name: ticket.provenance[name] for name in _ABOUT if name in ticket.provenance}
    return {**said, "density": ticket.density}


_ABOUT = ("model", "input_shape", "classes", "width", "data", "run", "seed", "trained", KEY)


def restored(path: Path, *, own: str | None = None) -> Converted:
    """The network in a file of :func:`export_sparse`.

    Raises:
        LabError: there is none, or it is damaged.
    """
    try:
        return load(path, build(about(path), own=own, check=partial(check_sizes, path)))
    except FileNotFoundError:
        raise LabError(f"{path}: there is no such file; `tombola export TICKET --to sparse` makes one") from None
    except (ValueError, LabError) as error:
        raise LabError.about(path, error) from error


def _dense(path: Path, *, own: str | None) -> nn.Module:
    return restored(path, own=own).to_dense()


def speeds(
    path: Path, batch: int, *, threads: int, turns: int, bf16: bool, tell: Any, own: str | None = None
) -> list[Speed]:
    """The network in a file beside the same one, dense, in other engines.

    Raises:
        LabError: as :func:`restored`.
    """
    x = _fitting(restored(path, own=own), about(path), batch)  # mistakes are found here and not in every process
    engines = [name for name in DENSE if bf16 or "bfloat16" not in name]
    make, dense = partial(restored, path, own=own), partial(_dense, path, own=own)
    return compare(make, dense, x, threads=threads, turns=turns, engines=engines, tell=tell)


def throughput(batch: int, speed: Speed) -> float:
    """Examples a second."""
    return batch / speed.milliseconds * 1000 if math.isfinite(speed.milliseconds) else float("nan")
