"""A training step of multilayer perceptrons: really sparse, beside masked dense in float32 and in bfloat16.

    python benchmarks/sparse_mlp.py [--repeats 25] [--write]

A step is forward, backward and SGD with momentum at batch 128; the dense ones then multiply their weights with the
masks. The last layer is dense in all. Losses are compared before anything is timed. Alternatives take turns, and the
ratio is the median of the ratios within a turn. Memory is the peak of a process that trains one alternative alone,
above what it had with PyTorch and its data loaded. The dense alternative multiplies with float masks in place, which
keeps the mask as large as the weights; bits would save it 31/32 of that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from side_by_side import Table, Turns, dense_speed, machine, memory_of_steps, middle, peak_of, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F

from tombola.sparse import convert

SIZES = {"784-4096-4096-10": (784, 4096, 4096, 10), "3072-1024-1024-10": (3072, 1024, 1024, 10)}
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
BATCH = 128
TARGETS = {  # of the ratio to masked float32
    "784-4096-4096-10": {0.1: 3.5, 0.05: 6, 0.01: 18},
    "3072-1024-1024-10": {0.1: 3, 0.05: 5, 0.01: 9},
}
MEMORY_TARGETS = {0.1: 3.5, 0.05: 5, 0.01: 10}


def perceptron(case: str) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = SIZES[case]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def masks_of(model: nn.Sequential, density: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = [f"{name}.weight" for name, layer in list(model.named_children())[:-1] if isinstance(layer, nn.Linear)]
    shapes = {name: model.get_parameter(name).shape for name in hidden}
    return {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}


def data(case: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(BATCH, SIZES[case][0], generator=generator), torch.arange(BATCH) % 10


def step_of(
    model: nn.Module, x: Tensor, y: Tensor, masks: list[tuple[Tensor, Tensor]], low: bool
) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, mask in masks:
                parameter.mul_(mask)
        return loss.detach()

    return step


def alternative(kind: str, case: str, density: float) -> Callable[[], Tensor]:
    model = perceptron(case).train()
    masks, (x, y) = masks_of(model, density), data(case)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    if kind == "sparse":
        return step_of(convert(model, masks, example=x, choose="sparse"), x, y, [], low=False)
    pairs = [(model.get_parameter(name), mask.float()) for name, mask in masks.items()]
    return step_of(model, x, y, pairs, low=kind == "masked bfloat16")


def memory(kind: str, case: str, density: float) -> int:
    SIZES["tiny"] = (8, 16, 16, 10)
    tiny, make = partial(alternative, kind, "tiny", 0.5), partial(alternative, kind, case, density)
    return memory_of_steps(tiny, make, from_dense=kind == "sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sparse_mlp.md")
    parser.add_argument("--memory", nargs=3, metavar=("KIND", "CASE", "DENSITY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        kind, case, density = options.memory
        print(memory(kind, case, float(density)))
        return
    turns = Turns(options.repeats)
    table = Table(
        "# Training a multilayer perceptron: really sparse beside masked dense",
        "",
        f"`python benchmarks/sparse_mlp.py --repeats {options.repeats} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        "One step at batch 128; × is how many times as long the masked dense step takes (median of turns, quartiles).",
        "",
        "| net | density | sparse ms | × masked float32 | quartiles | target | × masked bfloat16 | memory × | target |",
        "|---|---|---|---|---|---|---|---|---|",
        turns=turns,
    )
    for case in SIZES:
        for density in DENSITIES:
            kinds = ("sparse", "masked float32", "masked bfloat16")
            steps = {kind: alternative(kind, case, density) for kind in kinds}
            sparse, dense = steps["sparse"](), steps["masked float32"]()
            assert abs(sparse - dense) < 1e-4 * dense, (sparse, dense)
            times = turns.milliseconds(steps)
            del steps
            script = str(Path(__file__))
            used = {kind: peak_of(script, "--memory", kind, case, str(density)) for kind in kinds[:2]}
            table.row(
                case,
                density,
                middle(times, "sparse"),
                f"{ratio(times, 'masked float32', 'sparse'):.2f}",
                spread(times, "masked float32", "sparse"),
                TARGETS[case].get(density, ""),
                f"{ratio(times, 'masked bfloat16', 'sparse'):.2f}",
                f"{used['masked float32'] / used['sparse']:.1f} ({used['sparse'] / 1e6:.0f} MB)",
                MEMORY_TARGETS.get(density, "") if case.startswith("784") else "",
            )
    table.end(Path(__file__).parent / "results" / "sparse_mlp.md" if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
