"""A matrix turned over its diagonal, on PyTorch's threads: PyTorch does it on one, and without vectors."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch import Tensor

from tombola.sparse.threads import compiled, next_chunk, run
from tombola.sparse.vectors import BYTE, FLOAT, INT32, INT64, LANES, Tile, at, fields

PATCH = 8 * LANES  # rows and columns that a thread takes at a time: of few pages of memory
FIELDS = ("counter", "chunks", "rows", "columns", "source", "result")
_field: Any = namedtuple("_Field", FIELDS)(*range(len(FIELDS)))  # a plain tuple's names would not be constants
_SIZE = len(FIELDS)


def turn(source: Tensor, result: Tensor, rows: int) -> Tensor:
    """Write into ``result``, and return it, what is in memory a matrix of so many ``rows``, as one of so many columns.

    Both are float32 on the CPU, without gaps.
    """
    if source.numel():
        columns = source.numel() // rows
        chunks = -(-rows // PATCH) * -(-columns // PATCH)
        run(_kernel(), [0, chunks, rows, columns, source.data_ptr(), result.data_ptr()])
    return result


class _Square:
    """At most LANES rows and columns of the source, and where they are to go."""

    def __init__(self, builder: Any, job: Any, row: Any, column: Any) -> None:
        self.builder = builder
        self.job = fields(builder, job, FIELDS)
        rows, columns = self.job["rows"], self.job["columns"]
        self.source = self._at("source", builder.add(builder.mul(row, columns), column))
        self.result = self._at("result", builder.add(builder.mul(column, rows), row))
        high, wide = builder.sub(rows, row), builder.sub(columns, column)
        whole = (builder.icmp_signed(">=", size, INT64(LANES)) for size in (high, wide))
        with builder.if_else(builder.and_(*whole)) as (inside, outside):
            with inside:
                self._turn(None, None)
            with outside:
                self._turn(high, wide)

    def _at(self, field: str, place: Any) -> Any:
        return at(self.builder, self.builder.inttoptr(self.job[field], BYTE.as_pointer()), place, FLOAT)

    def _turn(self, high: Any, wide: Any) -> None:
        builder = self.builder
        vectors = [self._load(line, high, wide) for line in range(LANES)]
        distance = LANES // 2
        while distance:  # blocks of this size change places within blocks of twice it
            for line in (line for line in range(LANES) if not line & distance):
                one, other = vectors[line], vectors[line + distance]
                for place, (own, far) in ((line, (0, LANES - distance)), (line + distance, (distance, LANES))):
                    lanes = [lane + (far if lane & distance else own) for lane in range(LANES)]
                    mask = ir.Constant(ir.VectorType(INT32, LANES), lanes)
                    vectors[place] = builder.shuffle_vector(one, other, mask)
            distance //= 2
        for line, vector in enumerate(vectors):
            self._store(line, vector, high, wide)

    def _load(self, line: int, high: Any, wide: Any) -> Any:
        builder, begin = self.builder, at(self.builder, self.source, self._times(line, "columns"), FLOAT)
        return Tile(builder, 1, self._lanes(line, high, wide)).load(begin)[0]

    def _store(self, line: int, vector: Any, high: Any, wide: Any) -> None:
        builder, begin = self.builder, at(self.builder, self.result, self._times(line, "rows"), FLOAT)
        Tile(builder, 1, self._lanes(line, wide, high)).store([vector], begin)

    def _times(self, line: int, length: str) -> Any:
        return self.builder.mul(INT64(line), self.job[length])

    def _lanes(self, line: int, high: Any, wide: Any) -> Any:
        """How many lanes of a line there are; None: all."""
        if high is None:
            return None
        return self.builder.select(self.builder.icmp_signed("<", INT64(line), high), wide, INT64(0))


def _emit(context, job, row, column):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Square(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.voidptr, types.intp, types.intp), generate


_square: Any = intrinsic(_emit)


@cache
def _kernel() -> Any:
    def turn(job_at: Any) -> None:
        job: Any = carray(job_at, (_SIZE,), np.int64)
        across = -(-job[_field.columns] // PATCH)
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[_field.chunks]:
                break
            first_row, first_column = chunk // across * PATCH, chunk % across * PATCH
            for row in range(first_row, min(first_row + PATCH, job[_field.rows]), LANES):
                for column in range(first_column, min(first_column + PATCH, job[_field.columns]), LANES):
                    _square(job_at, row, column)

    return compiled(turn, "turn")
