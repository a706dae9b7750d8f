"""Settings of runs that came later than the first runs.

These have files without them, and keep their names: where a setting is as it was before, names do without it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEFORE: Mapping[str, Any] = {
    "sparse": False,
    "inputs": None,
    "label_smoothing": 0.0,
    "clip": None,
    "examples": None,
    "lottery": "no",
    "transfer": None,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "micro_batch": None,
}
"""Setting -> what every run without it is; whatever the default may become, this must stay."""
IMAGES_BEFORE: Mapping[str, Any] = {"channels": 3}
"""The same for the settings of ``inputs`` that are images."""


def without_later(plain: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run as plain values, without those that are as they were before."""
    plain = _without(plain, BEFORE)
    return plain | {"inputs": _without(plain["inputs"], IMAGES_BEFORE)} if _has_images(plain) else plain


def with_later(plain: Any) -> Any:
    """The inverse. What is no object is left for others to complain about."""
    if not isinstance(plain, dict):
        return plain
    read = {"inputs": {**IMAGES_BEFORE, **plain["inputs"]}} if _has_images(plain) else {}
    return {**BEFORE, **plain, **read}


def _without(plain: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in before or value != before[key]}


def _has_images(plain: Mapping[str, Any]) -> bool:
    inputs = plain.get("inputs")
    return isinstance(inputs, Mapping) and inputs.get("kind") == "images"
