"""Checkpoint files that prove themselves before they are read."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from tombola.files import write_atomically
from tombola.lab.errors import LabError

_MAGIC = b"tombola checkpoint 1\n"
_DIGEST = 64  # hex digits of a SHA-256
_HEAD = len(_MAGIC) + _DIGEST + 1


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save ``state`` (tensors, numbers, strings, lists, dicts) behind a magic line and a SHA-256 of what follows."""
    buffer = io.BytesIO()
    buffer.write(_MAGIC + b"0" * _DIGEST + b"\n")
    torch.save(state, buffer)
    content = buffer.getbuffer()  # no copy: a checkpoint may be large
    content[len(_MAGIC) : _HEAD - 1] = hashlib.sha256(content[_HEAD:]).hexdigest().encode()
    write_atomically(path, content)


def read_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that :func:`write_checkpoint` saved; no code in the file is ever run.

    Raises:
        LabError: the file cannot be read, is no checkpoint, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.startswith(_MAGIC):
        raise LabError(f"{path}: not a tombola checkpoint; delete it to go on without it")
    digest, payload = content[len(_MAGIC) : _HEAD - 1], memoryview(content)[_HEAD:]
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise LabError(f"{path}: the checkpoint is damaged (its SHA-256 differs); delete it to go on without it")
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location=device)
    except Exception as error:  # torch gives no narrower promise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabError(f"{path}: the checkpoint cannot be loaded ({reason}); delete it to go on without it") from error
    if not isinstance(state, dict):
        raise LabError(f"{path}: holds {type(state).__name__}, not a checkpoint's dict; delete it to go on without it")
    return state
