"""LLVM vectors of floats, for the innermost loops of kernels, where Numba's own do not keep sums in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16  # floats of one vector; LLVM makes of it as many registers as the processor needs

FLOAT, INT32, INT64, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
VECTOR = ir.VectorType(FLOAT, LANES)


def at(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """Pointer to the ``index``-th ``kind`` from ``base`` on."""
    return builder.gep(builder.bitcast(base, kind.as_pointer()), [index])


def read(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """The ``index``-th ``kind`` from ``base`` on."""
    return builder.load(at(builder, base, index, kind))


def fields(builder: Any, job: Any, names: Sequence[str]) -> dict[str, Any]:
    """Of a job, whose fields these are in their order, each by its name."""
    return {name: read(builder, job, INT64(place), INT64) for place, name in enumerate(names)}


def splat(builder: Any, value: Any) -> Any:
    """A vector of ``value`` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(undefined, value, INT32(0)), undefined, zeros)


def multiply_add(builder: Any, total: Any, one: Any, other: Any) -> Any:
    """total + one · other, rounded once where the processor can."""
    return builder.fadd(total, builder.fmul(one, other, flags=("contract",)), flags=("contract",))


def call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    """What LLVM's or C's function of that name returns."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, **options)


class Tile:
    """``count`` vectors in memory one after the other, or a single one of which only the first ``lanes`` exist."""

    def __init__(self, builder: Any, count: int, lanes: Any = None) -> None:
        self.builder, self.count, self.mask = builder, count, None
        if lanes is not None:
            self.mask = lanes_below(builder, lanes)

    def load(self, base: Any) -> list[Any]:
        """The vectors from ``base`` on; 0 in lanes that do not exist."""
        pointers = self._pointers(base)
        if self.mask is None:
            return [self.builder.load(pointer, align=4) for pointer in pointers]
        arguments = [*pointers, INT32(4), self.mask, ir.Constant(VECTOR, [0.0] * LANES)]
        return [call(self.builder, "llvm.masked.load.v16f32.p0", VECTOR, arguments)]

    def store(self, values: list[Any], base: Any) -> None:
        """Write them from ``base`` on."""
        for value, place in zip(values, self._pointers(base), strict=True):
            if self.mask is None:
                self.builder.store(value, place, align=4)
            else:
                arguments = [value, place, INT32(4), self.mask]
                call(self.builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments)

    def _pointers(self, base: Any) -> list[Any]:
        places = [at(self.builder, base, INT64(LANES * place), FLOAT) for place in range(self.count)]
        return [self.builder.bitcast(place, VECTOR.as_pointer()) for place in places]


def gather(builder: Any, base: Any, places: Any, mask: Any, otherwise: Any) -> Any:
    """Of each lane the float at its 32-bit place from ``base`` on, or that of ``otherwise`` where the mask is not."""
    wide = ir.VectorType(INT64, LANES)
    shifts = builder.shl(builder.sext(places, wide), ir.Constant(wide, [2] * LANES))
    addresses = builder.add(splat(builder, builder.ptrtoint(base, INT64)), shifts)
    pointers = builder.inttoptr(addresses, ir.VectorType(FLOAT.as_pointer(), LANES))
    return call(builder, "llvm.masked.gather.v16f32.v16p0", VECTOR, [pointers, INT32(4), mask, otherwise])


def lanes_below(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes."""
    places = ir.Constant(ir.VectorType(INT64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", places, splat(builder, count))
