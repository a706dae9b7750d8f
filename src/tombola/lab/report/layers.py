"""Per-layer densities of one network of each series, as the rows of a table with bars on one scale."""

from __future__ import annotations

from typing import Any

from tombola.lab.report.curves import shown
from tombola.lab.report.rows import Task
from tombola.lab.report.svg import INK
from tombola.lab.report.words import percent


def layer_table(task: Task) -> dict[str, Any] | None:
    """What the page's table shows; None if no network tells its layers."""
    inks = {value: role for role, value in INK.items()}
    drawn = [(row, inks[series.ink]) for series, row in shown(task) if row.layers]
    if not drawn:
        return None
    names = dict.fromkeys((layer.name, layer.size) for row, _ in drawn for layer in row.layers)
    longest = max(layer.kept / layer.size for row, _ in drawn for layer in row.layers)
    found = [({layer.name: layer.kept / layer.size for layer in row.layers}, row.method, ink) for row, ink in drawn]
    return {
        "longest": percent(longest),
        "columns": [
            {
                "name": row.name,
                "method": row.method,
                "detail": f"round {row.round}, {percent(row.density.mean)}" if row.round else "",
            }
            for row, _ in drawn
        ],
        "rows": [
            {
                "name": name,
                "size": f"{size:,}",
                "cells": [
                    _cell(density.get(name), ink, longest) | {"method": method} for density, method, ink in found
                ],
            }
            for name, size in names
        ],
    }


def _cell(density: float | None, ink: str, longest: float) -> dict[str, Any]:
    if density is None:
        return {"width": 0, "text": "–", "ink": ink, "dead": False}
    text = percent(density) if density else "empty"
    return {"width": f"{100 * density / max(longest, 1e-12):.2f}", "text": text, "ink": ink, "dead": not density}
