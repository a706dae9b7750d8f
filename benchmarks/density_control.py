"""Continuous Sparsification with a density asked for, beside what it replaces, at equal density: tickets found by
sweeping s₀, and Iterative Magnitude Pruning (IMP). Three networks on the digits of scikit-learn, three seeds.

    python benchmarks/density_control.py [--seeds 0 1 2] [--write]

Every ticket is retrained from the weights it was rewound to, for as many epochs as the dense network is trained. Swept
tickets and those of IMP have the densities they happen to have; their accuracy at an asked one is interpolated, in log
density, between the two neighbours of the same seed. The shuffled control keeps the asked ticket's count in each layer.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tombola
from tombola import IMP, ContinuousSparsification, Fixed, Ticket, TicketSearch
from tombola.lab import data, models
from tombola.methods.density import TIMES
from tombola.methods.protocol import Moment

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
EPOCHS, SEARCH_EPOCHS, BATCH = 15, 30, 64
REWIND_EPOCHS = 1
KEEP, ROUNDS = 0.8, 19  # the last round trains the ticket of density 0.8¹⁸ = 0.018
INITIAL_SCORES = (0.03, 0.0, -0.05, -0.1, -0.2, -0.35, -0.5)
SCORE_OPTIMIZER = partial(torch.optim.SGD, lr=1.0, momentum=0.9)

DIGITS = data.digits()
STEPS = DIGITS.steps(BATCH)

ALL = "all networks"

Point = tuple[float, float]  # density, accuracy in %


class Rows(nn.Module):
    """A GRU that reads a digit row by row. (N, 1, 8, 8) -> (N, 10) logits; 14,464 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 64, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x.flatten(1, 2))[0][:, -1])  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], float]] = {  # and the learning rate
    "MLP 64-300-100-10": (lambda: models.lenet_300_100(image_size=8), 0.1),
    "conv 16-32-fc64": (models.conv_digits, 0.1),
    "GRU 64": (Rows, 0.2),
}


# ---- the user's part: a model, a loop, a measurement


