"""A training step of the character-level GRU of the RigL paper: really sparse, beside masked dense in float32.

    python benchmarks/sparse_gru.py [--repeats 25] [--write]

A step is forward, backward and SGD with momentum on 32 sequences of 64 characters; the dense one then multiplies its
weights with the masks. Sparse are the GRU and the readout; embedding and output, which share a weight, are dense in
both. Losses and gradients are compared before anything is timed. Alternatives take turns, and the ratio is the median
of the ratios within a turn. Beside it the GRU alone: its pass forward and back over the same sequences. Memory is the
peak of a process that trains one alternative alone, above what it had with PyTorch loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from side_by_side import Table, Turns, dense_speed, machine, memory_of_steps, middle, peak_of, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F

import tombola
from tombola.lab.models import gru_lm
from tombola.sparse import SparseGRU, convert

DENSITIES = (0.1, 0.05, 0.02)
BATCH, STEPS = 32, 64


def model_and_masks(density: float, width: float = 1.0) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, generator = gru_lm(width=width).train(), torch.Generator().manual_seed(1)
    shapes = {name: parameter.shape for name, parameter in tombola.maskable(model).items()}
    masks = {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, masks


def characters() -> Tensor:
    return torch.randint(256, (BATCH, STEPS + 1), generator=torch.Generator().manual_seed(2))


def step_of(model: nn.Module, masks: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    optimizer, tokens = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), characters()

    def step() -> Tensor:
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, mask in masks:
                parameter.mul_(mask)
        return loss.detach()

    return step


def alternative(kind: str, density: float, width: float = 1.0) -> Callable[[], Tensor]:
    model, masks = model_and_masks(density, width)
    if kind == "sparse":
        return step_of(convert(model, masks, example=characters()[:, :-1], choose="sparse"), [])
    return step_of(model, [(model.get_parameter(name), mask.float()) for name, mask in masks.items()])


def gru_alone(density: float) -> dict[str, Callable[[], object]]:
    """Forward and back of both, which are compared here."""
    model, masks = model_and_masks(density)
    dense = model.get_submodule("gru")
    assert isinstance(dense, nn.GRU)
    own = {name.removeprefix("gru."): mask for name, mask in masks.items() if name.startswith("gru.")}
    sparse = SparseGRU.from_dense(dense, own)
    x = torch.randn(BATCH, STEPS, dense.input_size, generator=torch.Generator().manual_seed(3)).requires_grad_()
    above = torch.randn(BATCH, STEPS, dense.hidden_size, generator=torch.Generator().manual_seed(4))

    def passes(layer: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        wanted = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x)[0], wanted, above)

    found = {"sparse": passes(sparse), "dense": passes(dense)}
    with torch.no_grad():
        close(sparse(x)[0], dense(x)[0])
    close(found["sparse"]()[0], found["dense"]()[0])
    names = [name for name, _ in sparse.named_parameters()]
    values = found["sparse"]()[1 + names.index("weight_hh_l0.values")]
    dense_names = [name for name, _ in dense.named_parameters()]
    close(values, found["dense"]()[1 + dense_names.index("weight_hh_l0")][own["weight_hh_l0"]])
    return dict(found)


def close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).norm()) <= 1e-4 * float(other.norm())


def memory(kind: str, density: float) -> int:
    tiny, make = partial(alternative, kind, 0.5, width=0.05), partial(alternative, kind, density)
    return memory_of_steps(tiny, make, from_dense=kind == "sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/sparse_gru.md")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "DENSITY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        kind, density = options.memory
        print(memory(kind, float(density)))
        return
    turns = Turns(options.repeats)
    table = Table(
        "# Training a character-level GRU: really sparse beside masked dense",
        "",
        f"`python benchmarks/sparse_gru.py --repeats {options.repeats} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        f"One step on {BATCH} sequences of {STEPS} characters; × is how many times as long the masked dense float32",
        "step takes (median of turns, quartiles), and the same for the GRU's passes forward and back alone.",
        "",
        "| density | step ms | × masked float32 | quartiles | GRU ms | × dense GRU | quartiles | memory × |",
        "|---|---|---|---|---|---|---|---|",
        turns=turns,
    )
    kinds = ("sparse", "masked float32")
    for density in DENSITIES:
        steps = {kind: alternative(kind, density) for kind in kinds}
        for _ in range(3):  # the later losses tell of the gradients
            sparse, dense = (steps[kind]() for kind in kinds)
            assert abs(sparse - dense) < 1e-4 * dense, (sparse, dense)
        times = turns.milliseconds(steps)
        del steps
        alone = turns.milliseconds(gru_alone(density))
        script = str(Path(__file__))
        used = {kind: peak_of(script, "--memory", kind, str(density)) for kind in kinds}
        table.row(
            density,
            middle(times, "sparse"),
            f"{ratio(times, 'masked float32', 'sparse'):.2f}",
            spread(times, "masked float32", "sparse"),
            middle(alone, "sparse"),
            f"{ratio(alone, 'dense', 'sparse'):.2f}",
            spread(alone, "dense", "sparse"),
            f"{used['masked float32'] / used['sparse']:.1f} ({used['sparse'] / 1e6:.0f} MB)",
        )
    table.end(Path(__file__).parent / "results" / "sparse_gru.md" if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
