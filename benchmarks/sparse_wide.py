"""A net ten times as wide, 99 % of it missing, beside its dense twin: accuracy, non-zeros and memory of training.

    python benchmarks/sparse_wide.py [--data-dir DIR] [--seeds 0 1 2] [--cases NAME ...] [--write]

The wide nets are made of sparse layers from the start, with an Erdős–Rényi budget, and RigL moves their connections.
Two perceptrons: LeNet-300-100, most of whose weights look at the image, so that ten times the width has ten times the
weights there and one in a hundred is a tenth of the twin's; and one with hidden layers of 512, where the weights grow
with the square of the width and one in a hundred is as many as the twin has. So that equal numbers are compared as
well, LeNet-300-100 is also trained with as many non-zeros as its twin has weights. Data: the 1,797 digits of
scikit-learn and, where --data-dir says where it is, CIFAR-10, as 3,072 numbers an image.

Memory is the peak of a process of its own above what it held before the network was built: weights, positions,
gradients, momentum, activations, and what the allocator and PyTorch need for them; once for plain steps and once with a
move of RigL's among them. "Under masks" is the wide net trained by RigL in dense layers. Accuracy is that of the test
set after the last epoch; all nets have the same learning rate, the same number of steps and no augmentation.
Times are printed, never written: they need a machine of their own.

The wide net does not train in less memory than its twin where both have as many weights: a non-zero takes twice a
weight's memory (value, gradient and momentum, and its place three times over), and the activations are ten times as
many. Where 1 % is much less than the twin has, as on large inputs, it takes less, with the moves of RigL too. It always
trains in a small part of what the same net takes under masks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from side_by_side import machine, peak, peak_of, reset_peak, resident, write
from torch import nn

import tombola
from tombola.lab.data import Data, cifar10, digits
from tombola.lab.runs.train import fit, measure
from tombola.lab.seeds import derive
from tombola.lab.settings import Cosine
from tombola.sparse import SparseLinear

WIDER, DENSITY = 10, 0.01
WARM_STEPS, STEPS = 3, 12  # of the processes whose memory is looked at; the latter with a move in the middle


@dataclass(frozen=True)
class Case:
    """A data set, the sizes of a perceptron, and how it is trained; ``every`` is ΔT. ``equal``: see the top."""

    data: str
    sizes: tuple[int, ...]
    epochs: int
    batch: int
    lr: float
    every: int
    equal: bool = False


CASES = {
    "LeNet-300-100, digits": Case("digits", (64, 300, 100, 10), 30, 64, 0.05, 30, equal=True),
    "512 × 3, digits": Case("digits", (64, 512, 512, 512, 10), 20, 64, 0.05, 30),
    "LeNet-300-100, CIFAR-10": Case("cifar10", (3072, 300, 100, 10), 3, 128, 0.02, 100, equal=True),
}
KINDS = ("dense", "sparse", "equal", "masked")
NAMES = {"dense": "×1, dense", "sparse": "×10, 1 %", "equal": "×10, as many", "masked": "×10, 1 %, under masks"}


def load(case: Case, folder: Path | None) -> Data:
    return digits() if case.data == "digits" else cifar10(folder or Path())


def perceptron(sizes: tuple[int, ...], density: float | None) -> nn.Sequential:
    """Linear layers with ReLUs between them; sparse ones if a density is given."""
    pairs = list(itertools.pairwise(sizes))
    shapes = {str(place): torch.Size((outputs, inputs)) for place, (inputs, outputs) in enumerate(pairs)}
    counts = {} if density is None else tombola.erk(shapes, density)
    layers: list[nn.Module] = [nn.Flatten()]
    for place, (inputs, outputs) in enumerate(pairs):
        share = counts[str(place)] / (inputs * outputs) if counts else 1.0
        layers += [SparseLinear(inputs, outputs, density=share) if counts else nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def density_of(case: Case, kind: str) -> float:
    """That of the wide net."""
    wide, twin = (sum(a * b for a, b in itertools.pairwise(sizes)) for sizes in (widened(case), case.sizes))
    return twin / wide if kind == "equal" else DENSITY


def widened(case: Case) -> tuple[int, ...]:
    inputs, *hidden, outputs = case.sizes
    return (inputs, *(WIDER * size for size in hidden), outputs)


def begun(
    case: Case, kind: str, steps: int, every: int | None
) -> tuple[nn.Sequential, torch.optim.Optimizer, tombola.Attachment | None]:
    """Net, optimiser and RigL, or Static if it is not to move."""
    sizes = case.sizes if kind == "dense" else widened(case)
    density = density_of(case, kind)
    model = perceptron(sizes, density if kind in ("sparse", "equal") else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr, momentum=0.9, weight_decay=5e-4)
    if kind == "dense":
        return model, optimizer, None
    moving = tombola.Static(density=density) if every is None else tombola.RigL(density=density, every=every)
    return model, optimizer, tombola.attach(model, optimizer, moving, steps=steps)


def trained(case: Case, data: Data, kind: str, seed: int) -> tuple[float, float]:
    """Accuracy of a net trained to the end, and seconds of a step."""
    torch.manual_seed(derive(seed, kind))
    steps = case.epochs * data.steps(case.batch)
    model, optimizer, run = begun(case, kind, steps, case.every)
    begin = time.perf_counter()
    fit(
        model,
        optimizer,
        lambda epoch: data.epoch(derive(seed, epoch), batch_size=case.batch, augment=False),
        epochs=case.epochs,
        seed=seed,
        factor=lambda epoch: Cosine().factor(epoch, case.epochs),
    )
    seconds = (time.perf_counter() - begin) / steps
    if run is not None:
        run.detach()
    return measure(model, data.test()).accuracy, seconds


def memory(case: Case, data: Data, kind: str, moves: bool) -> int:
    """Bytes at most, above what was there before the net was; libraries and compiled code are there already."""
    small = Case(case.data, (case.sizes[0], 16, 16, 10), 1, case.batch, case.lr, 1)

    def work(which: Case, steps: int, every: int | None) -> None:
        model, optimizer, _run = begun(which, kind, steps, every)
        # one batch, again and again: those of a data set on the way are none of the net's memory
        fit(model, optimizer, lambda epoch: itertools.repeat(batch, steps), epochs=1)

    batch = next(iter(data.epoch(0, batch_size=case.batch, augment=False)))
    work(small, WARM_STEPS, 1 if moves else None)
    before = resident()
    reset_peak()
    work(case, STEPS, STEPS // 2 if moves else None)
    return peak() - before


def table(name: str, case: Case, given: argparse.Namespace) -> list[str]:
    data = load(case, given.data_dir)
    lines = [
        f"## {name}",
        "",
        f"{case.epochs} epochs of {data.steps(case.batch)} steps, batches of {case.batch}, SGD with momentum, learning "
        f"rate {case.lr}, ΔT {case.every}",
        "",
        "| net | weights | non-zeros | accuracy, % | peak memory, MiB | with moves, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        if kind == "equal" and not case.equal:
            continue
        found = [trained(case, data, kind, seed) for seed in given.seeds] if kind != "masked" else []
        accuracies = [100 * accuracy for accuracy, _ in found]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        accuracy = f"{statistics.mean(accuracies):.2f} ± {spread:.2f}" if found else "–"
        options = ["--memory-of", name, kind, *(["--data-dir", str(given.data_dir)] if given.data_dir else [])]
        options += ["--threads", str(given.threads)]
        plain = peak_of(__file__, *options) / 2**20
        moving = f"{peak_of(__file__, *options, '--moves') / 2**20:,.1f}" if kind != "dense" else "–"
        sizes = case.sizes if kind == "dense" else widened(case)
        weights = sum(a * b for a, b in itertools.pairwise(sizes))
        count = weights if kind == "dense" else round(density_of(case, kind) * weights)
        lines.append(f"| {NAMES[kind]} | {weights:,} | {count:,} | {accuracy} | {plain:,.1f} | {moving} |")
        times = f"; {1000 * statistics.median(seconds for _, seconds in found):.1f} ms a step" if found else ""
        print(lines[-1], times, flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--moves", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/sparse_wide.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        name, kind = given.memory_of
        print(memory(CASES[name], load(CASES[name], given.data_dir), kind, given.moves))
        return
    cases = {name: case for name, case in CASES.items() if name in given.cases}
    if given.data_dir is None:
        cases = {name: case for name, case in cases.items() if case.data != "cifar10"}
    seeds = " ".join(map(str, given.seeds))
    where = "--data-dir DIR " if given.data_dir else ""
    command = f"`python benchmarks/sparse_wide.py {where}--seeds {seeds} --threads {given.threads} --write`"
    lines = ["# Ten times as wide, 99 % missing", "", command, "", machine(), ""]
    for name, case in cases.items():
        lines += table(name, case, given)
        if given.write:
            write(Path(__file__).parent / "results" / "sparse_wide.md", "\n".join(lines))


if __name__ == "__main__":
    main()
