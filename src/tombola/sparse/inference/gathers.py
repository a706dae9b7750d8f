"""The compiled step that lays planes out anew, and pools: each float is made of those at its places in the source."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.sparse.threads import compiled, next_chunk
from tombola.sparse.vectors import BYTE, FLOAT, INT32, INT64, LANES, VECTOR, Tile, at, fields, gather, read, splat

FIELDS = (
    *("counter", "chunks", "channels", "each", "source", "source_plane", "result", "result_plane"),
    *("floats", "places", "taps", "largest", "counts"),
)
_field: Any = namedtuple("_Field", FIELDS)(*range(len(FIELDS)))  # a plain tuple's names would not be constants
_SIZE = len(FIELDS)
_places, _mask = ir.VectorType(INT32, LANES), ir.VectorType(ir.IntType(1), LANES)


class _Plane:
    """One channel: a vector of the result after the other."""

    def __init__(self, builder: Any, job: Any, channel: Any, *, in_runs: bool) -> None:
        self.builder, self.in_runs = builder, in_runs
        self.job = fields(builder, job, FIELDS)
        self.source, result = (
            at(builder, self._base(name), builder.mul(channel, self.job[f"{name}_plane"]), FLOAT)
            for name in ("source", "result")
        )
        floats = self.job["floats"]
        self.vectors = builder.sdiv(builder.add(floats, INT64(LANES - 1)), INT64(LANES))
        whole = builder.sdiv(floats, INT64(LANES))
        with cgutils.for_range(builder, whole) as loop:
            begin = at(builder, result, builder.mul(loop.index, INT64(LANES)), FLOAT)
            Tile(builder, 1).store([self._folded(loop.index)], begin)
        done = builder.mul(whole, INT64(LANES))
        with builder.if_then(builder.icmp_signed("<", done, floats)):
            Tile(builder, 1, builder.sub(floats, done)).store([self._folded(whole)], at(builder, result, done, FLOAT))

    def _base(self, field: str) -> Any:
        return self.builder.inttoptr(self.job[field], BYTE.as_pointer())

    def _folded(self, vector: Any) -> Any:
        """The largest, the sum, or the sum divided by the counts, of the floats at the places of each lane; or 0."""
        builder = self.builder
        zeros, none = ir.Constant(VECTOR, [0.0] * LANES), ir.Constant(_mask, [0] * LANES)
        largest = builder.icmp_unsigned("!=", self.job["largest"], INT64(0))
        empty = splat(builder, builder.select(largest, ir.Constant(FLOAT, -np.inf), FLOAT(0.0)))
        total, seen = cgutils.alloca_once(builder, VECTOR), cgutils.alloca_once(builder, _mask)
        builder.store(empty, total)
        builder.store(none, seen)
        with cgutils.for_range(builder, self.job["taps"]) as loop:
            place = builder.add(builder.mul(loop.index, self.vectors), vector)
            value, mask = self._run(place, empty) if self.in_runs else self._gathered(place, empty)
            before = builder.load(total)
            # NaN is larger than all
            larger = builder.or_(builder.fcmp_ordered(">", value, before), builder.fcmp_unordered("uno", value, value))
            larger = builder.select(larger, value, before)
            builder.store(builder.select(splat(builder, largest), larger, builder.fadd(before, value)), total)
            builder.store(builder.or_(builder.load(seen), mask), seen)
        with builder.if_then(builder.icmp_unsigned("!=", self.job["counts"], INT64(0))):
            counts = at(builder, self._base("counts"), builder.mul(vector, INT64(LANES)), FLOAT)
            builder.store(builder.fdiv(builder.load(total), Tile(builder, 1).load(counts)[0]), total)
        return builder.select(builder.load(seen), builder.load(total), zeros)

    def _gathered(self, place: Any, empty: Any) -> tuple[Any, Any]:
        builder = self.builder
        first = at(builder, self._base("places"), builder.mul(place, INT64(LANES)), INT32)
        places = builder.load(builder.bitcast(first, _places.as_pointer()), align=4)
        mask = builder.icmp_signed(">=", places, ir.Constant(_places, [0] * LANES))
        return gather(builder, self.source, places, mask, empty), mask

    def _run(self, place: Any, empty: Any) -> tuple[Any, Any]:
        """All lanes follow each other."""
        builder = self.builder
        first = builder.sext(read(builder, self._base("places"), place, INT32), INT64)
        is_there = builder.icmp_signed(">=", first, INT64(0))
        value = cgutils.alloca_once(builder, VECTOR)
        builder.store(empty, value)
        with builder.if_then(is_there):
            builder.store(Tile(builder, 1).load(at(builder, self.source, first, FLOAT))[0], value)
        return builder.load(value), splat(builder, is_there)


def _emit(context, in_runs, job, channel):  # type: ignore[no-untyped-def]
    """One channel, for Numba code."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Plane(builder, arguments[1], arguments[2], in_runs=bool(in_runs.literal_value))
        return context.get_dummy_value()

    return types.void(in_runs, types.voidptr, types.intp), generate


_plane: Any = intrinsic(prefer_literal=True)(_emit)


@cache
def kernel(name: str) -> Any:
    """A C function of a job's address: ``gather``, a place for each float, or ``runs``, one for each LANES of them."""
    in_runs = int(name == "runs")

    def walk(job_at: Any) -> None:
        job: Any = carray(job_at, (_SIZE,), np.int64)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[_field.chunks]:
                break
            first = chunk * job[_field.each]
            for channel in range(first, min(job[_field.channels], first + job[_field.each])):
                _plane(in_runs, job_at, channel)

    return compiled(walk, name)
