"""Fields of a record that was read from a file, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tombola.lab.errors import LabError


def field(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """The value of `key`, which is of such a kind.

    Raises:
        LabError: it is missing or of another kind; the message names `place`.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
    if key not in record:
        raise LabError(f"{place}: has no {key} ({wanted}); the file is damaged or was written by another version")
    value = record[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise LabError(f"{place}: {key} is {value!r}, must be {wanted}; the file is damaged or foreign")
    return value


def finite(value: float | None) -> float | None:
    """The number, or None if there is none or it is not finite."""
    return value if value is not None and math.isfinite(value) else None
