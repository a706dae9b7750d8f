"""One seed a run; every random choice in it has its own seed, derived from what the choice is for."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2⁶³) that depends on ``seed`` and ``purpose`` alone, so that no generator state need be saved."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
