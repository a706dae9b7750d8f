"""What the numbers say, in sentences computed from them: the headline findings and the account of what was run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tombola.lab.report.rows import Row, Summary, Task, control_name, method_name, setting_name
from tombola.lab.report.words import NBSP, count, listing, percent, spread

NAMES = {
    "dense": "dense training",
    "cs": "Continuous Sparsification (CS)",
    "imp": "Iterative Magnitude Pruning (IMP)",
    "iss": "Iterative Stochastic Sparsification (ISS)",
    "ss": "Stochastic Sparsification (SS)",
    "gmp": "gradual magnitude pruning (GMP)",
    "static": "static random masks",
}
NEAR = 1.25
"""Two densities whose ratio is below this are compared as equals."""
NEARLY = 0.005
"""An accuracy this little below dense is nearly as good."""


@dataclass(frozen=True)
class Finding:
    """One headline: a number, what it is, and the sentence that stands behind it."""

    number: str
    what: str
    text: str


def findings(task: Task) -> list[Finding]:
    """The headlines of one task, as far as its numbers reach."""
    makers: Sequence[Callable[[Task], Finding | None]] = (_sparsest, _nearly, _transferred, _asked, _controls, _static)
    return [finding for make in makers if (finding := make(task)) is not None]


def matching(rows: Iterable[Row]) -> Row | None:
    """The sparsest of `rows` whose mean accuracy is at least the dense net's; None if there is none."""
    return min((row for row in rows if row.good), key=lambda r: (r.density.mean, -r.accuracy.mean), default=None)


def _sparsest(task: Task) -> Finding | None:
    dense = task.dense
    if dense is None or not task.tickets:
        return None
    best = matching(task.tickets)
    if best is None:
        closest = max(task.tickets, key=lambda row: row.accuracy.mean - (row.bar or dense).accuracy.mean)
        bar = closest.bar or dense
        return Finding(
            "none",
            f"of the {task.noun}s is as accurate as the dense net",
            f"Dense reaches {spread(bar.accuracy)}{_length(task, bar)}. The best {task.noun}, {_ticket(closest)}, "
            f"keeps {percent(closest.density.mean)} of the weights and reaches {spread(closest.accuracy)}.",
        )
    bar = best.bar or dense
    text = (
        f"{_ticket(best)} reaches {spread(best.accuracy)} against {spread(bar.accuracy)} for the dense "
        f"net{_length(task, bar)}, after {_epochs(best)}."
    )
    if best.method != "imp":
        text += _imp_as_sparse(task, best)
    return Finding(
        percent(best.density.mean), f"of the weights: the sparsest {task.noun} at least as accurate as dense", text
    )


def _imp_as_sparse(task: Task, best: Row) -> str:
    imp = [row for row in task.tickets if row.method == "imp" and not row.found_on]
    if not imp:
        return ""
    sparse = [row for row in imp if row.density.mean <= best.density.mean * 1.001]
    if not sparse:
        last = min(imp, key=lambda row: row.density.mean)
        return f" IMP is not that sparse after {count(last.epochs_all.mean, 'epoch')} ({percent(last.density.mean)})."
    first = max(sparse, key=lambda row: row.density.mean)
    return (
        f" IMP is as sparse in round{NBSP}{first.round}, after {count(first.epochs_all.mean, 'epoch')}: "
        f"{spread(first.accuracy)}."
    )


def _nearly(task: Task) -> Finding | None:
    """For each method its sparsest ticket that is less than half a point below dense."""
    near = [row for row in task.tickets if row.bar and row.accuracy.mean > row.bar.accuracy.mean - NEARLY]
    sparsest = min(near, key=lambda row: row.density.mean, default=None)
    if sparsest is None or sparsest.good:  # the sparsest at least as accurate as dense has been told of
        return None
    parts = []
    for method in dict.fromkeys(row.method for row in near):
        row = min((row for row in near if row.method == method), key=lambda row: row.density.mean)
        parts.append(f"{_ticket(row)}, keeps {percent(row.density.mean)}: {spread(row.accuracy)} after {_epochs(row)}.")
    what = f"of the weights: the sparsest {task.noun} within half a point of dense"
    return Finding(percent(sparsest.density.mean), what, " ".join(parts))


