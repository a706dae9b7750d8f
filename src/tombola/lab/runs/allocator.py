"""How the C library hands out memory in processes that train.

A training step frees what the next one allocates again, activations above all. The GNU C library gives large blocks
back to the system, which then clears every page of them anew: a tenth of a step on a CPU, or more. Here a process keeps
what it once had, in huge pages. Other C libraries pay no heed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "GLIBC_TUNABLES"  # read when a process starts
TUNABLES = {
    "hugetlb": 1,  # ask for huge pages, where the system leaves that to programs
    "mmap_threshold": 2**30,  # larger blocks are still given back
    "trim_threshold": 2**40,
    "top_pad": 2**26,  # grow by so much at once
}


def environment() -> dict[str, str]:
    """For a process that is to train; empty if somebody has chosen an allocator's settings already."""
    if VARIABLE in os.environ or any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return {}
    return {VARIABLE: ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}


@contextmanager
def for_children() -> Iterator[None]:
    """Processes that are started inside it have that environment."""
    own = environment()
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
