"""When does sparse pay on this machine? Time and memory of whole networks against their density, as a figure.

    python benchmarks/sparse_pays.py [--repeats 9] [--batch 64] [--write]

For each network: milliseconds of a training step (forward and backward) and of inference, really sparse, divided by
those of the best dense PyTorch in float32; every layer with a mask is sparse, so that the line shows what sparse costs
where it does not pay as well. Outputs, and in training gradients, are compared with the dense ones before they are
timed. Where it crosses 1 is the break-even density. Memory is what a layer's weights take in
training with momentum: value, gradient and momentum of each weight, and positions. `tombola.sparse.measure` gives the
same layer by layer.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from side_by_side import Turns, dense_speed, machine, ratio, write
from torch import Tensor, nn

import tombola
from tombola.lab import models
from tombola.selection import dense_name, sparse_layers, unwrapped
from tombola.sparse import Converted, SparseLayer, convert
from tombola.sparse.choose import whole

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "MLP 3072-1024-1024-10": perceptron,
    "ResNet-20": models.resnet20,
    "VGG-16": models.vgg16,
    "MobileNet-v1": lambda: models.mobilenet_v1(classes=10),
}


def masks_of(model: nn.Module, density: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(parameter.shape, generator=generator) < (density if prunable(parameter) else 1)
        for key, parameter in tombola.maskable(model).items()
    }


def prunable(parameter: nn.Parameter) -> bool:
    """Not the first convolution, the depthwise ones and the classifier: those stay whole."""
    return not (parameter.ndim == 4 and parameter.shape[1] in (1, 3)) and parameter.shape[0] != 10


def training_bytes(model: nn.Module) -> int:
    """Values, gradients and momentum of the layers' weights, and positions."""
    total = 0
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            total += 12 * layer.values.numel() + sum(4 * b.numel() for b in layer.buffers())
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            total += 12 * layer.weight.numel()
    return total


def point(
    make: Callable[[], nn.Module], density: float, batch: int, turns: Turns, *, training: bool
) -> tuple[float, float]:
    """Sparse divided by dense: time and memory."""
    torch.manual_seed(0)
    model = make().train(training)
    x = torch.randn(batch, 3, 32, 32)
    masks = masks_of(model, density)
    sparse = convert(model, masks, example=x, choose="sparse")
    check(sparse, model, masks, x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    runs = {
        "sparse": whole(sparse, (x,)),
        "contiguous": whole(model, (x,)),
        "channels_last": whole(last, (x.contiguous(memory_format=torch.channels_last),)),
    }
    times = turns.milliseconds(runs)
    pairs = zip(times["contiguous"], times["channels_last"], strict=True)
    times["dense"] = [min(pair) for pair in pairs]
    return ratio(times, "sparse", "dense"), training_bytes(sparse) / training_bytes(model)


def check(sparse: Converted, model: nn.Module, masks: dict[str, Tensor], x: Tensor) -> None:
    """The output, and in training the whole gradient, are those of the dense model under the masks."""
    sparse, dense = copy.deepcopy(sparse), copy.deepcopy(model)  # whose running averages stay as they are
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    outputs = sparse(x), dense(x)
    close([outputs[0].detach()], [outputs[1].detach()], 1e-3)
    if not model.training:
        return
    for output in outputs:
        output.square().mean().backward()
    layers, found, wanted = sparse_layers(sparse), [], []
    for name, parameter in unwrapped(sparse).named_parameters():
        layer, _ = layers.get(id(parameter), (None, None))
        gradient = parameter.grad
        if layer is not None:
            name, gradient = dense_name(layer, name), layer.scattered(gradient, layer.places)
        found.append(gradient)
        wanted.append(dense.get_parameter(name).grad * masks.get(name, 1))
    close(found, wanted, 0.05)  # a ReLU or a maximum that rounding turns over is a matter of percents in both


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Whether the whole of the tensors differs by no more than this share of their norm."""
    error = sum(float((one - other).square().sum()) for one, other in zip(found, wanted, strict=True)) ** 0.5
    size = sum(float(tensor.square().sum()) for tensor in wanted) ** 0.5
    assert error <= tolerance * size, (error, size)


def crossing(densities: tuple[float, ...], values: list[float]) -> float | None:
    """The density at which a line through the points first rises above 1."""
    for (d0, v0), (d1, v1) in zip(zip(densities, values), zip(densities[1:], values[1:]), strict=False):  # noqa: B905
        if v0 <= 1 < v1:
            return d0 + (1 - v0) / (v1 - v0) * (d1 - d0)
    return None


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "tombola"
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True, sharey=True, layout="constrained")
    for ax, (name, lines) in zip(axes.flat, found.items(), strict=True):
        for (kind, values), style in zip(lines.items(), ("o-C0", "s-C1", "^:C2"), strict=True):
            ax.plot(DENSITIES, values, style, label=kind, markersize=5)
            even = crossing(DENSITIES, values)
            if even is not None and kind != "memory in training":
                ax.plot([even], [1], "x", color=style[-2:], markersize=11, markeredgewidth=2.5)
                offset, side = ((-6, 9), "right") if kind == "training" else ((6, -17), "left")  # not over each other
                options = {"textcoords": "offset points", "color": style[-2:], "ha": side}
                ax.annotate(f"{even:.2f}", (even, 1), xytext=offset, **options)
        ax.axhline(1, color="0.4", linewidth=1)
        ax.set(title=name, xscale="log", yscale="log")
        ax.grid(visible=True, alpha=0.3)
    axes[0, 0].legend()
    axes[0, 0].set_xticks(DENSITIES, [f"{d:g}" for d in DENSITIES])
    axes[0, 0].set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"])
    axes[0, 0].minorticks_off()
    figure.supxlabel("density (share of the weights that are kept)")
    figure.supylabel("sparse / dense float32; below 1 sparse pays, × marks where it begins to")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="write docs/sparse-pays.svg and results/sparse_pays.md")
    options = parser.parse_args()
    turns = Turns(options.repeats)
    lines = [
        "# When sparse pays: time and memory against density",
        "",
        f"`python benchmarks/sparse_pays.py --repeats {options.repeats} --batch {options.batch} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        "Sparse divided by the best dense float32 of PyTorch, whole networks; the last column is where time crosses 1.",
        "",
        f"| net | pass | {' | '.join(f'{d:g}' for d in DENSITIES)} | break-even density |",
        f"|---|---|{'---|' * (len(DENSITIES) + 1)}",
    ]
    print("\n".join(lines))
    found: dict[str, dict[str, list[float]]] = {}
    for name, make in NETS.items():
        found[name] = {}
        for kind, training in (("training", True), ("inference", False)):
            points = [point(make, density, options.batch, turns, training=training) for density in DENSITIES]
            found[name][kind] = [time for time, _ in points]
            even = crossing(DENSITIES, found[name][kind])
            numbers = " | ".join(f"{time:.2f}" for time, _ in points)
            above = "above all" if found[name][kind][-1] <= 1 else "below all"
            lines.append(f"| {name} | {kind} | {numbers} | {above if even is None else f'{even:.2f}'} |")
            print(lines[-1], flush=True)
        found[name]["memory in training"] = [memory for _, memory in points]
        numbers = " | ".join(f"{memory:.2f}" for memory in found[name]["memory in training"])
        lines.append(f"| {name} | memory in training | {numbers} | |")
        print(lines[-1], flush=True)
    lines += ["", f"{turns.said()}."]
    if options.write:
        folder = Path(__file__).parent
        draw(found, folder.parent / "docs" / "sparse-pays.svg")
        write(folder / "results" / "sparse_pays.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
