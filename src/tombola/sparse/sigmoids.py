"""The compiled loops of :mod:`tombola.sigmoid`."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.sparse.threads import compiled, next_chunk, pointer
from tombola.sparse.vectors import (
    BYTE,
    FLOAT,
    INT32,
    INT64,
    LANES,
    VECTOR,
    Tile,
    at,
    call,
    fields,
    multiply_add,
    splat,
)  # fmt: skip

FIELDS = ("counter", "chunks", "table", "beta", "scale", "price")
_field: Any = namedtuple("_Field", FIELDS)(*range(len(FIELDS)))  # a plain tuple's names would not be constants
_SIZE = len(FIELDS)
CHUNKS = {  # what a line of the table says of a chunk: how many floats of each, and where they begin; and what is told
    "pull_back": ("count", "grad", "weight", "score", "out", "endless"),  # not 0: a gradient is infinite or NaN
    "apply": ("count", "weight", "score", "out", "endless"),
}
_NAMES = tuple(CHUNKS)

_ROUND = 1.5 * 2.0**23  # added to a float, leaves the nearest whole number in its lowest bits
_LARGEST = 87.0  # e to minus this is still an ordinary float
_LN2 = 0.693359375, -2.12194440e-4  # in two parts, the first of few bits


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [value] * LANES)


def _exponential(builder: Any, x: Any) -> Any:
    """eˣ of x in −87 … 0: 2ⁿ times a polynomial of what is left; NaN stays."""
    shifted = builder.fadd(builder.fmul(x, _constant(1 / math.log(2))), _constant(_ROUND))
    whole = builder.fsub(shifted, _constant(_ROUND))
    for part in _LN2:
        x = multiply_add(builder, x, whole, _constant(-part))
    total = _constant(1 / math.factorial(7))
    for power in range(6, -1, -1):
        total = multiply_add(builder, _constant(1 / math.factorial(power)), total, x)
    integers = ir.VectorType(INT32, LANES)
    power = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(total, integers), power), VECTOR)


def _sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + e⁻ˣ); 0 and 1 at ∓∞."""
    zeros, ones = _constant(0.0), _constant(1.0)
    size = call(builder, "llvm.fabs.v16f32", VECTOR, [x])
    is_large = builder.fcmp_ordered(">", size, _constant(_LARGEST))
    power = _exponential(builder, builder.fneg(builder.select(is_large, zeros, size)))
    power = builder.select(is_large, zeros, power)
    above = builder.select(builder.fcmp_ordered("<", x, zeros), power, ones)
    # a reciprocal estimate that Newton's step makes exact to the last place or so takes a third of the time
    return builder.fdiv(above, builder.fadd(ones, power), flags=("arcp",))


def _emit(context, number, job, chunk):  # type: ignore[no-untyped-def]
    """One of :data:`_NAMES`, by its number, on the floats of a chunk."""
    name = _NAMES[number.literal_value]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, job, chunk = arguments
        whole, here = fields(builder, job, FIELDS), fields(builder, chunk, CHUNKS[name])
        bases = {field: builder.inttoptr(here[field], BYTE.as_pointer()) for field in CHUNKS[name][1:-1]}
        endless = cgutils.alloca_once_value(builder, _constant(0.0))  # 0 · ∞ and 0 · NaN are NaN, which then stays
        beta, scale, price = (
            splat(builder, builder.bitcast(builder.trunc(whole[field], INT32), FLOAT)) for field in FIELDS[3:]
        )

        def sweep(tile: Tile, place: Any) -> None:
            def load(field: str) -> Any:
                return tile.load(at(builder, bases[field], place, FLOAT))[0]

            def store(field: str, value: Any) -> None:
                tile.store([value], at(builder, bases[field], place, FLOAT))

            soft = _sigmoid(builder, builder.fmul(load("score"), beta))
            mask, weight = builder.fmul(soft, scale), load("weight")
            if name == "apply":
                store("out", builder.fmul(weight, mask))
                return
            grad = load("grad")
            builder.store(multiply_add(builder, builder.load(endless), grad, _constant(0.0)), endless)
            slope = builder.fmul(soft, builder.fsub(_constant(1.0), soft))
            towards = multiply_add(builder, price, builder.fmul(grad, builder.fmul(beta, scale)), weight)
            store("out", builder.fmul(towards, slope))
            store("grad", builder.fmul(grad, mask))

        vectors = builder.sdiv(here["count"], INT64(LANES))
        with cgutils.for_range(builder, vectors) as loop:
            sweep(Tile(builder, 1), builder.mul(loop.index, INT64(LANES)))
        done = builder.mul(vectors, INT64(LANES))
        with builder.if_then(builder.icmp_signed("<", done, here["count"])):
            sweep(Tile(builder, 1, builder.sub(here["count"], done)), done)
        is_endless = builder.fcmp_unordered("!=", builder.load(endless), _constant(0.0))
        lanes = builder.zext(builder.bitcast(is_endless, ir.IntType(LANES)), INT64)
        builder.store(lanes, at(builder, chunk, INT64(len(CHUNKS[name]) - 1), INT64))
        return context.get_dummy_value()

    return types.void(number, types.voidptr, types.voidptr), generate


_sweep: Any = intrinsic(prefer_literal=True)(_emit)


def kernel(name: str) -> Any:
    """A C function of a job's address: ``pull_back`` or ``apply``."""
    number, line = _NAMES.index(name), 8 * len(CHUNKS[name])

    def walk(job_at: Any) -> None:
        job: Any = carray(job_at, (_SIZE,), np.int64)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[_field.chunks]:
                break
            _sweep(number, job_at, pointer(job[_field.table] + chunk * line))

    return compiled(walk, f"sigmoid_{name}")
