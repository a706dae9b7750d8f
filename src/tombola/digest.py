"""A checksum of tensors and texts, for files that tell when they are damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], texts: Iterable[str]) -> str:
    """SHA-256, in hexadecimal, of ``texts`` and of the names, types, shapes and values of ``tensors`` on the CPU."""
    content = hashlib.sha256(json.dumps(list(texts)).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
