"""The compiled inner loops of sparse layers: a weighted sum of shifted planes, and its gradient by the weights.

A layer's source is a stack of planes, one a channel, whose pixels are runs of ``batch`` floats (batch innermost). Every
non-zero weight stands for one plane and one tap, a shift within it; a row of the result is the weighted sum of the
shifted planes of its non-zeros. A fully connected layer is the case of planes of one pixel. Nothing is gathered or
padded: :mod:`~tombola.sparse.geometry` cuts a plane into pieces, each with the range of taps that stay inside.

The sums of a piece stay in vector registers over all non-zeros of its row. Numba's own loops do not get there, so the
innermost ones are written as LLVM vectors here; the rest is plain Numba. All is in this one file, because Numba keeps
compiled code until the file of a *kernel* changes.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.compiled import kept
from tombola.sparse.threads import compiled, next_chunk, pointer, run

LANES = 16  # floats of one vector; LLVM makes of it as many registers as the processor needs
WIDEST = 16 if binding.get_host_cpu_features().get("avx512f") else 4  # vectors whose sums fit the registers
PIECE = LANES * WIDEST  # floats that one pass over the non-zeros of a row can take

FIELDS = (  # of a job: 64-bit integers, addresses among them
    *("counter", "chunks", "rows", "rows_per_chunk", "pieces_per_chunk", "ys", "y_table", "xs", "x_table"),
    *("values", "values_each", "order", "entries", "bits", "pointers", "taps", "x_taps", "shifts"),
    *("source", "source_plane", "result", "result_plane", "bias", "floor"),
)
SIZE = len(FIELDS)
_FIELD = {name: place for place, name in enumerate(FIELDS)}

_float, _int32, _int64, _byte = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_vector = ir.VectorType(_float, LANES)


def _at(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """Pointer to the ``index``-th ``kind`` from ``base`` on."""
    return builder.gep(builder.bitcast(base, kind.as_pointer()), [index])


def _read(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    return builder.load(_at(builder, base, index, kind))


def _splat(builder: Any, value: Any) -> Any:
    """A vector of ``value`` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(_int32, LANES), [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(undefined, value, _int32(0)), undefined, zeros)


def _multiply_add(builder: Any, total: Any, one: Any, other: Any) -> Any:
    return builder.fadd(total, builder.fmul(one, other, flags=("contract",)), flags=("contract",))


def _call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, **options)


class _Tile:
    """``count`` vectors in memory one after the other, or a single one of which only the first ``lanes`` exist."""

    def __init__(self, builder: Any, count: int, lanes: Any = None) -> None:
        self.builder, self.count, self.mask = builder, count, None
        if lanes is not None:
            places = ir.Constant(ir.VectorType(_int64, LANES), list(range(LANES)))
            self.mask = builder.icmp_signed("<", places, _splat(builder, lanes))

    def load(self, base: Any) -> list[Any]:
        """The vectors from ``base`` on; 0 in lanes that do not exist."""
        pointers = self._pointers(base)
        if self.mask is None:
            return [self.builder.load(pointer, align=4) for pointer in pointers]
        arguments = [*pointers, _int32(4), self.mask, ir.Constant(_vector, [0.0] * LANES)]
        return [_call(self.builder, "llvm.masked.load.v16f32.p0", _vector, arguments)]

    def store(self, values: list[Any], base: Any) -> None:
        """Write them from ``base`` on."""
        for value, place in zip(values, self._pointers(base), strict=True):
            if self.mask is None:
                self.builder.store(value, place, align=4)
            else:
                arguments = [value, place, _int32(4), self.mask]
                _call(self.builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments)

    def _pointers(self, base: Any) -> list[Any]:
        places = [_at(self.builder, base, _int64(LANES * place), _float) for place in range(self.count)]
        return [self.builder.bitcast(place, _vector.as_pointer()) for place in places]