def _transferred(task: Task) -> Finding | None:
    """The sparsest ticket from other data of which there is one as sparse from here, by the same method, beside it."""
    pairs = []
    for row in task.tickets:
        own = [other for other in task.tickets if other.method == row.method and not other.found_on and other.round]
        if row.found_on and own and row.density.mean > 0:
            near = min(own, key=lambda other: _ratio(row, other))
            if _ratio(row, near) < NEAR:
                pairs.append((row, near))
    if not pairs:
        return None
    row, own_row = min(pairs, key=lambda pair: (pair[0].density.mean, -pair[0].accuracy.mean))
    points = 100 * (row.accuracy.mean - own_row.accuracy.mean)
    text = (
        f"{_ticket(row)}, keeps {percent(row.density.mean)} of the weights and reaches {spread(row.accuracy)}; "
        f"{_ticket(own_row)}, found here, keeps {percent(own_row.density.mean)} and reaches {spread(own_row.accuracy)}."
    )
    sign = "+" if points >= 0.05 else "−" if points <= -0.05 else ""
    what = f"for a ticket from {row.found_on} over one as sparse that was found here"
    return Finding(f"{sign}{abs(points):.1f} points", what, text)


def _ratio(one: Row, other: Row) -> float:
    """Of the larger density to the smaller."""
    low, high = sorted((one.density.mean, other.density.mean))
    return high / low if low else math.inf


def _asked(task: Task) -> Finding | None:
    rows = [row for row in task.tickets if row.asked is not None and row.last and not row.trained and not row.found_on]
    if not rows:
        return None
    row = rows[0]
    assert row.asked is not None
    counts = sorted(set(row.kept))
    wanted = row.asked * row.maskable
    exact = all(abs(kept - wanted) < 1 for kept in row.kept)
    seeds = "its one seed" if len(row.kept) == 1 else f"all {len(row.kept)} seeds"
    text = f"Exactly so in {seeds}; " if exact else f"That is {max(abs(k - wanted) for k in counts):,.0f} off at most; "
    text += f"the tickets reach {spread(row.accuracy)} after {_epochs(row)}."
    imp = [other for other in task.tickets if other.method == "imp" and other.density.mean > 0 and not other.found_on]
    if imp and row.density.mean > 0:
        near = min(imp, key=lambda other: abs(math.log(other.density.mean / row.density.mean)))
        if max(near.density.mean / row.density.mean, row.density.mean / near.density.mean) < NEAR:
            text += (
                f" IMP’s nearest, {percent(near.density.mean)}, reaches {spread(near.accuracy)} "
                f"after {count(near.epochs_all.mean, 'epoch')}."
            )
    kept = listing(f"{kept:,}" for kept in counts)
    return Finding(kept, f"of {row.maskable:,} weights kept when {percent(row.asked)} were asked for", text)


def _controls(task: Task) -> Finding | None:
    rows = [row for row in task.tickets if "shuffled" in row.controls]
    row = matching(rows) or max(rows, key=lambda row: row.accuracy.mean, default=None)
    if row is None:
        return None
    difference = 100 * (row.accuracy.mean - row.controls["shuffled"].mean)
    text = f"{_ticket(row)}, with {percent(row.density.mean)} of the weights, reaches {spread(row.accuracy)}"
    for control, accuracy in row.controls.items():
        what = {"shuffled": "the same counts at shuffled places", "reinitialised": "the same places with fresh weights"}
        text += f"; {what.get(control, control_name(control))} {spread(accuracy)}"
    sign = "+" if difference >= 0.05 else "−" if difference <= -0.05 else ""
    return Finding(f"{sign}{abs(difference):.1f} points", "over as many weights at random places", text + ".")


def _static(task: Task) -> Finding | None:
    """The best of the networks as sparse as the sparsest with random masks that never move, beside it."""
    rows = [row for row in task.tickets if row.trained]
    static = min((row for row in rows if row.method == "static"), key=lambda row: row.density.mean, default=None)
    if static is None:
        return None
    others = [row for row in rows if row.asked == static.asked and row.method != "static"]
    if not others:
        return None
    best = max(others, key=lambda row: row.accuracy.mean)
    points = 100 * (best.accuracy.mean - static.accuracy.mean)
    parts = [f"{row.name} {spread(row.accuracy)}" for row in sorted(others, key=lambda row: -row.accuracy.mean)]
    what = f"over random masks that never move, with {percent(static.density.mean)} of the weights"
    sign = f"{points:+.1f} points".replace("-", "−")
    return Finding(sign, what, f"{static.name} {spread(static.accuracy)}; {'; '.join(parts)}.")


def _ticket(row: Row) -> str:
    return row.full_name if row.round > 1 or not row.last else row.name


