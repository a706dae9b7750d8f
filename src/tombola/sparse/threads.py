"""Compiled loops on the threads of PyTorch itself: its own OpenMP pool, as many as ``torch.get_num_threads()``.

A loop is a Numba function of one address, that of a *job*: 64-bit integers, of which the first is a counter and the
second the number of chunks. Each thread takes the next chunk from the counter until there are none; a chunk is to
write where no other does, so that it does not matter which thread takes it.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any
from zlib import crc32

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from tombola.compiled import kept


def _next_chunk(context, job):  # type: ignore[no-untyped-def]
    """The next number from the job's counter, by an atomic addition."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(types.voidptr), generate


def _pointer(context, address):  # type: ignore[no-untyped-def]
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


next_chunk: Any = intrinsic(_next_chunk)
pointer: Any = intrinsic(_pointer)


def compiled(loop: Callable[[Any], None], name: str, *, fastmath: bool | set[str] = False) -> Any:
    """``loop`` as machine code, kept on disk for the next process under ``name``, which no other of its file has.

    What is kept counts until the file of the loop changes; what loops are made of here is therefore part of the name.
    """
    loop.__qualname__ = f"{name}_{_stamp()}"
    signature = types.void(types.voidptr)
    return kept(lambda **options: cfunc(signature, fastmath=fastmath, **options)(loop)).ctypes


@cache
def _stamp() -> str:
    """A digest of the code that is built into loops of other files."""
    texts = [Path(__file__).with_name(name).read_bytes() for name in ("threads.py", "vectors.py")]
    return f"{crc32(b''.join(texts)):08x}"


def run(loop: Any, job: list[int]) -> None:
    """Run a compiled loop. An exception in it would be lost, so it must not be able to raise one."""
    fields = array("q", job)
    (at, _), threads = fields.buffer_info(), min(torch.get_num_threads(), job[1])
    if threads <= 1:
        loop(at)
    elif (parallel := _openmp()) is not None:
        parallel(loop, at, threads, 0)
    else:
        others = [Thread(target=loop, args=(at,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        loop(at)
        for thread in others:
            thread.join()


def sweep(
    loop: Any, sizes: list[int], addresses: Callable[[int, int], Sequence[int]], *more: int, least: int
) -> set[int]:
    """:func:`run` over arrays of these sizes, cut for the threads into parts of ``least`` numbers or more.

    Its job: counter, chunks, address of a table, ``more``. A line of the table: how many numbers a part has, the
    ``addresses`` of the array of this number from the part's beginning, a multiple of 16, on; and 0.

    Returns:
        numbers of the arrays of which the loop has made that 0 something else in some part.
    """
    most = -(-max(least, sum(sizes) // (4 * torch.get_num_threads())) // 16) * 16
    cut = [(which, begin) for which, size in enumerate(sizes) for begin in range(0, size, most)]
    if not cut:
        return set()
    table = [[min(most, sizes[which] - begin), *addresses(which, begin), 0] for which, begin in cut]
    lines = np.array(table, dtype=np.int64)
    run(loop, [0, len(cut), lines.ctypes.data, *more])
    return {which for (which, _), told in zip(cut, lines[:, -1].tolist(), strict=True) if told}


@cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the OpenMP library that PyTorch itself runs on; None where it runs on something else."""
    try:
        parallel = ctypes.CDLL(f"{torch.__path__[0]}/lib/libtorch_cpu.so").GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel
