"""Inference of whole networks: really sparse, beside the same network dense in PyTorch, torch.compile, ONNX Runtime.

    pip install -e '.[bench]'
    python benchmarks/sparse_inference.py [--turns 25] [--write]

Random weights and masks; all layers but the first, the depthwise ones and the last are pruned uniformly; 32×32 images.
Each engine is alone in its process, and they take turns. The ratio is the median over turns, to the fastest of the
float32 engines in that turn's table.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from side_by_side import dense_speed, machine, write
from torch import nn

import tombola
from tombola.lab import models
from tombola.lab.engines import DENSE, compare
from tombola.sparse import convert

CASES = {"VGG-16": ("vgg16", 0.05), "MobileNet-v1": ("mobilenet_v1", 0.1)}
TARGETS = {("VGG-16", 1): 2.5, ("VGG-16", 64): 3.0, ("MobileNet-v1", 1): 1.0, ("MobileNet-v1", 64): 1.5}


def dense(case: str) -> nn.Module:
    name, density = CASES[case]
    torch.manual_seed(0)
    model = getattr(models, name)(classes=10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in tombola.maskable(model).values():
            if parameter.shape[1] not in (1, 3) and parameter.shape[0] != 10:
                parameter.mul_(torch.rand_like(parameter) < density)
    return model


def sparse(case: str, batch: int) -> nn.Module:
    return convert(dense(case), example=torch.randn(batch, 3, 32, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 64])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sparse_inference.md")
    options = parser.parse_args()
    lines = [
        "# Inference: really sparse beside dense engines",
        "",
        f"`python benchmarks/sparse_inference.py --turns {options.turns} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        "× is how many times as long the engine takes as tombola (median over turns).",
        "",
    ]
    print("\n".join(lines))
    for case in options.cases:
        for batch in options.batches:
            found = compare(
                partial(sparse, case, batch),
                partial(dense, case),
                torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
                threads=torch.get_num_threads(),
                turns=options.turns,
                engines=list(DENSE),
            )
            exact = [s for s in found if not s.missing and "bfloat16" not in s.engine and s.engine != "tombola"]
            assert all(speed.difference < 1e-4 for speed in exact), exact
            best = min(exact, key=lambda speed: speed.milliseconds)
            target = TARGETS.get((case, batch), "none")
            here = [
                f"{case}, density {CASES[case][1]}, batch {batch}: × {best.ratio:.2f} to the best dense float32 engine "
                f"({best.engine}); target {target}.",
                "",
                "| engine | ms | × | difference of outputs |",
                "|---|---|---|---|",
                *(
                    f"| {s.engine} | {s.missing} | | |"
                    if s.missing
                    else f"| {s.engine} | {s.milliseconds:.3f} | {s.ratio:.2f} | {s.difference:.1e} |"
                    for s in found
                ),
                "",
            ]
            lines += here
            print("\n".join(here), flush=True)
    if options.write:
        write(Path(__file__).parent / "results" / "sparse_inference.md", "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
