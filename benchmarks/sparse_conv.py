"""Convolutions: single layers and whole training steps, really sparse beside the best dense of PyTorch.

    python benchmarks/sparse_conv.py [--repeats 15] [--write]

Layers: 3×3, stride 1, batch 64, forward and backward; dense is oneDNN float32 in the better of the two layouts of
PyTorch (within each turn), and bfloat16 in channels_last. Nets: a step of SGD with momentum at batch 64 on 32×32
images, all layers but the first and the last pruned uniformly (MobileNet's depthwise ones too stay whole); dense is
PyTorch in the better layout, without any work for masks. Outputs and gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import Table, Turns, dense_speed, machine, middle, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F

import tombola
from tombola.lab import models
from tombola.sparse import SparseConv2d, convert
from tombola.sparse.layout import inside, outside

LAYERS = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8), (512, 4))
DENSITIES = (0.1, 0.05, 0.02)
LAYER_TARGETS = {0.1: 1.8, 0.05: 3.2, 0.02: 5.0}  # for 64 to 512 channels
NETS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": models.vgg16,
    "WRN-22-2": models.wrn_22_2,
    "ResNet-20": models.resnet20,
    "MobileNet-v1": lambda: models.mobilenet_v1(classes=10),
}
NET_TARGETS = {"VGG-16": {0.1: 1.5, 0.05: 2.5}, "WRN-22-2": {0.1: 1.5, 0.05: 2.5}}
BATCH = 64


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    error = float((one - other).norm() / other.norm())
    assert error < tolerance, error


def layer(channels: int, size: int, density: float) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    mask = torch.rand_like(dense.weight) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    x, above = torch.randn(BATCH, channels, size, size), torch.randn(BATCH, channels, size, size)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    low = copy.deepcopy(last).bfloat16()
    sparse = SparseConv2d.from_dense(dense, mask)
    found: dict[str, Callable[[], object]] = {}

    def add(name: str, module: nn.Module, weight: nn.Parameter, turn: Callable[[Tensor], Tensor]) -> None:
        given, gradient = turn(x).detach().requires_grad_(), turn(above)
        found[name] = lambda: torch.autograd.grad(module(given), (given, weight), gradient)

    add("sparse", sparse, sparse.values, lambda x: outside(inside(x).clone()))
    add("contiguous", dense, dense.weight, lambda x: x.clone())
    add("channels_last", last, last.weight, lambda x: x.contiguous(memory_format=torch.channels_last))
    add("bfloat16", low, low.weight, lambda x: x.bfloat16().contiguous(memory_format=torch.channels_last))
    by_x, by_values = found["sparse"]()
    dense_by_x, dense_by_weight = found["contiguous"]()
    close(by_x, dense_by_x, 1e-5)
    close(sparse.scattered(by_values, sparse.places), dense_by_weight * mask, 1e-4)
    return found


def net(name: str, density: float) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = NETS[name]().train()
    generator = torch.Generator().manual_seed(1)
    masks = {
        key: torch.rand(parameter.shape, generator=generator) < density
        for key, parameter in tombola.maskable(model).items()
        if parameter.shape[1] not in (1, 3) and parameter.shape[0] != 10
    }
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    kinds = {"sparse": convert(model, masks, example=x), "contiguous": copy.deepcopy(model), "channels_last": last}
    found: dict[str, Callable[[], object]] = {}

    def add(kind: str, module: nn.Module, images: Tensor, low: bool = False) -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = F.cross_entropy(module(images), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        found[kind] = step

    for kind, module in kinds.items():
        add(kind, module, x.contiguous(memory_format=torch.channels_last) if kind == "channels_last" else x)
    add("bfloat16", copy.deepcopy(last), x.contiguous(memory_format=torch.channels_last), low=True)
    losses = {kind: found[kind]() for kind in kinds}
    assert abs(losses["sparse"] - losses["contiguous"]) < 1e-4 * losses["contiguous"], losses
    return found


def best(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """With the better of the two dense float32 layouts of each turn."""
    pairs = zip(times["contiguous"], times["channels_last"], strict=True)
    return {**times, "float32": [min(pair) for pair in pairs]}


def cells(times: dict[str, list[float]], target: float | None) -> tuple[object, ...]:
    times = best(times)
    return (
        middle(times, "sparse"),
        middle(times, "float32"),
        f"{ratio(times, 'float32', 'sparse'):.2f}",
        spread(times, "float32", "sparse"),
        "" if target is None else target,
        f"{ratio(times, 'bfloat16', 'sparse'):.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--no-layers", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sparse_conv.md")
    options = parser.parse_args()
    turns = Turns(options.repeats)
    head = "sparse ms | dense ms | × float32 | quartiles | target | × bfloat16 |"
    table = Table(
        "# Convolutions, forward and backward: really sparse beside the best dense",
        "",
        f"`python benchmarks/sparse_conv.py --repeats {options.repeats} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        "× is how many times as long dense takes (median of turns, quartiles); below 1 dense is faster.",
        "",
        f"| layer, batch 64 | density | {head}",
        "|---|---|---|---|---|---|---|---|",
        turns=turns,
    )
    for channels, size in () if options.no_layers else LAYERS:
        for density in DENSITIES:
            times = turns.milliseconds(layer(channels, size, density))
            target = LAYER_TARGETS[density] if channels >= 64 else None
            table.row(f"{channels} channels, {size}×{size}", density, *cells(times, target))
    table.add("", f"| training step, batch 64 | density | {head}", "|---|---|---|---|---|---|---|---|")
    for name in options.nets:
        for density in DENSITIES:
            times = turns.milliseconds(net(name, density))
            target = NET_TARGETS.get(name, {}).get(density)
            table.row(name, density, *cells(times, target))
    table.end(Path(__file__).parent / "results" / "sparse_conv.md" if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