class _Piece:
    """A run of floats of one row of the result, and the row's non-zeros that reach it.

    These are in ``ranges`` ranges of ``width`` taps each; one range to the next is a row of taps, ``x_taps``, further.
    """

    def __init__(self, builder: Any, arguments: Any) -> None:
        job, self.share, self.row, self.tap, self.ranges, self.width, source, result, self.length = arguments
        self.builder = builder
        self.job = {name: _read(builder, job, _int64(place), _int64) for name, place in _FIELD.items()}
        self._low = builder.sub(builder.shl(_int64(1), self.job["bits"]), _int64(1))
        self._source, self._result = self.floats("source", source), self.floats("result", result)

    def floats(self, field: str, offset: Any) -> Any:
        """Pointer to the float ``offset`` of the array of that name."""
        return _at(self.builder, self._base(field), offset, _float)

    def _base(self, field: str) -> Any:
        return self.builder.inttoptr(self.job[field], _byte.as_pointer())

    def each_tile(self, body: Callable[[_Tile, Any, Any], None]) -> None:
        """Emit ``body(tile, source, result)`` for tiles as wide as possible, one after the other."""
        builder, done = self.builder, _int64(0)
        for count in (16, 8, 6, 5, 4, 3, 2, 1):
            tiles = builder.sdiv(builder.sub(self.length, done), _int64(LANES * count))
            with cgutils.for_range(builder, tiles) as loop:
                offset = builder.add(done, builder.mul(loop.index, _int64(LANES * count)))
                body(_Tile(builder, count), *self._moved(offset))
            done = builder.add(done, builder.mul(tiles, _int64(LANES * count)))
        rest = builder.sub(self.length, done)
        with builder.if_then(builder.icmp_signed(">", rest, _int64(0))):
            body(_Tile(builder, 1, rest), *self._moved(done))

    def _moved(self, offset: Any) -> list[Any]:
        return [_at(self.builder, base, offset, _float) for base in (self._source, self._result)]

    def each_weight(self, source: Any, body: Callable[[Any, Any], None]) -> None:
        """Emit ``body(place, source)`` for each non-zero: its place in the row order, and where its plane begins."""
        builder, job = self.builder, self.job
        with cgutils.for_range(builder, self.ranges) as outer:
            start = builder.add(self.tap, builder.mul(outer.index, job["x_taps"]))
            begin, end = (
                builder.sext(_read(builder, self._base("pointers"), pointer, _int32), _int64)
                for pointer in (start, builder.add(start, self.width))
            )
            with cgutils.for_range_slice(builder, begin, end, _int64(1)) as (place, _):
                entry = builder.zext(_read(builder, self._base("entries"), place, _int32), _int64)
                shift = _read(builder, self._base("shifts"), builder.and_(entry, self._low), _int64)
                plane = builder.mul(builder.lshr(entry, job["bits"]), job["source_plane"])
                body(place, _at(builder, source, builder.add(plane, shift), _float))


def _accumulate(piece: _Piece, *, ordered: bool) -> None:
    """result[t] = bias + Σ value · source[t], at least the floor, over the non-zeros; values by their order if so."""
    builder, job = piece.builder, piece.job
    start, lowest = (cgutils.alloca_once_value(builder, ir.Constant(_float, value)) for value in (0.0, -np.inf))
    with builder.if_then(builder.icmp_unsigned("!=", job["bias"], _int64(0))):
        builder.store(builder.load(piece.floats("bias", piece.row)), start)
    with builder.if_then(builder.icmp_unsigned("!=", job["floor"], _int64(0))):
        builder.store(ir.Constant(_float, 0.0), lowest)
    values = piece.floats("values", _int64(0))
    order = builder.inttoptr(job["order"], _byte.as_pointer())

    def tile_sum(tile: _Tile, source: Any, result: Any) -> None:
        sums = [cgutils.alloca_once(builder, _vector) for _ in range(tile.count)]  # LLVM keeps them in registers
        for total in sums:
            builder.store(_splat(builder, builder.load(start)), total)

        def add(place: Any, plane: Any) -> None:
            if ordered:
                place = builder.sext(_read(builder, order, place, _int32), _int64)
            weight = _splat(builder, _read(builder, values, place, _float))
            for total, part in zip(sums, tile.load(plane), strict=True):
                builder.store(_multiply_add(builder, builder.load(total), weight, part), total)

        piece.each_weight(source, add)
        floor = _splat(builder, builder.load(lowest))
        totals = [builder.load(total) for total in sums]
        tile.store([builder.select(builder.fcmp_ordered("<", total, floor), floor, total) for total in totals], result)

    piece.each_tile(tile_sum)


