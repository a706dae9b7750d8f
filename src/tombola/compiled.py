"""Machine code of Numba's: what to do without it, and where it is kept for the next process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def _missing() -> str | None:
    """Why Numba cannot be imported; None if it can."""
    try:
        import numba  # noqa: F401  # takes a while: not before it is needed
    except (ImportError, OSError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


@cache
def available() -> bool:
    """Whether Numba is here; if it is not, a warning says once what that means for masks."""
    if (reason := _missing()) is None:
        return True
    warnings.warn(
        f"Numba cannot be imported ({reason}): masks and scores are computed by PyTorch's own operations, which takes "
        "longer; sparse layers cannot compute at all",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def need(what: str) -> None:
    """Raise ImportError, on behalf of ``what``, unless Numba is here."""
    if (reason := _missing()) is not None:
        raise ImportError(
            f"{what} computes by Numba, which cannot be imported here ({reason}); install it (pip install numba), or "
            "train under masks, which do without"
        )


def kept(make: Callable[..., Any]) -> Any:
    """What ``make(cache=True)`` compiles, or ``make()`` if there is no place to keep it; a warning says so once.

    It is to compile at once, with a signature: what compiles when it is called would fail there.
    """
    try:
        return make(cache=True)
    except (RuntimeError, OSError):  # no folder that can be written to, or no room in it
        _tell()
        return make()


@cache
def _tell() -> None:
    warnings.warn(
        "compiled code cannot be kept on disk, so that each process compiles it anew, which takes seconds; set "
        "NUMBA_CACHE_DIR to a folder that can be written to",
        RuntimeWarning,
        stacklevel=3,
    )
