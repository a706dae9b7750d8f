"""What ``torchrun`` says about this process, before PyTorch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launched:
    """One of several processes that torchrun has started, maybe on several machines.

    rank, ranks: which of how many. local_rank, local_ranks: which of how many on this machine.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int

    @property
    def patience(self) -> float:
        """Seconds to wait before saying what is wrong: most is wrong on all ranks, and then the first one says it at
        once, and torchrun ends the others."""
        return 0.0 if self.rank == 0 else 5.0 if self.local_rank == 0 else 10.0


def launched() -> Launched | None:
    """Which process this is; None: torchrun did not start it, or it is the only one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    return Launched(
        rank=int(os.environ["RANK"]),
        ranks=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_ranks=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
