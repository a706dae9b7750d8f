"""Many compiled steps in one go: each thread takes part in all of them, one after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

from tombola.sparse import kernels, threads
from tombola.sparse.inference import gathers, moves

WIDTH = 40  # 64-bit integers of a step: the job of its kernel, and at the end:
_CODE, _ACTIVE = WIDTH - 2, WIDTH - 1  # the kernel's address; how many threads are at work in it
_KERNELS: tuple[tuple[tuple[str, ...], Callable[[str], Any], tuple[str, ...]], ...] = (
    (kernels.FIELDS, kernels.kernel, ("product_at", "dot")),
    (gathers.FIELDS, gathers.kernel, ("gather", "runs")),
    (moves.FIELDS, moves.kernel, ("mean", "join", "enter", "leave")),
)


def _call(context, code, job):  # type: ignore[no-untyped-def]
    """Call the function at an address with a job."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, job = arguments
        kind = ir.FunctionType(ir.VoidType(), [job.type])
        builder.call(builder.inttoptr(code, kind.as_pointer()), [job])
        return context.get_dummy_value()

    return types.void(types.int64, types.voidptr), generate


def _added(context, address, number):  # type: ignore[no-untyped-def]
    """Add to the integer at an address, in one go for all threads, and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, number = arguments
        place = builder.inttoptr(address, ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, number, "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _loaded(context, address):  # type: ignore[no-untyped-def]
    """The integer at an address, as other threads left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), generate


call: Any = intrinsic(_call)
added: Any = intrinsic(_added)
loaded: Any = intrinsic(_loaded)


@cache
def _loop() -> Any:
    def steps(at: Any) -> None:
        head: Any = carray(at, (4,), np.int64)
        for step in range(head[2]):
            job = head[3] + step * 8 * WIDTH
            jobs: Any = carray(threads.pointer(job), (WIDTH,), np.int64)
            # whoever is not there yet when the others have done all of a step finds nothing left of it
            if loaded(job) < jobs[1]:
                added(job + 8 * _ACTIVE, 1)
                call(jobs[_CODE], threads.pointer(job))
                added(job + 8 * _ACTIVE, -1)
            while loaded(job) < jobs[1] or loaded(job + 8 * _ACTIVE) > 0:
                pass

    return threads.compiled(steps, "steps")


def table(steps: Iterable[tuple[str, Mapping[str, int]]]) -> NDArray[np.int64]:
    """Steps, each a kernel's name and the fields of its job, as :func:`run` takes them."""
    rows = []
    for name, values in steps:
        fields, kernel = next((fields, make) for fields, make, names in _KERNELS if name in names)
        row = [values.get(field, 0) for field in fields]
        address = ctypes.cast(kernel(name), ctypes.c_void_p).value
        rows.append([*row, *[0] * (_CODE - len(row)), address, 0])
    return np.array(rows, dtype=np.int64)


def run(steps: NDArray[np.int64]) -> None:
    """Run all ``steps``; each begins when the one before is done."""
    steps[:, 0] = 0
    threads.run(_loop(), [0, torch.get_num_threads(), len(steps), steps.ctypes.data])
