"""The compiled loop that zeroes numbers under a mask of one bit each."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from tombola.sparse.threads import compiled, next_chunk, pointer
from tombola.sparse.vectors import INT64, LANES, at

RUN = 8  # vectors that are looked at before anything in them is written


def _emit(context, bits, values, packed):  # type: ignore[no-untyped-def]
    """Zero RUN vectors of integers of so many bits where the mask has a 0, if that changes any."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(bits.literal_value)
        vector, line = ir.VectorType(number, LANES), ir.IntType(LANES)
        zeros = ir.Constant(vector, [0] * LANES)
        _, values, packed = arguments

        def each() -> list[tuple[Any, Any, Any]]:
            found = []
            for turn in range(RUN):
                mask = builder.load(at(builder, packed, INT64(turn), line), align=1)
                mask = builder.bitcast(mask, ir.VectorType(ir.IntType(1), LANES))
                place = at(builder, values, INT64(turn), vector)
                found.append((place, builder.load(place, align=number.width // 8), mask))
            return found

        left = zeros
        for _, value, mask in each():
            left = builder.or_(left, builder.select(mask, zeros, value))
        whole = builder.bitcast(left, ir.IntType(number.width * LANES))
        with builder.if_then(builder.icmp_unsigned("!=", whole, whole.type(0))):
            for place, value, mask in each():
                builder.store(builder.select(mask, value, zeros), place, align=number.width // 8)
        return context.get_dummy_value()

    return types.void(bits, types.voidptr, types.voidptr), generate


_clear_run: Any = intrinsic(prefer_literal=True)(_emit)


def kernel(bits: int) -> Any:
    """A C function of a job's address: counter, chunks, values, packed mask, how many values, bytes of a chunk.

    Weights that are zero already, as after most steps, are not written, and so need not go back to memory.
    """
    kind, size, run = np.dtype(f"i{bits // 8}"), bits // 8, RUN * LANES

    def clear(job_at: Any) -> None:
        job: Any = carray(job_at, (6,), np.int64)
        count, each = job[4], 8 * job[5]
        values: Any = carray(pointer(job[2]), (count,), kind)
        packed: Any = carray(pointer(job[3]), ((count + 7) // 8,), np.uint8)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[1]:
                break
            place, last = chunk * each, min((chunk + 1) * each, count)
            while place + run <= last:
                _clear_run(bits, pointer(job[2] + place * size), pointer(job[3] + place // 8))
                place += run
            for rest in range(place, last):
                values[rest] &= -((np.int32(packed[rest // 8]) >> np.int32(rest % 8)) & np.int32(1))

    return compiled(clear, f"clear_{kind.name}")  # kept in a file of its own for each kind
