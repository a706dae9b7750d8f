"""The compiled inner loops of sparse layers: a weighted sum of shifted planes, and its gradient by the weights.

A layer's source is a stack of planes, one a channel, whose pixels are runs of ``batch`` floats (batch innermost). Every
non-zero weight stands for one plane and one tap, a shift within it; a row of the result is the weighted sum of the
shifted planes of its non-zeros. A fully connected layer is the case of planes of one pixel. Nothing is gathered or
padded: :mod:`~tombola.sparse.geometry` cuts a plane into pieces, each with the range of taps that stay inside.

The sums of a piece stay in vector registers over all non-zeros of its row. Numba's own loops do not get there, so the
innermost ones are written as LLVM vectors; the rest is plain Numba.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache, partial, reduce
from typing import Any

import numpy as np
from llvmlite import binding, ir
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
    gather,
    lanes_below,
    multiply_add,
    read,
    splat,
)  # fmt: skip

WIDEST = 16 if binding.get_host_cpu_features().get("avx512f") else 4  # vectors whose sums fit the registers
UNROLL = 4  # sums that are independent of each other, at least: a multiply-add takes as many rounds
TILES = (16, 8, 6, 5, 4, 3, 2, 1)  # vectors that are taken at a time
_DOTS = 2  # vectors of non-zeros that are taken at a time
PIECE = LANES * WIDEST  # floats that one pass over the non-zeros of a row can take

FIELDS = (  # of a job: 64-bit integers, addresses among them
    *("counter", "chunks", "rows", "rows_per_chunk", "pieces_per_chunk", "ys", "y_table", "xs", "x_table"),
    *("values", "values_each", "order", "entries", "bits", "pointers", "taps", "x_taps", "shifts"),
    *("source", "source_plane", "result", "result_plane", "bias", "floor", "blocks", "added"),
)
SIZE = len(FIELDS)


class _Piece:
    """A run of floats of each of some rows of the result, and the rows' non-zeros that reach it.

    These are in ``ranges`` ranges of ``width`` taps each; one range to the next is a row of taps, ``x_taps``, further.
    """

    def __init__(self, builder: Any, arguments: Any) -> None:
        job, self.share, self.rows, self.tap, self.ranges, self.width, source, self.at, self.length = arguments
        self.builder = builder
        self.job = fields(builder, job, FIELDS)
        self._low = builder.sub(builder.shl(INT64(1), self.job["bits"]), INT64(1))
        self._source = self.floats("source", source)

    def floats(self, field: str, offset: Any) -> Any:
        """Pointer to the float ``offset`` of the array of that name."""
        return at(self.builder, self.base(field), offset, FLOAT)

    def base(self, field: str) -> Any:
        """The address in the field of that name."""
        return self.builder.inttoptr(self.job[field], BYTE.as_pointer())

    def each_tile(self, body: Callable[[Tile, Any, Any, Any], None]) -> None:
        """Emit ``body(tile, row, source, to)`` for all rows in tiles as wide as possible, one after the other."""
        builder, done = self.builder, INT64(0)
        for count in TILES:
            tiles = builder.sdiv(builder.sub(self.length, done), INT64(LANES * count))
            with cgutils.for_range(builder, tiles) as loop:
                offset = builder.add(done, builder.mul(loop.index, INT64(LANES * count)))
                self.each_row(offset, partial(body, Tile(builder, count)))
            done = builder.add(done, builder.mul(tiles, INT64(LANES * count)))
        rest = builder.sub(self.length, done)
        with builder.if_then(builder.icmp_signed(">", rest, INT64(0))):
            self.each_row(done, partial(body, Tile(builder, 1, rest)))

    def each_row(self, offset: Any, body: Callable[[Any, Any, Any], None]) -> None:
        """Emit ``body(row, source, to)`` for all rows, ``offset`` floats after the beginning of the piece.

        ``to`` is the place in the result.
        """
        builder, source = self.builder, at(self.builder, self._source, offset, FLOAT)
        with cgutils.for_range_slice(builder, self.rows[0], self.rows[1], INT64(1)) as (row, _):
            place = builder.add(builder.mul(row, self.job["result_plane"]), builder.add(self.at, offset))
            body(row, source, place)

    def each_weight(
        self, row: Any, source: Any, body: Callable[[int, Any, Any], None], *, unroll: int = 1, direct: bool = False
    ) -> None:
        """Emit ``body(turn, place, source)`` for each non-zero: its place in the row order, where its plane begins.

        ``unroll`` of them are taken at a time, with turns 0, 1, …, so that they need not wait for each other.
        ``direct``: entries are the distances to the planes.
        """
        builder, job = self.builder, self.job
        first = builder.add(builder.mul(row, job["taps"]), self.tap)

        def one(turn: int, place: Any) -> None:
            entry = builder.zext(read(builder, self.base("entries"), place, INT32), INT64)
            if not direct:
                shift = read(builder, self.base("shifts"), builder.and_(entry, self._low), INT64)
                entry = builder.add(builder.mul(builder.lshr(entry, job["bits"]), job["source_plane"]), shift)
            body(turn, place, at(builder, source, entry, FLOAT))

        with cgutils.for_range(builder, self.ranges) as outer:
            begin, end = self.ends(builder.add(first, builder.mul(outer.index, job["x_taps"])))
            for step in (unroll, 1) if unroll > 1 else (1,):
                whole = builder.and_(builder.sub(end, begin), INT64(-step))
                stop = builder.add(begin, whole)
                with cgutils.for_range_slice(builder, begin, stop, INT64(step)) as (place, _):
                    for turn in range(step):
                        one(turn, builder.add(place, INT64(turn)))
                begin = stop

    def ends(self, tap: Any) -> tuple[Any, Any]:
        """First and last place of the non-zeros of ``width`` taps."""
        builder, pointers = self.builder, self.base("pointers")
        taps = (tap, builder.add(tap, self.width))
        begin, end = (builder.sext(read(builder, pointers, place, INT32), INT64) for place in taps)
        return begin, end

    def start(self, row: Any) -> Any:
        """The bias of a row, or 0."""
        builder, found = self.builder, cgutils.alloca_once(self.builder, FLOAT)
        builder.store(FLOAT(0.0), found)
        with builder.if_then(builder.icmp_unsigned("!=", self.job["bias"], INT64(0))):
            builder.store(builder.load(self.floats("bias", row)), found)
        return builder.load(found)

    def floored(self, number: Any, *, vector: bool = True, only_if: Any = None) -> Any:
        """At least 0 where there is a floor; NaN stays."""
        builder = self.builder
        has = builder.icmp_unsigned("!=", self.job["floor"], INT64(0))
        has = has if only_if is None else builder.and_(has, only_if)
        floor = builder.select(has, FLOAT(0.0), ir.Constant(FLOAT, -np.inf))
        floor = splat(builder, floor) if vector else floor
        return builder.select(builder.fcmp_ordered("<", number, floor), floor, number)


def _accumulate(piece: _Piece, *, ordered: bool, direct: bool = False, blocked: bool = False) -> None:
    """result[t] = bias + added[t] + Σ value · source[t], at least the floor, over the non-zeros.

    ``ordered``: of the values, by their order; ``direct``: with distances for entries; ``blocked``: the taps are blocks
    of columns, and what the ones before have summed up is in the result.
    """
    builder, job = piece.builder, piece.job
    values, order = piece.floats("values", INT64(0)), piece.base("order")

    def tile_sum(tile: Tile, row: Any, source: Any, to: Any) -> None:
        result = piece.floats("result", to)
        unroll = max(1, UNROLL // tile.count)
        sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(tile.count)] for _ in range(unroll)]
        start = piece.start(row)
        for turn, totals in enumerate(sums):  # LLVM keeps them in registers
            for total in totals:
                builder.store(splat(builder, FLOAT(0.0) if turn else start), total)
        with builder.if_then(builder.icmp_unsigned("!=", job["added"], INT64(0))):
            for total, more in zip(sums[0], tile.load(piece.floats("added", to)), strict=True):
                builder.store(builder.fadd(builder.load(total), more), total)
        if blocked:
            with builder.if_then(builder.icmp_unsigned("!=", piece.tap, INT64(0))):
                for total, before in zip(sums[0], tile.load(result), strict=True):
                    builder.store(before, total)

        def add(turn: int, place: Any, plane: Any) -> None:
            if ordered:
                place = builder.sext(read(builder, order, place, INT32), INT64)
            weight = splat(builder, read(builder, values, place, FLOAT))
            for total, part in zip(sums[turn], tile.load(plane), strict=True):
                builder.store(multiply_add(builder, builder.load(total), weight, part), total)

        piece.each_weight(row, source, add, unroll=unroll, direct=direct)
        totals = [reduce(builder.fadd, map(builder.load, parts)) for parts in zip(*sums, strict=True)]
        is_last = builder.icmp_unsigned("==", builder.add(piece.tap, INT64(1)), job["taps"]) if blocked else None
        tile.store([piece.floored(total, only_if=is_last) for total in totals], result)

    piece.each_tile(tile_sum)


def _correlate(piece: _Piece) -> None:
    """values[place] += Σ_t result[t] · source[t], for the non-zeros; each share of the pieces has values of its own."""
    builder = piece.builder
    values = piece.floats("values", piece.share)

    def tile_sum(tile: Tile, row: Any, source: Any, to: Any) -> None:
        given = tile.load(piece.floats("result", to))

        def add(turn: int, place: Any, plane: Any) -> None:
            parts = tile.load(plane)
            sums = [builder.fmul(one, part) for one, part in zip(given[:2], parts, strict=False)]
            for index in range(2, tile.count):
                sums[index % 2] = multiply_add(builder, sums[index % 2], given[index], parts[index])
            total = sums[0] if tile.count == 1 else builder.fadd(*sums)
            before = at(builder, values, place, FLOAT)
            name, arguments = "llvm.vector.reduce.fadd.v16f32", [builder.load(before), total]
            builder.store(call(builder, name, FLOAT, arguments, fastmath=("reassoc",)), before)

        piece.each_weight(row, source, add)

    piece.each_tile(tile_sum)


def _dot(piece: _Piece) -> None:
    """As :func:`_accumulate` with distances for entries, float by float: vectors run over the non-zeros of a row."""
    builder, job = piece.builder, piece.job
    values, entries = piece.floats("values", INT64(0)), piece.base("entries")
    zeros = ir.Constant(VECTOR, [0.0] * LANES)

    def add(total: Any, place: Any, source: Any, lanes: Any) -> None:
        tile, mask = Tile(builder, 1, lanes), lanes_below(builder, lanes)
        (weights,), (bits,) = (tile.load(at(builder, array, place, FLOAT)) for array in (values, entries))
        distances = builder.bitcast(bits, ir.VectorType(INT32, LANES))
        found = gather(builder, source, distances, mask, zeros)
        builder.store(multiply_add(builder, builder.load(total), weights, found), total)

    def row_sum(row: Any, source: Any, to: Any) -> None:
        begin, end = piece.ends(builder.add(builder.mul(row, job["taps"]), piece.tap))
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(_DOTS)]
        for total in sums:
            builder.store(zeros, total)
        with cgutils.for_range_slice(builder, begin, end, INT64(_DOTS * LANES)) as (place, _):
            for turn, total in enumerate(sums):
                here = builder.add(place, INT64(turn * LANES))
                add(total, here, source, builder.sub(end, here))
        arguments = [piece.start(row), reduce(builder.fadd, map(builder.load, sums))]
        total = call(builder, "llvm.vector.reduce.fadd.v16f32", FLOAT, arguments, fastmath=("reassoc",))
        builder.store(piece.floored(total, vector=False), piece.floats("result", to))

    with cgutils.for_range(builder, piece.length) as loop:
        piece.each_row(loop.index, row_sum)


_EMITS: dict[str, Callable[[_Piece], None]] = {
    "product": lambda piece: _accumulate(piece, ordered=False),
    "product_in_order": lambda piece: _accumulate(piece, ordered=True),
    "gradient": _correlate,
    "dot": _dot,
    "product_blocks": lambda piece: _accumulate(piece, ordered=False, blocked=True),
    "product_in_order_blocks": lambda piece: _accumulate(piece, ordered=True, blocked=True),
    "product_at": lambda piece: _accumulate(piece, ordered=False, direct=True),
}


def _emit(context, number, job, share, first_row, last_row, tap, ranges, width, source, at, length):  # type: ignore[no-untyped-def]
    """One of :data:`_EMITS`, by its number, for Numba code."""
    emit = list(_EMITS.values())[number.literal_value]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, job, share, first_row, last_row, *rest = arguments
        emit(_Piece(builder, (job, share, (first_row, last_row), *rest)))
        return context.get_dummy_value()

    return types.void(number, types.voidptr, *[types.intp] * 9), generate


_work: Any = intrinsic(prefer_literal=True)(_emit)
_field: Any = namedtuple("_Field", FIELDS)(*range(len(FIELDS)))  # a plain tuple's names would not be constants


@cache
def kernel(name: str) -> Any:
    """The compiled kernel ``product``, ``product_in_order`` or ``gradient``, a C function of a job's address."""
    number = list(_EMITS).index(name)  # all that the loop closes over: an intrinsic would be another in each process

    def walk(job_at: Any) -> None:
        job: Any = carray(job_at, (SIZE,), np.int64)
        ys: Any = carray(pointer(job[_field.y_table]), (job[_field.ys], 4), np.int64)
        xs: Any = carray(pointer(job[_field.x_table]), (job[_field.xs], 5), np.int64)
        parts = -(-job[_field.rows] // job[_field.rows_per_chunk])
        while True:
            chunk = next_chunk(job_at)
            if chunk >= job[_field.chunks]:
                break
            first_row = chunk % parts * job[_field.rows_per_chunk]
            last_row = min(first_row + job[_field.rows_per_chunk], job[_field.rows])
            share = chunk // parts * job[_field.values_each]
            first_piece = chunk // parts * job[_field.pieces_per_chunk]
            last_piece = min(first_piece + job[_field.pieces_per_chunk], job[_field.ys] * job[_field.xs])
            for piece in range(first_piece, last_piece):
                y, x = ys[piece // job[_field.xs]], xs[piece % job[_field.xs]]
                tap, ranges, width = y[2] * job[_field.x_taps] + x[3], y[3], x[4]
                if width == job[_field.x_taps]:  # the ranges follow each other
                    ranges, width = min(ranges, 1), ranges * width
                source, at = y[1] + x[2], y[0] + x[0]
                for block in range(job[_field.blocks]):
                    _work(number, job_at, share, first_row, last_row, tap + block, ranges, width, source, at, x[1])

    return compiled(walk, name)
