"""A run as one part for each data set that it trained networks on: its own, and the one it transferred tickets to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tombola.lab.report.reading import Run


def parts(runs: Iterable[Run]) -> tuple[Run, ...]:
    """All runs, each with what it measured on one data set alone.

    The part on a run's own data is that of a run which transfers nothing: its tickets are no others. So where there are
    several, it counts once.
    """
    found: dict[tuple[str, str], Run] = {}
    for part in (part for run in runs for part in _parts(run)):
        identity = part.data, json.dumps(part.config, sort_keys=True)
        if identity not in found or len(part.results) > len(found[identity].results):
            found[identity] = part
    return tuple(found.values())


def _parts(run: Run) -> list[Run]:
    transfer = run.config.get("transfer")
    if not isinstance(transfer, Mapping):
        return [run]
    here = replace(
        run,
        config={key: value for key, value in run.config.items() if key != "transfer"},
        results=tuple(result for result in run.results if not result.found_on),
        epochs=tuple(epoch for epoch in run.epochs if not epoch.transferred),
    )
    results = tuple(result for result in run.results if result.found_on)
    if not results:
        return [here]
    there = replace(
        run,
        data=results[0].data,
        results=results,
        epochs=tuple(epoch for epoch in run.epochs if epoch.transferred),
        original=run.original_there,
    )
    return [here, there]
