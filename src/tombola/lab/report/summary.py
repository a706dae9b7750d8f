"""From runs to the numbers that are shown: results grouped over seeds, with what each one cost and its controls.

The same `Summary` feeds the terminal table, the HTML report and the CSV file, so that they cannot disagree.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tombola.lab.report.against import bar_for
from tombola.lab.report.experiments import reduced
from tombola.lab.report.parts import parts
from tombola.lab.report.reading import Layer, Result, Run
from tombola.lab.report.rows import METHODS, Row, Stat, Summary, Task, stat, without_density

NOT_SETTINGS = ("seed", "retrain", "controls", "control_rounds", "evaluate_every")  # change no ticket's number

SCHEDULE_KINDS = ("schedule.kind", "schedule.then.kind")


def summarise(runs: Iterable[Run]) -> Summary:
    """Group the results of `runs` over seeds: one task for each data set and model, in order of appearance. What was
    measured on the data that tickets were transferred to belongs to the task of these."""
    runs = tuple(runs)
    split = parts(runs)
    pairs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in split:
        pairs[run.data, run.model].append(run)
    tasks = tuple(_task(data, model, members) for (data, model), members in pairs.items())
    return Summary(tasks=tuple(task for task in tasks if task.rows), runs=runs, parts=split)


def _task(data: str, model: str, runs: list[Run]) -> Task:
    cells: dict[tuple[str, int], dict[str | None, list[tuple[Run, Result]]]] = {}
    for run in runs:
        for result in run.results:
            members = cells.setdefault((_key(run.config), result.round), {})
            members.setdefault(result.control, []).append((run, result))
    sweeps = _sweeps(runs)
    suffixes = _suffixes(runs)
    rows = []
    last: dict[str, int] = {}
    for group, round_ in cells:
        last[group] = max(last.get(group, 0), round_)
    for (group, _), members in cells.items():
        own = members.get(None)
        if own is None:  # a control whose ticket was never retrained is nothing to compare with
            continue
        controls = {c: stat([r.test_accuracy for _, r in found]) for c, found in members.items() if c is not None}
        rows.append(_row(own, controls, group, sweeps[group], suffixes[group], last[group]))
    rows.sort(key=_order)
    held = tuple(row if row.dense else _held(row, bar_for(row, rows)) for row in rows)
    return Task(data=data, model=model, rows=held, seeds=tuple(sorted({run.seed for run in runs})))


def _held(row: Row, bar: Row | None) -> Row:
    """A sparse net, held against a dense one."""
    if bar is None:
        return row
    return replace(row, bar=bar, good=row.density.mean > 0 and row.accuracy.mean >= bar.accuracy.mean)


def _row(
    own: list[tuple[Run, Result]], controls: Mapping[str, Stat], group: str, sweep: list[Run], suffix: str, last: int
) -> Row:
    run, first = own[0]
    results = [result for _, result in own]
    totals = [_sweep_epochs(run, result, sweep) for run, result in own]
    pairs = [(r.soft_accuracy, r.hard_accuracy) for r in results]
    return Row(
        data=run.data,
        model=run.model,
        method=first.method,
        setting=" ".join(part for part in (first.setting, suffix) if part),
        group=group,
        round=first.round,
        last=first.round == last,
        seeds=tuple(sorted(run.seed for run, _ in own)),
        density=stat([r.density for r in results]),
        kept=tuple(r.kept for r in results),
        maskable=first.maskable,
        width=_width(run),
        accuracy=stat([r.test_accuracy for r in results]),
        loss=_maybe([r.test_loss for r in results]),
        token=first.token,
        epochs=stat([r.epochs_total for r in results]),
        epochs_all=stat([epochs for epochs, _ in totals]),
        training=stat([r.epochs_total - r.epochs_search for r in results]),
        arithmetic=_maybe([r.arithmetic for r in results]),
        tried=max(tried for _, tried in totals),
        asked=_asked(run, first.round),
        soft=_maybe([r.soft_accuracy for r in results]),
        hard=_maybe([r.hard_accuracy for r in results]),
        gap=_maybe([soft - hard for soft, hard in pairs if soft is not None and hard is not None]),
        undecided=_maybe([r.undecided for r in results]),
        dead=tuple(sorted({name for r in results for name in r.dead_layers})),
        layers=_mean_layers([r.layers for r in results]),
        controls=controls,
        original=_all_original([run for run, _ in own]),
        multiply_adds=_maybe([r.multiply_adds for r in results]),
        bytes=_maybe([r.bytes for r in results]),
        seconds=_maybe([r.seconds for r in results]),
        devices=tuple(sorted({run.device for run, _ in own if run.device})),
        valid=_maybe([r.valid_loss for r in results]),
        soft_loss=_maybe([r.soft_loss for r in results]),
        hard_loss=_maybe([r.hard_loss for r in results]),
        found_on=first.found_on,
        label=next((label for run, _ in own if (label := reduced(run.scale))), ""),
    )


def _all_original(runs: Sequence[Run]) -> bool | None:
    known = {run.original for run in runs}
    return False if False in known else None if None in known else True


def _width(run: Run) -> float:
    width = run.config.get("width", 1.0)
    return float(width) if isinstance(width, int | float) else 1.0


def _maybe(values: Sequence[float | None]) -> Stat | None:
    known = [value for value in values if value is not None]
    return stat(known) if known else None


def _mean_layers(found: Sequence[tuple[Layer, ...]]) -> tuple[Layer, ...]:
    """Layers with the mean count over seeds (rounded); the first seed's where the seeds' layers differ in name."""
    alike = [layers for layers in found if [la.name for la in layers] == [la.name for la in found[0]]]
    return tuple(
        Layer(same[0].name, same[0].size, round(statistics.fmean(layer.kept for layer in same)))
        for same in zip(*alike, strict=True)
    )


def _key(config: Mapping[str, Any]) -> str:
    """What makes two runs the same setting: the whole config but the seed."""
    return json.dumps({k: v for k, v in config.items() if k not in NOT_SETTINGS}, sort_keys=True)


def _sweeps(runs: list[Run]) -> dict[str, list[Run]]:
    """For each setting the runs that differ from it in numbers of the method alone, itself included, over all seeds.

    These were swept to find a good one: initial scores, the penalty, and so on. A density is no such number but what is
    asked for, and how long a dense net is trained is no setting of a method.
    """
    alike: dict[str, list[Run]] = defaultdict(list)

    def without_numbers(run: Run) -> str:
        method = run.method_settings
        if method.get("kind", "dense") == "dense":
            return _key(run.config)
        kept = {name: value for name, value in method.items() if name == "density" or not _is_number(value)}
        return _key({**run.config, "method": kept})

    for run in runs:
        alike[without_numbers(run)].append(run)
    return {_key(run.config): alike[without_numbers(run)] for run in runs}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sweep_epochs(run: Run, result: Result, sweep: list[Run]) -> tuple[float, int]:
    """Epochs of all that was trained to have the curve as far as this result; and how many settings were tried."""
    spent = [_epochs_until(other, result.round) for other in sweep if other.seed == run.seed]
    known = [epochs for epochs in spent if epochs is not None]
    return sum(known), len(known)


def _epochs_until(run: Run, round_: int) -> float | None:
    """Epochs of the search up to a round and of the training of each ticket on the way; None if there is none yet.

    IMP that rewinds trains the ticket of a round in the next one, on the same data; only the last costs more.
    """
    reached = [r for r in run.results if r.control is None and r.round <= round_ and bool(r.round) == bool(round_)]
    if not reached:
        return None
    last = max(reached, key=lambda r: r.round)
    method = run.method_settings
    free = method.get("kind") == "imp" and method.get("rewind", True) and not last.found_on
    return last.epochs_search + sum(r.epochs_total - r.epochs_search for r in ([last] if free else reached))


def _asked(run: Run, round_: int) -> float | None:
    """The density that was asked for at this round, where the method takes one."""
    asked = run.method_settings.get("density")
    if isinstance(asked, list):
        asked = asked[min(round_, len(asked)) - 1] if asked and round_ else None
    return float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None


def _suffixes(runs: list[Run]) -> dict[str, str]:
    """What tells apart settings that share a label but for the density: the config entries in which they differ, as
    "key=value". All that share it have the same entries, so that a line can follow one setting from density to density.
    """
    labels: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        for result in run.results:
            labels[result.method, without_density(result.setting)][_key(run.config)] = _flat(run.config)
    suffixes = {_key(run.config): "" for run in runs}
    for same in labels.values():
        if len(same) > 1:
            names = sorted({name for flat in same.values() for name in flat} - {*NOT_SETTINGS, "method.density"})
            differing = [name for name in names if len({json.dumps(flat.get(name)) for flat in same.values()}) > 1]
            for key, flat in same.items():
                suffixes[key] = " ".join(f"{_called(name)}={flat.get(name)}" for name in _shorter(differing))
    return suffixes


def _shorter(differing: list[str]) -> list[str]:
    """What is enough to tell settings apart: of schedules their kind or, if only that of longer trainings is stretched,
    the number of epochs."""
    parts = [name for name in differing if name.startswith("schedule.")]
    others = [name for name in differing if name not in parts]
    for kind in SCHEDULE_KINDS:
        if kind in parts:
            return [*others, kind]
    return others if "epochs" in others else differing


def _called(name: str) -> str:
    return "schedule" if name in SCHEDULE_KINDS else name.rsplit(".", 1)[-1]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


def _order(row: Row) -> tuple[int, bool, float, str, int]:
    """Dense first, then methods in the order they are named, swept settings by their number, rounds upward."""
    rank = list(METHODS).index(row.method) if row.method in METHODS else len(METHODS)
    number = re.search(r"(?<![a-z])-?\d+(\.\d+)?(e-?\d+)?", row.setting)  # not the 0 of s0
    value = float(number[0]) if number else 0.0
    return rank, row.asked is not None, -value if row.trained else value, row.setting, row.round
