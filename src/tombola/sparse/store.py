"""A converted model as one safetensors file: values, positions, everything that stayed dense, and what was chosen."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tombola.methods.protocol import is_number
from tombola.sparse import sealed
from tombola.sparse.choose import Choice
from tombola.sparse.convert import Converted, Row, made
from tombola.sparse.layer import SparseLayer
from tombola.sparse.positions import check, to_places
from tombola.sparse.swap import sparse, weights

FORMAT = "tombola-sparse-1"
_KEYS = ("rows", "inference", "dense_ms", "chosen_ms", "about")


def save(model: Converted, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write ``model`` to one file, atomically.

    Args:
        model: of ``convert``.
        path: the file.
        about: plain data to keep with it, such as where the model comes from.

    Raises:
        RuntimeError: see :meth:`Converted.current`.
        ValueError: a value is not finite.
        TypeError: ``about`` is no plain data.
        OSError: the file cannot be written; an older one is then as it was.
    """
    plain = model.current()
    state = plain.state_dict()
    # copies, because tied weights share memory, which a file cannot: there they are under each of their names
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    said = {
        "rows": [asdict(row) for row in model.rows],
        "inference": model.inference,
        "as_program": model.as_program,
        "dense_ms": model.dense_ms,
        "chosen_ms": model.chosen_ms,
        "about": dict(about or {}),
    }
    sealed.check_numbers(tensors, plain)
    sealed.write(Path(path), FORMAT, said, tensors)


def about(path: str | Path) -> dict[str, Any]:
    """What was saved as ``about``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of :func:`save`.
    """
    return dict(_read(path)[0]["about"])


def load(path: str | Path, model: nn.Module) -> Converted:
    """The converted model in a file. Nothing in it is ever executed, and nothing is timed again.

    Args:
        path: a file of :func:`save`.
        model: the dense model that was converted, or another of the same architecture; it stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of :func:`save`, it is damaged, or it is of another architecture.
    """
    said, tensors = _read(path)
    plain = copy.deepcopy(model).cpu().train(not said["inference"])
    try:
        rows = [_row(row) for row in said["rows"]]
        times = {key: said[key] for key in ("dense_ms", "chosen_ms")}
        if not all(map(_is_time, times.values())):
            raise ValueError(f"the times {times} are no numbers")
        masks = {n: _masks(plain.get_submodule(n), tensors, n) for n in (r.layer for r in rows if r.chosen == "sparse")}
        made(plain, masks, {row.layer: row.chosen for row in rows}).load_state_dict(tensors)
        sealed.check_numbers(tensors, plain)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {reason}") from error
    return Converted(plain, rows, **times, as_program=bool(said.get("as_program")))


def check_sizes(path: str | Path, model: nn.Module) -> None:
    """Raise ValueError if ``model``, dense and perhaps on the meta device, is of other sizes than what the file holds.

    Of the weight of a sparse layer the file tells the number of rows alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: that, or it is not a file of :func:`save`.
    """
    _, tensors = _read(path)
    for name, tensor in model.state_dict().items():
        shape, found = tuple(tensor.shape), tensors.get(name)
        if found is not None:
            fits, has = tuple(found.shape) == shape, f"has shape {tuple(found.shape)}"
        else:
            pointers = tensors.get(f"{name}.pointers", tensors.get(f"{name.removesuffix('.weight')}.pointers"))
            if pointers is None or len(shape) < 2:
                raise ValueError(f"{path} has no {name!r}, which a {type(model).__name__} has")
            fits = (pointers.numel() - 1) * shape[1] == tensor.numel()
            has = f"has {pointers.numel() - 1} rows"
        if not fits:
            raise ValueError(f"{path}: {name!r} {has}, and shape {shape} in the {type(model).__name__} that it names")


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return sealed.read(Path(path), FORMAT, _KEYS, what="sparse model")


def _row(said: Any) -> Row:
    row = Row(**said)
    sizes, times = (row.density, row.bytes_before, row.bytes_after), (row.dense_ms, row.bf16_ms, row.sparse_ms)
    is_named = isinstance(row.layer, str) and row.chosen in get_args(Choice)
    if not (is_named and all(map(is_number, sizes)) and all(map(_is_time, times))):
        raise ValueError(f"the row {said} is none of a layer")
    return row


def _is_time(value: object) -> bool:
    return value is None or is_number(value)


def _masks(layer: nn.Module, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Where the layer's values stand in its dense weights."""
    empty = sparse(layer, {key: torch.zeros_like(w, dtype=torch.bool) for key, w in weights(layer).items()})
    masks = {}
    for path, part in empty.named_modules():
        if isinstance(part, SparseLayer):
            full = f"{name}.{path}".removesuffix(".")
            pointers, columns = tensors[f"{full}.pointers"], tensors[f"{full}.columns"]
            try:
                check(pointers, columns, part.geometry)
            except ValueError as error:
                raise ValueError(f"{full}.{error}") from None
            places = to_places(pointers, columns, part.geometry)
            masks[part.dense_name(path)] = part.scattered(torch.ones_like(places, dtype=torch.bool), places)
    return masks