def _correlate(piece: _Piece) -> None:
    """values[place] += Σ_t result[t] · source[t], for the non-zeros; each share of the pieces has values of its own."""
    builder = piece.builder
    values = piece.floats("values", piece.share)

    def tile_sum(tile: _Tile, source: Any, result: Any) -> None:
        given = tile.load(result)

        def add(place: Any, plane: Any) -> None:
            parts = tile.load(plane)
            sums = [builder.fmul(one, part) for one, part in zip(given[:2], parts, strict=False)]
            for index in range(2, tile.count):
                sums[index % 2] = _multiply_add(builder, sums[index % 2], given[index], parts[index])
            total = sums[0] if tile.count == 1 else builder.fadd(*sums)
            before = _at(builder, values, place, _float)
            name, arguments = "llvm.vector.reduce.fadd.v16f32", [builder.load(before), total]
            builder.store(_call(builder, name, _float, arguments, fastmath=("reassoc",)), before)

        piece.each_weight(source, add)

    piece.each_tile(tile_sum)


_EMITS: dict[str, Callable[[_Piece], None]] = {
    "product": lambda piece: _accumulate(piece, ordered=False),
    "product_in_order": lambda piece: _accumulate(piece, ordered=True),
    "gradient": _correlate,
}


def _emit(context, number, job, share, row, tap, ranges, width, source, result, length):  # type: ignore[no-untyped-def]
    """One of :data:`_EMITS`, by its number, for Numba code."""
    emit = list(_EMITS.values())[number.literal_value]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit(_Piece(builder, arguments[1:]))
        return context.get_dummy_value()

    return types.void(number, types.voidptr, *[types.intp] * 8), generate


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
                for row in range(first_row, last_row):
                    at = row * job[_field.result_plane] + y[0] + x[0]
                    taps = row * job[_field.taps] + tap
                    _work(number, job_at, share, row, taps, ranges, width, y[1] + x[2], at, x[1])

    return compiled(walk, name)


def launch(name: str, job: list[int]) -> None:
    """Run a kernel; ``job`` are the values of :data:`FIELDS`."""
    run(kernel(name), job)


def _transpose(
    pointers: Any, columns: Any, ranks: Any, bits: int, back_pointers: Any, back_entries: Any, order: Any
) -> None:
    """Fill the last three arrays: the structure column by column, by counting."""
    taps = ranks.size
    back_pointers[:] = 0
    for row in range(pointers.size - 1):
        for place in range(pointers[row], pointers[row + 1]):
            back_pointers[columns[place] * taps + ranks[row % taps] + 1] += 1
    for row in range(back_pointers.size - 1):
        back_pointers[row + 1] += back_pointers[row]
    nexts = back_pointers.copy()
    for row in range(pointers.size - 1):
        rank = ranks[row % taps]
        for place in range(pointers[row], pointers[row + 1]):
            back_row = columns[place] * taps + rank
            back_entries[nexts[back_row]] = ((row // taps) << bits) | rank
            order[nexts[back_row]] = place
            nexts[back_row] += 1


transpose = kept(lambda **options: njit(**options)(_transpose))


@cache
def multiply_adds_kernel() -> Any:
    """A loop of nothing but vector multiply-adds in registers: chunks of ``job[2]`` rounds of :data:`ROUND` each."""

    def emit(context, count, result):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count, result = arguments
            factor = builder.load(builder.bitcast(result, _vector.as_pointer()), align=4)
            sums = [cgutils.alloca_once_value(builder, factor) for _ in range(_SUMS)]
            with cgutils.for_range(builder, count):
                for total in sums:
                    builder.store(_multiply_add(builder, factor, builder.load(total), factor), total)
            for total in sums:  # so that none of it is left out
                pointer = builder.bitcast(result, _vector.as_pointer())
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


_SUMS = 12  # independent sums: enough to keep the processor busy, few enough for its registers
ROUND = _SUMS * LANES
