"""Where and how a process computes: what a run needs to be told besides what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class How:
    """Where and how a process computes.

    Attributes:
        device: where to compute. Numbers of one device are repeatable on the CPU, and close on a GPU.
        threads: of PyTorch, while runs are at work. Numbers may depend on it in the last bits.
        data_dir: where data sets that are files lie.
        data_dirs: the same for data sets of these names that lie elsewhere.
        workers: processes that read images which do not stay in memory.
        checkpoint_share: of the time that may go into checkpoints, which are made at the ends of epochs: small runs
            save every second or so, large ones more rarely. ``math.inf``: at the end of each epoch.
        together: how many runs it trains at once, at most.
    """

    device: str = "cpu"
    threads: int = 1
    data_dir: Path | None = None
    data_dirs: Mapping[str, Path] = field(default_factory=dict)
    workers: int = 0
    checkpoint_share: float = 0.02
    together: int = 1


ON_ONE_CORE = How()
"""Unless told otherwise: one thread on the CPU."""
