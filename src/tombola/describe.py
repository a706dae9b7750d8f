"""Where something comes from, as plain data: for provenance and for checking that a saved state fits."""

from __future__ import annotations

import functools
import numbers
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

import tombola
from tombola.masks import Masks


def describe(value: Any) -> Any:
    """``value`` as JSON data: a dataclass becomes its name and every field, a partial its function and arguments."""
    if isinstance(value, Masks):
        return {"layers": len(value), "kept": value.kept, "of": value.total, "sha256": value.digest()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__} | {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, functools.partial):
        arguments = {str(index): describe(argument) for index, argument in enumerate(value.args)}
        return {"call": describe(value.func)} | arguments | {k: describe(v) for k, v in value.keywords.items()}
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, numbers.Real):  # numpy's, for instance
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def versions() -> dict[str, str]:
    """Of this library, PyTorch and Python."""
    return {"tombola": tombola.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