def build(net: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[net][0]()


def train(net: str, model: nn.Module, attach: Callable[..., object], *, epochs: int, seed: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=NETS[net][1], momentum=0.9)
    attach(optimizer, steps=epochs * STEPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * STEPS)
    for epoch in range(epochs):
        for x, y in DIGITS.epoch(1000 * seed + epoch, batch_size=BATCH, augment=False):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return 100 * float((model(DIGITS.test_x).argmax(1) == DIGITS.test_y).float().mean())


# ---- what is compared


def retrained(net: str, ticket: Ticket, seed: int) -> float:
    model = build(net, seed)
    fixed = Fixed(ticket.restore(model))
    train(net, model, partial(tombola.attach, model, method=fixed), epochs=EPOCHS, seed=seed)
    return accuracy(model)


def found(net: str, method: ContinuousSparsification, seed: int) -> Ticket:
    model = build(net, seed)
    search = TicketSearch(model, method, rounds=1, rewind_step=REWIND_EPOCHS * STEPS, seed=seed)
    round_ = next(iter(search))
    train(net, model, round_.attach, epochs=SEARCH_EPOCHS, seed=seed)
    return round_.ticket()


def swept(net: str, seed: int) -> list[Point]:
    points = []
    for s0 in INITIAL_SCORES:
        ticket = found(net, ContinuousSparsification(initial_score=s0, score_optimizer=SCORE_OPTIMIZER), seed)
        if ticket.masks.kept:
            points.append((ticket.density, retrained(net, ticket, seed)))
    return points


def pruned(net: str, seed: int) -> list[Point]:
    """Dense first. A round of IMP is the retraining of the ticket before."""
    model = build(net, seed)
    points, density = [], 1.0
    for round_ in TicketSearch(model, IMP(keep=KEEP), rounds=ROUNDS, rewind_step=REWIND_EPOCHS * STEPS, seed=seed):
        train(net, model, round_.attach, epochs=EPOCHS, seed=seed)
        points.append((density, accuracy(model)))
        density = round_.ticket().density
    return points


def at(points: Sequence[Point], density: float) -> float:
    """Accuracy at ``density``, between the neighbours; beyond the ends that of the end."""
    (low, accuracy_low), *rest = sorted(points)
    if density <= low:
        return accuracy_low
    for high, accuracy_high in rest:
        if density <= high:
            along = math.log(density / low) / math.log(high / low)
            return accuracy_low + along * (accuracy_high - accuracy_low)
        low, accuracy_low = high, accuracy_high
    return accuracy_low


def epochs_of_imp(density: float) -> int:
    """To the first ticket that is as sparse, its retraining included."""
    return EPOCHS * (math.ceil(math.log(density) / math.log(KEEP)) + 1)


Row = dict[str, float]  # what was trained -> accuracy in %


def compare(net: str, seed: int) -> dict[float, Row]:
    """One seed of one network, at each density."""
    by_sweep, by_imp = swept(net, seed), pruned(net, seed)
    rows = {}
    for density in DENSITIES:
        method = ContinuousSparsification(density=density, score_optimizer=SCORE_OPTIMIZER)
        ticket = found(net, method, seed)
        assert ticket.masks.kept == round(density * ticket.masks.total), "the asked density was missed"
        rows[density] = {
            "asked": retrained(net, ticket, seed),
            "swept": at(by_sweep, density),
            "imp": at(by_imp, density),
            "shuffled": retrained(net, ticket.shuffled(seed=seed), seed),
            "dense": by_imp[0][1],
        }
    return rows


# ---- what the controller costs


def cost(steps: int) -> tuple[float, float, float]:
    """Milliseconds of a training step of Conv-6 (batch 60) without the controller; of the controller, for each step of
    a run of ``steps``; and of the exact selection at its end."""
    torch.manual_seed(0)
    model = models.conv6().to(memory_format=torch.channels_last)
    x = torch.randn(60, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (60,))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    run = tombola.attach(model, optimizer, ContinuousSparsification(), steps=steps)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    method, scores, stride = ContinuousSparsification(density=0.05), run.scores, max(1, steps // TIMES)

    def control(begin: int, count: int) -> None:
        for now in range(begin, begin + count):
            method.adjust(scores, Moment(step=now, steps=steps, steps_per_epoch=None, weights=1))

    whole, parts = [], []
    for k in range(20):  # in turns, so that the scores are no longer in the caches when the controller comes
        whole.append(timed(step))
        parts.append(timed(partial(control, k * stride * (TIMES // 20), stride)))
    last = timed(partial(control, steps, 1))
    return statistics.median(whole), statistics.median(parts) / stride, last


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


# ---- the page


def mean_sd(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def difference(rows: Sequence[Row], other: str) -> tuple[str, str]:
    """Asked minus ``other``, paired by network and seed: mean ± standard error; and what that comes to."""
    gaps = [row["asked"] - row[other] for row in rows]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
    mean = statistics.mean(gaps)
    verdict = "equal" if abs(mean) <= 2 * error else "better" if mean > 0 else "worse"
    return f"{mean:+.2f} ± {error:.2f}", verdict


def reading(verdicts: dict[tuple[str, float, str], str]) -> list[str]:
    """The differences in words; ``verdicts`` by network, density and what the asked ticket is compared with."""
    lines = []
    for other, name in (("swept", "swept tickets"), ("imp", "IMP")):
        cells = {(net, density): v for (net, density, kind), v in verdicts.items() if kind == other}
        single = {cell: v for cell, v in cells.items() if cell[0] != ALL}
        count = {word: list(single.values()).count(word) for word in ("better", "equal", "worse")}
        worse = [f"{net} at {density}" for (net, density), v in single.items() if v == "worse"]
        pooled = [f"{v} at {density}" for (net, density), v in cells.items() if net == ALL]
        lines.append(
            f"* Against {name}: better in {count['better']} of {len(single)} cells, equal in {count['equal']}, "
            f"worse in {count['worse']}{' (' + '; '.join(worse) + ')' if worse else ''}. "
            f"All networks together: {', '.join(pooled)}."
        )
    cheap = [str(d) for d in DENSITIES if epochs_of_imp(d) >= 4 * (SEARCH_EPOCHS + EPOCHS)]
    lines.append(f"* At density {', '.join(cheap)} the asked ticket takes at most a quarter of the epochs of IMP.")
    dear = [f"{d} ({(SEARCH_EPOCHS + EPOCHS) / epochs_of_imp(d):.2f})" for d in DENSITIES if str(d) not in cheap]
    lines.append(f"* Not so at {', '.join(dear)}, where IMP needs few rounds.")
    return lines


def page(results: dict[str, list[dict[float, Row]]]) -> list[str]:
    asked = SEARCH_EPOCHS + EPOCHS
    lines = ["## Accuracy of the retrained tickets, % (mean ± sd over seeds)", ""]
    lines += [
        "| network | density | asked | swept s₀ | IMP | asked, shuffled | dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for net, seeds in results.items():
        for density in DENSITIES:
            cells = [mean_sd([rows[density][kind] for rows in seeds]) for kind in seeds[0][density]]
            lines.append(f"| {net} | {density} | {' | '.join(cells)} |")
    lines += ["", "## Asked minus the others, percentage points (mean ± standard error)", ""]
    lines += ['Paired by network and seed; "equal": no further from 0 than two standard errors.', ""]
    lines += ["| network | density | − swept | − IMP | epochs, asked : IMP |", "|---|---|---|---|---|"]
    verdicts = {}
    groups = {**results, ALL: [rows for seeds in results.values() for rows in seeds]}
    for net, seeds in groups.items():
        for density in DENSITIES:
            cells = []
            for other in ("swept", "imp"):
                gap, verdicts[net, density, other] = difference([found[density] for found in seeds], other)
                cells.append(f"{gap} {verdicts[net, density, other]}")
            imp = epochs_of_imp(density)
            lines.append(f"| {net} | {density} | {' | '.join(cells)} | {asked} : {imp} = {asked / imp:.2f} |")
    sweep = len(INITIAL_SCORES) * asked
    lines += ["", f"Epochs count searching and retraining: asked {asked} for each density, the sweep {sweep} in all."]
    lines += ["Accuracies of the sweep and of IMP are interpolated; beyond the range of a sweep its end counts."]
    return ["## In words", "", *reading(verdicts), "", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/density_control.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "round 1:")  # some s₀ leave a layer without weights, or scores undecided
    begin = time.perf_counter()
    results: dict[str, list[dict[float, Row]]] = {net: [] for net in NETS}
    for seed in given.seeds:
        for net in NETS:
            results[net].append(compare(net, seed))
            print(net, "seed", seed, results[net][-1], flush=True)
    lines = page(results)
    lines += ["", "## Cost of the controller, Conv-6 (2,261,184 scores), batch 60", ""]
    lines += [
        "| steps of the run | ms per training step | controller, ms per step | share | exact selection, ms once |"
    ]
    lines += ["|---|---|---|---|---|"]
    for steps in (33_320, 1_000):
        whole, each, last = cost(steps)
        lines.append(f"| {steps:,} | {whole:.0f} | {each:.3f} | {each / whole:.2%} | {last:.0f} |")
    minutes = (time.perf_counter() - begin) / 60
    about = (
        f"tombola {tombola.__version__}, torch {torch.__version__}, {platform.machine()}, {given.threads} thread(s); "
    )
    about += f"seeds {', '.join(map(str, given.seeds))}; {minutes:.0f} minutes. "
    about += f"{SEARCH_EPOCHS} epochs of search, {EPOCHS} of retraining and of each round of IMP (keep {KEEP}), "
    about += f"rewinding to the end of epoch {REWIND_EPOCHS}; s₀ swept: {', '.join(map(str, INITIAL_SCORES))}."
    head = ["# A density you can ask for", "", f"`python benchmarks/{Path(__file__).name} --write`", "", about, ""]
    print("\n".join(lines))
    if given.write:
        path = Path(__file__).parent / "results" / "density_control.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
