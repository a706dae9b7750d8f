"""Machine code of Numba's, kept on disk for the next process where there is a folder for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def kept(make: Callable[..., Any]) -> Any:
    """What ``make(cache=True)`` compiles, or ``make()`` if Numba finds no place to keep it."""
    try:
        return make(cache=True)
    except RuntimeError:  # no folder to keep it in
        return make()
