"""RigL on a layer that could not be trained dense: 65,536² weights, one in 1,000 of them there, within 1 GB.

    python benchmarks/sparse_large.py [--width 65536] [--density 0.001] [--steps 120] [--every 40] [--write]

Scikit-learn's handwritten digits (1,797 images of 8×8, nothing is downloaded) go through an ordinary layer that widens
them, the sparse layer, and an ordinary one to ten classes. Dense, weight, gradient and momentum of the middle layer
alone would take 48 GiB. Memory is the peak of the process above what it held before the network was built.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from side_by_side import peak, reset_peak, resident
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tombola
from tombola.sparse import SparseLinear


def network(width: int, density: float) -> nn.Sequential:
    middle = SparseLinear(width, width, density=density)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), middle, nn.ReLU(), nn.Linear(width, 10))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(64), y.split(64), strict=True))
    return right / len(y)


def warm_up() -> None:
    """Libraries, threads and compiled code are there before memory is looked at."""
    model = network(128, 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, tombola.RigL(density=0.1, every=1), steps=10)
    for _ in range(3):
        model(torch.randn(64, 64)).sum().backward()
        optimizer.step()
    run.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=65536)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/sparse_large.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 8 - 1, torch.tensor(digits)[order]
    (train_x, test_x), (train_y, test_y) = x.split([1397, 400]), y.split([1397, 400])
    warm_up()

    before = resident()
    reset_peak()
    model = network(given.width, given.density)
    optimizer = torch.optim.SGD(model.parameters(), lr=given.lr, momentum=0.9)
    method = tombola.RigL(density=given.density, every=given.every, until=0.9)
    run = tombola.attach(model, optimizer, method, steps=given.steps)
    layer = model[2]
    assert isinstance(layer, SparseLinear)
    built = (peak() - before) / 2**20
    print(f"{layer.values.numel():,} of {layer.geometry.weights:,} weights; built with {built:.0f} MiB", flush=True)

    losses, steps, moves, moved = [], [], [], []
    for step in range(given.steps):
        picked = torch.randint(len(train_x), (64,))
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(model(train_x[picked]), train_y[picked])
        loss.backward()
        moving = method.plan(run._moment()).instead
        begin_move = time.perf_counter()
        optimizer.step()
        now = time.perf_counter()
        losses.append(loss.item())
        if moving:
            moves.append(now - begin_move)
            moved.append(int((layer.values == 0).sum()))  # what is new begins at 0
            print(
                f"step {step}: loss {losses[-1]:.3f}, {moved[-1]:,} connections moved in {moves[-1]:.1f} s", flush=True
            )
        else:
            steps.append(now - begin)
    most = (peak() - before) / 2**20
    right = accuracy(model, test_x, test_y)
    if not moved or not all(moved):
        raise SystemExit("no connections moved; raise --steps or lower --every")
    first, last = statistics.mean(losses[:10]), statistics.mean(losses[-10:])
    dense = 3 * 4 * layer.geometry.weights / 2**30
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads; {given.width}² weights, density "
        f"{given.density}, batch 64, SGD with momentum",
        "",
        "| | |",
        "|---|---|",
        f"| non-zeros | {layer.values.numel():,} of {layer.geometry.weights:,} |",
        f"| loss, mean of the first and the last 10 of {given.steps} steps | {first:.3f} → {last:.3f} |",
        f"| accuracy on 400 other images | {100 * right:.1f} % |",
        f"| training step, median | {statistics.median(steps):.3f} s |",
        f"| move of RigL, median of {len(moves)} | {statistics.median(moves):.1f} s |",
        f"| connections that moved | {', '.join(f'{number:,}' for number in moved)} |",
        f"| peak memory above start | {most:.0f} MiB |",
        f"| the same layer dense: weight, gradient and momentum | {dense:.1f} GiB |",
    ]
    print("\n".join(lines))
    if given.write:
        options = f"--width {given.width} --density {given.density} --steps {given.steps} --every {given.every}"
        command = f"`python benchmarks/{Path(__file__).name} {options} --write`"
        path = Path(__file__).parent / "results" / "sparse_large.md"
        path.write_text("\n".join(["# RigL on a layer of 65,536² weights", "", command, "", *lines, ""]))


if __name__ == "__main__":
    main()
