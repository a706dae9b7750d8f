"""How fast the machine can be at best: multiply-adds of vectors in registers, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.sparse.threads import compiled, next_chunk, pointer
from tombola.sparse.vectors import LANES, VECTOR, multiply_add

_SUMS = 12  # independent sums: enough to keep the processor busy, few enough for its registers
ROUND = _SUMS * LANES


@cache
def kernel() -> Any:
    """A loop of nothing but vector multiply-adds in registers: chunks of ``job[2]`` rounds of :data:`ROUND` each."""

    def emit(context, count, result):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count, result = arguments
            factor = builder.load(builder.bitcast(result, VECTOR.as_pointer()), align=4)
            sums = [cgutils.alloca_once_value(builder, factor) for _ in range(_SUMS)]
            with cgutils.for_range(builder, count):
                for total in sums:
                    builder.store(multiply_add(builder, factor, builder.load(total), factor), total)
            for total in sums:  # so that none of it is left out
                pointer = builder.bitcast(result, VECTOR.as_pointer())
                before = builder.load(pointer, align=4)
                builder.store(builder.fadd(before, builder.load(total)), pointer, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.voidptr), generate

    rounds: Any = intrinsic(emit)

    def walk(job_at: Any) -> None:
        job: Any = carray(job_at, (4,), np.int64)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[1]:
                break
            rounds(job[2], pointer(job[3] + 4 * LANES * chunk))

    return compiled(walk, "multiply_adds")
