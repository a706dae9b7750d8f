"""Sparse training methods side by side: accuracy at equal density, at equal epochs and at equal training arithmetic.

    python benchmarks/dst_accuracy.py [--data digits cifar10] [--data-dir DIR] [--seeds 0 1 2] [--jobs 2] [--write NAME]
    python benchmarks/dst_accuracy.py --data cifar10 --rows static RigL --densities 0.1 0.05 --seeds 0 1 2 3 4 5
    python benchmarks/dst_accuracy.py --data cifar10 --rows static SET RigL --densities 0.02

Digits: LeNet-300-100 on the 1,797 digits of scikit-learn. CIFAR-10: a subset small enough for two cores, the first
5,000 training images and the whole test set, halved to 16×16 pixels, with a small convolutional net. Its weights begin
with He's variance: with PyTorch's own, a sixth of it, and in a third of the steps, sparse networks are all so far from
trained that no method is better than another.

For each density: static, SET, RigL (Erdős–Rényi-kernel layers), gradual magnitude pruning (GMP) and Continuous
Sparsification as pruning (the density asked for, hard after 80 % of the steps), all for the same epochs; RigL for twice
the epochs; and three dense baselines: the same epochs, as many epochs as RigL's arithmetic pays for, and a narrow net
with about as many weights. Arithmetic is that of training (appendix H of the RigL paper), relative to dense.

RigL is above static where there is room for it. On the digits static masks of 10 % are within half a point of dense
already. On CIFAR-10 at 2 %, which is 482 weights, its connections gather in so few channels that it loses what it
gains: 60 % of the outputs end without one (SET 20 %, static 3 %), as its successors found of it at high sparsity
(SRigL, arXiv 2305.02299).
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import tombola
from tombola import SET, ContinuousSparsification, GradualMagnitude, RigL, Static, flops
from tombola.lab.arithmetic import training_cost
from tombola.lab.cifar import read
from tombola.lab.data import Data, digits
from tombola.lab.models import lenet_300_100, width_for
from tombola.lab.models.initial import he

SCORE_OPTIMIZER = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
IMAGES = 5_000


@dataclass(frozen=True)
class Case:
    """A data set, a network of any width, and how it is trained; ``every`` is ΔT."""

    width: Callable[[float], nn.Module]
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    every: int
    augment: bool


def convolutional(width: float) -> nn.Module:
    """Three 3×3 convolutions with batch norm, 16-32-64 channels times ``width``, two of them of stride 2."""
    channels, layers = 3, []
    for base, stride in ((16, 1), (32, 2), (64, 2)):
        outputs = max(1, round(base * width))
        conv = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        channels = outputs
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    he(model)
    return model


CASES = {
    "digits": Case(
        lambda width: lenet_300_100(image_size=8, width=width),
        epochs=30,
        batch=64,
        lr=0.1,
        weight_decay=1e-4,
        every=20,
        augment=False,
    ),
    "cifar10": Case(convolutional, epochs=60, batch=50, lr=0.1, weight_decay=5e-4, every=100, augment=True),
}


@cache
def data_of(name: str, folder: str) -> Data:
    if name == "digits":
        return digits()
    (train_x, train_y), (test_x, test_y), _ = read(Path(folder))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262)))
    halved_train, halved_test = (F.avg_pool2d(x.float(), 2).round().byte() for x in (train_x[:IMAGES], test_x))
    return Data(halved_train, train_y[:IMAGES], halved_test, test_y, 10, "cifar10", mean=mean, std=std)


@dataclass(frozen=True)
class Task:
    """One training."""

    case: str
    row: str
    density: float
    seed: int


def methods(density: float, every: int) -> dict[str, object]:
    return {
        "static": Static(density=density),
        "SET": SET(density=density, every=every),
        "RigL": RigL(density=density, every=every),
        "RigL, 2× epochs": RigL(density=density, every=every),
        "GMP": GradualMagnitude(density=density, every=every),
        "CS": ContinuousSparsification(density=density, harden_at=0.8, score_optimizer=SCORE_OPTIMIZER),
    }


def narrow(case: Case, density: float) -> float:
    """The width at which the dense net has as many parameters as the sparse one."""
    model = case.width(1.0)
    weights = sum(p.numel() for p in tombola.maskable(model).values())
    return width_for(case.width, sum(p.numel() for p in model.parameters()) - round((1 - density) * weights))


def run(task: Task, folder: str) -> tuple[Task, float, float, float]:
    """(task, test accuracy in %, training arithmetic relative to dense at equal epochs, dead outputs in %)."""
    torch.set_num_threads(1)
    case, data = CASES[task.case], data_of(task.case, folder)
    full = case.width(1.0)
    whole, masked = flops.count(full, torch.zeros(1, *data.input_shape)), tombola.maskable(full)
    share, rigl = (
        training_cost(method, whole, masked, steps=1)
        for method in (Static(density=task.density), RigL(density=task.density, every=case.every))
    )
    width = narrow(case, task.density) if task.row == "narrow dense" else 1.0
    factor = {"RigL, 2× epochs": 2.0, "dense, equal arithmetic": rigl}.get(task.row, 1.0)
    epochs = max(1, round(case.epochs * factor))
    torch.manual_seed(task.seed)
    model = case.width(width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case.lr, momentum=0.9, nesterov=True, weight_decay=case.weight_decay
    )
    steps = epochs * data.steps(case.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    method = methods(task.density, case.every).get(task.row)
    attached = None if method is None else tombola.attach(model, optimizer, method, steps=steps, seed=task.seed)
    spent = 0.0  # for methods whose masks thin out: measured at each epoch
    example = torch.zeros(1, *data.input_shape)
    for epoch in range(epochs):
        if task.row in ("GMP", "CS"):
            masks = None if task.row == "CS" and epoch < 0.8 * epochs else attached.masks  # type: ignore[union-attr]
            counted = flops.count(model, example, masks)
            spent += counted.total / counted.dense / epochs
        for x, y in data.epoch(1000 * task.seed + epoch, batch_size=case.batch, augment=case.augment):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    dead = 0.0
    if attached is not None:
        alive = torch.cat([mask.flatten(1).any(1) for mask in attached.masks.values()])
        dead = 100 * (1 - float(alive.float().mean()))
        assert abs(attached.density - task.density) < 1e-3, (task, attached.density)
        attached.detach()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test())
    total = sum(len(y) for _, y in data.test())
    cost = {"static": share, "SET": share, "RigL": rigl, "RigL, 2× epochs": 2 * rigl, "GMP": spent, "CS": spent}
    if task.row == "narrow dense":
        narrow_count = flops.count(model, example).total
        cost["narrow dense"] = narrow_count / whole.total
    return task, 100 * right / total, cost.get(task.row, epochs / case.epochs), dead


ROWS = ("static", "SET", "RigL", "RigL, 2× epochs", "GMP", "CS", "narrow dense", "dense, equal arithmetic")


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "cifar10"], choices=list(CASES))
    parser.add_argument("--data-dir", default="data/cifar-10-batches-py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2, 0.1, 0.05, 0.02])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", metavar="NAME", help="also write benchmarks/results/NAME.md")
    given = parser.parse_args()
    lines = [f"torch {torch.__version__}, {platform.machine()}; seeds {', '.join(map(str, given.seeds))}", ""]
    for name in given.data:
        case = CASES[name]
        tasks = [Task(name, "dense", 1.0, seed) for seed in given.seeds]
        tasks += [Task(name, row, d, seed) for seed in given.seeds for d in given.densities for row in given.rows]
        accuracies: dict[tuple[str, float], list[float]] = {}
        costs: dict[tuple[str, float], list[float]] = {}
        dead: dict[tuple[str, float], list[float]] = {}
        with ProcessPoolExecutor(given.jobs) as pool:
            for task, accuracy, cost, gone in pool.map(partial(run, folder=given.data_dir), tasks):
                print(task, f"{accuracy:.2f} %, arithmetic {cost:.3f}", flush=True)
                accuracies.setdefault((task.row, task.density), []).append(accuracy)
                costs.setdefault((task.row, task.density), []).append(cost)
                dead.setdefault((task.row, task.density), []).append(gone)
        weights = sum(p.numel() for p in tombola.maskable(case.width(1.0)).values())
        lines += [f"## {name}: {weights:,} weights, {case.epochs} epochs, batch {case.batch}, ΔT {case.every}", ""]
        lines += [
            f"Dense: {shown(accuracies['dense', 1.0])} %. Test accuracy in %; in brackets arithmetic of training and "
            "outputs (channels, neurons) without a connection in %.",
            "",
        ]
        heads = [f"{100 * d:g} %" for d in given.densities]
        lines += ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for row in given.rows:
            cells = []
            for d in given.densities:
                cost, gone = statistics.mean(costs[row, d]), statistics.mean(dead[row, d])
                cells.append(f"{shown(accuracies[row, d])} ({cost:.2f}; {gone:.0f})")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        cells = []
        for d in given.densities if {"static", "RigL"} <= set(given.rows) else ():
            gains = [r - s for r, s in zip(accuracies["RigL", d], accuracies["static", d], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            cells.append(f"{statistics.mean(gains):+.2f} ± {error:.2f}")
        if cells:
            lines.append("| RigL − static, by seed (± standard error) | " + " | ".join(cells) + " |")
        lines.append("")
        print("\n".join(lines), flush=True)
    if given.write:
        path = Path(__file__).parent / "results" / f"{given.write}.md"
        command = f"`python benchmarks/dst_accuracy.py {shlex.join(sys.argv[1:])}`"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["# Sparse training methods side by side", "", command, "", *lines]))


if __name__ == "__main__":
    main()
