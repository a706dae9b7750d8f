"""What a sparse net is held against: the dense net that was trained for as many epochs as it was itself."""

from __future__ import annotations

from collections.abc import Sequence

from tombola.lab.report.rows import Row, longest


def bar_for(row: Row, rows: Sequence[Row]) -> Row | None:
    """The dense net among `rows` that the sparse one is held against.

    Of those that were trained for as many epochs as the one training of `row`, in its own width or else in the widest,
    it is the most accurate, whatever its schedule. Where none was trained as long it is the longest; None: there is
    none at all.
    """
    equal = [other for other in rows if other.dense and other.training.mean == row.training.mean]
    if not equal:
        return longest(rows)
    widths = {other.width for other in equal}
    width = row.width if row.width in widths else max(widths)
    return max((other for other in equal if other.width == width), key=lambda other: other.accuracy.mean)
