"""Tensors and plain data in one safetensors file that tells when it is damaged. Nothing in it is ever executed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tombola.digest import digest
from tombola.files import write_atomically
from tombola.states import finite


def write(path: Path, form: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file of the format ``form``, atomically, with a checksum.

    Raises:
        OSError: it cannot be written; an older one is then as it was.
        TypeError: the content is no plain data.
    """
    text = json.dumps(content)
    metadata = {"format": form, "content": text, "sha256": digest(tensors, [text])}
    write_atomically(path, to_bytes(dict(tensors), metadata))


def read(path: Path, form: str, keys: Collection[str], *, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content and tensors of a file of :func:`write`; one of an older version has no checksum to be compared.

    Args:
        path: the file.
        form: the format that it must have.
        keys: what must be in its content; ``about``, plain data of the user's, among them.
        what: it is said to be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another format, its content is incomplete, or it is not as it was written.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {form!r}")
            if unknown := sorted(metadata.keys() - {"format", "content", "sha256"}):
                raise ValueError(f"it has an unknown entry {unknown[0]!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata.get("content", "")
        if "sha256" in metadata and metadata["sha256"] != digest(tensors, [text]):
            raise ValueError("its content does not match its checksum, so the file is damaged; copy or make it again")
        content = json.loads(text)
        if not isinstance(content, dict) or set(keys) - content.keys() or not isinstance(content["about"], dict):
            raise ValueError("its content is incomplete")
        return content, tensors
    except FileNotFoundError:
        raise
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a {what}: {reason}") from error


def check_numbers(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError if a tensor of the model has a NaN, or a parameter an infinity, which a buffer may well have."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not finite(tensor if name in parameters else tensor[~tensor.isinf()]):
            raise ValueError(f"{name!r} has NaN or infinite values in {tensor.dtype}")
