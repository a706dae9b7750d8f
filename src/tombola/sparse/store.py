"""A converted model as one safetensors file: values, positions, everything that stayed dense, and what was chosen."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tombola.files import write_atomically
from tombola.sparse.convert import Converted, Row, made
from tombola.sparse.layer import SparseLayer
from tombola.sparse.positions import check, to_places
from tombola.sparse.swap import sparse, weights

FORMAT = "tombola-sparse-1"


def save(model: Converted, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write ``model`` to one file, atomically.

    Args:
        model: of ``convert``.
        path: the file.
        about: plain data to keep with it, such as where the model comes from.

    Raises:
        RuntimeError: see :meth:`Converted.current`.
        OSError: the file cannot be written; an older one is then as it was.
    """
    state = model.current().state_dict()
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
    write_atomically(Path(path), to_bytes(tensors, {"format": FORMAT, "content": json.dumps(said)}))


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
        rows = [Row(**row) for row in said["rows"]]
        masks = {n: _masks(plain.get_submodule(n), tensors, n) for n in (r.layer for r in rows if r.chosen == "sparse")}
        made(plain, masks, {row.layer: row.chosen for row in rows}).load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {reason}") from error
    times = {"dense_ms": said["dense_ms"], "chosen_ms": said["chosen_ms"]}
    return Converted(plain, rows, **times, as_program=said.get("as_program", False))


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            said = json.loads(metadata["content"])
            if not isinstance(said, dict) or {"rows", "inference", "dense_ms", "chosen_ms", "about"} - said.keys():
                raise ValueError("its content is incomplete")
            return said, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a sparse model: {str(error).splitlines()[0]}") from error


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
