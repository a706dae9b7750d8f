"""Saving an attachment with ``torch.distributed.checkpoint``, which deals out anew on another number of ranks.

::

    dcp.save({"model": …, "optimizer": …, "run": checkpoint.tensors(run)}, checkpoint_id=folder)

    state = {"model": …, "optimizer": …, "run": checkpoint.empty(run, folder)}
    dcp.load(state, checkpoint_id=folder)
    checkpoint.load(run, state["run"])

All of an attachment's state is tensors here, what is plain data as JSON in one of bytes: nothing of it is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.attach import Attachment
from tombola.sharded import is_sharded, like, local

PLAIN = "plain"


def tensors(run: Attachment) -> dict[str, Tensor]:
    """The state of ``run`` by name; DTensors if its parameters are.

    Raises:
        TypeError: a setting of the scores' optimiser is no plain data.
    """
    found: dict[str, Tensor] = {}
    try:
        text = json.dumps(_packed(run.state_dict(), "", found))
    except TypeError as error:
        raise TypeError(f"checkpoint: the state holds something that is no plain data: {error}") from None
    return found | {PLAIN: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def empty(run: Attachment, folder: str | Path, *, key: str = "run") -> dict[str, Tensor]:
    """Tensors to load a checkpoint into, as those that were saved under ``key``, sharded as ``run`` needs them.

    Raises:
        ValueError: the folder holds no checkpoint, or none with an attachment under ``key``.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        metadata = FileSystemReader(folder).read_metadata()
    except OSError as error:
        raise ValueError(f"checkpoint: {folder} holds no checkpoint of torch.distributed: {error}") from None
    shards = {parameter.shape: parameter for parameter in run.parameters.values() if is_sharded(parameter)}
    found = {}
    for flat, path in (metadata.planner_data or {}).items():
        saved = metadata.state_dict_metadata[flat]
        if len(path) != 2 or path[0] != key or not isinstance(saved, TensorStorageMetadata):
            continue
        dtype, parameter = saved.properties.dtype, shards.get(saved.size)
        if parameter is None:
            found[path[1]] = torch.empty(saved.size, dtype=dtype)
        else:
            found[path[1]] = like(torch.empty_like(local(parameter), dtype=dtype, requires_grad=False), parameter)
    if PLAIN not in found:
        raise ValueError(
            f"checkpoint: {folder} holds no attachment under {key!r}; save checkpoint.tensors(run) there, or give the "
            "key that it was saved under"
        )
    return found


def load(run: Attachment, saved: Mapping[str, Tensor]) -> None:
    """Go on from what :func:`tensors` gave, on any number of ranks.

    Raises:
        ValueError: as :meth:`Attachment.load_state_dict`.
    """
    try:
        content = json.loads(saved[PLAIN].cpu().numpy().tobytes())
        state = _unpacked(content, saved)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"checkpoint: this is not the state of an attachment, or damaged: {error!r}") from None
    run.load_state_dict(state)


def _packed(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    """``value`` as JSON data, which keeps what JSON does not: tensors, by their names, tuples and keys."""
    if isinstance(value, Tensor):
        found[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _packed(entry, f"{path}/{key}", found)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        entries = [_packed(entry, f"{path}/{index}", found) for index, entry in enumerate(value)]
        return {"tuple": entries} if isinstance(value, tuple) else entries
    return value


def _unpacked(value: Any, found: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(entry, found) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return found[content]
    if kind == "tuple":
        return tuple(_unpacked(entry, found) for entry in content)
    return {key: _unpacked(entry, found) for key, entry in content}