def _epochs(row: Row) -> str:
    """What the ticket alone costs, and what everything costs that was trained to find it, if that is more."""
    text = count(row.epochs.mean, "epoch")
    if row.epochs_all.mean == row.epochs.mean:
        return text
    more = ["every retraining"] * (row.round > 1) + [f"all {row.tried} settings tried"] * (row.tried > 1)
    return f"{text} ({row.epochs_all.mean:,.6g} with {listing(more)})"


def _length(task: Task, bar: Row) -> str:
    """How long a dense net was trained, where sparse ones are held against several."""
    return f" in {count(bar.training.mean, 'epoch')}" if len(task.bars) > 1 else ""


def trust(task: Task) -> str:
    """Whether the searches of a task came to a decision: undecided scores, soft nets against hard tickets, and layers
    that died; empty if it has no ticket."""
    if not task.tickets:
        return ""
    said = []
    undecided = [row for row in task.tickets if row.undecided is not None]
    if undecided:
        row = max(undecided, key=lambda row: row.undecided.mean if row.undecided else 0.0)
        assert row.undecided is not None
        said.append(f"Scores undecided at the end of a round: {percent(row.undecided.mean)} at most ({row.full_name}).")
    hardened = [row for row in task.tickets if row.gap is not None]
    if hardened:
        row = max(hardened, key=lambda row: abs(row.gap.mean) if row.gap else 0.0)
        assert row.gap is not None
        points = f"{100 * abs(row.gap.mean):.1f}"
        most = "0.0 points apart" if points == "0.0" else f"{points} points apart at most ({row.full_name})"
        said.append(f"Accuracy of the soft net against its hard ticket: {most}.")
    pairs = [(row, row.soft_loss, row.hard_loss) for row in task.tickets]
    losses = [(abs(soft.mean - hard.mean), row) for row, soft, hard in pairs if soft and hard]
    if losses:
        apart, row = max(losses, key=lambda found: found[0])
        said.append(f"Their losses: {apart:.3g} apart at most ({row.full_name}).")
    died: dict[tuple[str, str], Row] = {}
    for row in task.tickets:
        for layer in row.dead:
            died.setdefault((row.group, layer), row)
    dead = [f"{layer} (first in {row.full_name})" for (_, layer), row in died.items()]
    said.append(f"Layers that kept no weight: {listing(dead)}." if dead else "No layer died.")
    return " ".join(said)


def account(summary: Summary) -> str:
    """What was run, in one plain paragraph."""
    alike: dict[str, list[Task]] = {}
    for task in summary.tasks:
        alike.setdefault(_work(task), []).append(task)
    sentences = [f"{_models(tasks)}: {work}." for work, tasks in alike.items()]
    seeds = sorted({seed for task in summary.tasks for seed in task.seeds})
    end = "What is shown is the accuracy after training"
    if any(task.searched for task in summary.tasks):
        end = "Every ticket was trained again from its rewound weights, and what is shown is the accuracy after that"
    if len(seeds) > 1:
        end += f", as mean ± standard deviation over the {len(seeds)} seeds {listing(seeds)}"
    elif seeds:
        end += f", for the one seed {seeds[0]}"
    return " ".join(sentences) + f" {end}."


def _models(tasks: Sequence[Task]) -> str:
    """Names and sizes of the models, grouped by data."""
    by_data: dict[str, list[str]] = {}
    for task in tasks:
        size = count(max(row.maskable for row in task.rows), "maskable weight")
        by_data.setdefault(task.data, []).append(f"{task.model} ({size})")
    return listing(f"{listing(names)} on {data}" for data, names in by_data.items())


def _work(task: Task) -> str:
    """The methods of a task, each with its settings and its number of rounds."""
    kinds: dict[tuple[str, bool], list[Row]] = {}
    for row in task.rows:
        kinds.setdefault((row.method, row.asked is not None), []).append(row)
    parts = []
    for (method, asked), rows in kinds.items():
        settings = listing(dict.fromkeys(setting_name(row.setting) for row in rows if row.setting))
        if method == "dense":
            told = {row.setting for row in rows}
            also = ["for as many epochs as a search"] if "equal epochs" in told else []
            also += ["shorter or narrower"] if told - {"", "equal epochs"} else []
            parts.append(NAMES[method] + (f" (also {listing(also)})" if also else ""))
            continue
        known = asked and (method, False) in kinds
        name = method_name(method) if known else NAMES.get(method, method_name(method))
        rounds = max(row.round for row in rows)
        over = f" over {count(rounds, 'round')}" if rounds else ""
        parts.append(f"{name} with {settings}{over}" if settings else f"{name}{over}")
    return "; ".join(parts)
