"""The compiled loop that zeroes numbers under a mask of one bit each."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from tombola.sparse.threads import compiled, next_chunk, pointer
from tombola.sparse.vectors import INT64, LANES, at

LINE = 4  # fields of a line of the table
RUN = 8  # vectors that are looked at before anything in them is written


def _emit(context, bits, exponent, values, packed):  # type: ignore[no-untyped-def]
    """Zero RUN vectors of numbers of so many bits where the mask has a 0, if that changes any.

    Returns 1 if the exponent of one that stays has all its bits, as infinity and NaN have, else 0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(bits.literal_value)
        vector, line = ir.VectorType(number, LANES), ir.IntType(LANES)
        zeros, full = (ir.Constant(vector, [value] * LANES) for value in (0, exponent.literal_value))
        *_, values, packed = arguments

        def each() -> list[tuple[Any, Any, Any]]:
            found = []
            for turn in range(RUN):
                mask = builder.load(at(builder, packed, INT64(turn), line), align=1)
                mask = builder.bitcast(mask, ir.VectorType(ir.IntType(1), LANES))
                place = at(builder, values, INT64(turn), vector)
                found.append((place, builder.load(place, align=number.width // 8), mask))
            return found

        def any_of(vector: Any) -> Any:
            whole = builder.bitcast(vector, ir.IntType(vector.type.element.width * LANES))
            return builder.icmp_unsigned("!=", whole, whole.type(0))

        left, endless = zeros, ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES)
        for _, value, mask in each():
            left = builder.or_(left, builder.select(mask, zeros, value))
            is_endless = builder.icmp_unsigned("==", builder.and_(value, full), full)
            endless = builder.or_(endless, builder.and_(mask, is_endless))
        with builder.if_then(any_of(left)):
            for place, value, mask in each():
                builder.store(builder.select(mask, value, zeros), place, align=number.width // 8)
        return builder.zext(any_of(endless), INT64)

    return types.int64(bits, exponent, types.voidptr, types.voidptr), generate


_clear_run: Any = intrinsic(prefer_literal=True)(_emit)


def kernel(bits: int, exponent: int) -> Any:
    """A C function of a job's address: counter, chunks, table.

    A line of the table says of a chunk: how many values, where they are, where their mask is; and what is found there
    is written into it, not 0 if the bits ``exponent`` are all set in a value that stays.
    Weights that are zero already, as after most steps, are not written, and so need not go back to memory.
    """
    kind, size, run = np.dtype(f"i{bits // 8}"), bits // 8, RUN * LANES

    def clear(job_at: Any) -> None:
        job: Any = carray(job_at, (3,), np.int64)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[1]:
                break
            line: Any = carray(pointer(job[2] + 8 * LINE * chunk), (LINE,), np.int64)
            count, place, endless = line[0], 0, np.int64(0)
            values: Any = carray(pointer(line[1]), (count,), kind)
            packed: Any = carray(pointer(line[2]), ((count + 7) // 8,), np.uint8)
            while place + run <= count:
                endless |= _clear_run(bits, exponent, pointer(line[1] + place * size), pointer(line[2] + place // 8))
                place += run
            for rest in range(place, count):
                values[rest] &= -((np.int32(packed[rest // 8]) >> np.int32(rest % 8)) & np.int32(1))
                endless |= np.int64((np.int64(values[rest]) & exponent) == exponent)
            line[3] = endless

    return compiled(clear, f"clear_{kind.name}_{exponent:x}")  # kept in a file of its own for each kind
