"""Growing connections by the gradient of all weights: a stream of blocks beside the whole gradient and ``topk``.

    python benchmarks/sparse_growth.py [--width 16384] [--density 0.01] [--batch 128] [--repeats 5] [--write]

Both find the connections that RigL grows in a layer of ``width``² weights when it drops 30 % of them. Each repeat runs
each variant once, in a fresh process: seconds are those of the growth alone, memory is how far its peak is above what
the process held when it began. The outcomes are compared; the two may differ where two weights' gradients are equal but
for rounding. Ratios are medians over the repeats of the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from side_by_side import peak, reset_peak, resident
from torch import Tensor

from tombola.sparse.geometry import Geometry
from tombola.sparse.growth import ENTRIES, GradientScores, best
from tombola.sparse.positions import random_places

VARIANTS = ("whole gradient, topk", "stream of blocks")


def grown(variant: str, x: Tensor, towards: Tensor, taken: Tensor, number: int) -> Tensor:
    """Places of the ``number`` largest gradients that are not taken."""
    inputs, outputs = len(x), len(towards)
    if variant == VARIANTS[1]:
        scores = GradientScores(Geometry(inputs, outputs), [(x, towards)])
        return best(scores, number, taken=taken, generator=torch.Generator())
    gradient = (towards.view(outputs, -1) @ x.view(inputs, -1).T).abs_().flatten()
    gradient[taken] = -1.0
    return gradient.topk(number, sorted=False).indices.sort().values


def problem(width: int, density: float, batch: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Inputs, output gradients, places of the connections that stay, and how many grow."""
    draw = torch.Generator().manual_seed(0)
    x, towards = (torch.randn(width, 1, 1, batch, generator=draw) for _ in range(2))
    count = round(density * width**2)
    number = int(0.3 * count)
    return x, towards, random_places(count - number, width**2, draw), number


def be_variant(variant: str, width: int, density: float, batch: int, path: str) -> None:
    """Run one variant in this very process; print seconds and MiB, and leave the outcome."""
    small = problem(256, density, 8)
    grown(variant, *small)  # threads, libraries and compiled code are there
    given = problem(width, density, batch)
    before = resident()
    reset_peak()
    begin = time.perf_counter()
    found = grown(variant, *given)
    print(time.perf_counter() - begin, (peak() - before) / 2**20)
    torch.save(found, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16384)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/sparse_growth.md")
    parser.add_argument("--variant", nargs=2, metavar=("VARIANT", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.variant:
        variant, path = given.variant
        be_variant(variant, given.width, given.density, given.batch, path)
        return
    sizes = f"--width {given.width} --density {given.density} --batch {given.batch}"
    options = [*sizes.split(), "--threads", str(given.threads)]
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    peaks: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats):
            places = []
            for variant in VARIANTS if repeat % 2 else VARIANTS[::-1]:
                path = str(Path(folder) / "places")
                command = [sys.executable, __file__, *options, "--variant", variant, path]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                took, most = map(float, done.stdout.split())
                print(f"repeat {repeat + 1}, {variant}: {took:.2f} s, {most:.0f} MiB", flush=True)
                seconds[variant].append(took)
                peaks[variant].append(most)
                places.append(torch.load(path))
            differing = max(differing, len(places[0]) - int(torch.isin(places[0], places[1]).sum()))
    number = len(places[0])
    ratios = [
        statistics.median(a / b for a, b in zip(of[VARIANTS[0]], of[VARIANTS[1]], strict=True))
        for of in (seconds, peaks)
    ]
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads; {given.repeats} repeats, medians; "
        f"{given.width}² weights, density {given.density}, batch {given.batch}, {number:,} connections grow; blocks of "
        f"{ENTRIES:,} numbers",
        "",
        "| | seconds | extra peak MiB |",
        "|---|---|---|",
    ]
    for variant in VARIANTS:
        medians = f"{statistics.median(seconds[variant]):.2f} | {statistics.median(peaks[variant]):.0f}"
        lines.append(f"| {variant} | {medians} |")
    lines += [
        f"| ratio | {ratios[0]:.1f} | {ratios[1]:.1f} |",
        "",
        f"Connections in which the outcomes differ: {differing} of {number:,} in the worst repeat.",
    ]
    print("\n".join(lines))
    if differing > number / 10_000:
        raise SystemExit("the outcomes differ in more than rounding explains")
    if given.write:
        command = f"`python benchmarks/{Path(__file__).name} {sizes} --repeats {given.repeats} --write`"
        path = str(Path(__file__).parent / "results" / "sparse_growth.md")
        title = "# Growing connections by the gradient of all weights"
        Path(path).write_text("\n".join([title, "", command, "", *lines, ""]))


if __name__ == "__main__":
    main()
