"""Several networks trained at once in one process, as one stacked model, beside one after the other.

    python benchmarks/members.py [--repeats 9] [--device cuda] [--write]

Members have the same architecture and see the same batch; each has its own weights. Stacked, they are one set of
parameters with the members in front (``torch.func.stack_module_state``), and the forward pass is one ``vmap``. A step
is forward, backward and SGD with momentum. Before anything is timed each member's loss and the last one's new weights
are compared with those of the networks alone. Alternatives take turns, and the ratio is the median of the ratios
within a turn.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import Turns, dense_speed, machine, ratio, spread, write
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from tombola.lab import models

CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "LeNet-300-100 on 8×8": (lambda: models.lenet_300_100(image_size=8), 64, (1, 8, 8)),
    "Conv net on 8×8": (models.conv_digits, 64, (1, 8, 8)),
    "Conv-6": (models.conv6, 60, (3, 32, 32)),
    "ResNet-20": (models.resnet20, 128, (3, 32, 32)),
}
MEMBERS = (2, 4, 8)


def optimizer_of(parameters: list[nn.Parameter] | list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def one_by_one(nets: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    optimizers = [optimizer_of(list(net.parameters())) for net in nets]

    def step() -> Tensor:
        losses = []
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def stacked(nets: list[nn.Module], x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
    """The parameters, members in front, and the step."""
    found, buffers = stack_module_state(nets)
    parameters = {name: tensor.detach().requires_grad_() for name, tensor in found.items()}
    optimizer, skeleton = optimizer_of(list(parameters.values())), copy.deepcopy(nets[0]).to("meta")

    def loss_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (parameters, buffers), (x,)), y)

    together = vmap(loss_of, randomness="different")

    def step() -> Tensor:
        optimizer.zero_grad()
        losses = together(parameters, buffers)
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return parameters, step


def alternatives(case: str, members: int, device: str) -> dict[str, Callable[[], object]]:
    make, batch, shape = CASES[case]
    torch.manual_seed(0)
    nets = [make().to(device) for _ in range(members)]
    x, y = torch.randn(batch, *shape, device=device), torch.arange(batch, device=device) % 10
    parameters, together = stacked(nets, x, y)
    alone = one_by_one(nets, x, y)
    torch.testing.assert_close(together(), alone(), rtol=1e-4, atol=1e-5)
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor.detach()[-1], nets[-1].get_parameter(name).detach(), rtol=1e-3, atol=1e-5)

    def finished(step: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: float(step().sum())  # waits for the device

    return {"one by one": finished(alone), "stacked": finished(together)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/members-DEVICE.md")
    options = parser.parse_args()
    turns = Turns(options.repeats)
    lines = [
        "# Several networks at once in one process",
        "",
        f"`python benchmarks/members.py --repeats {options.repeats} --device {options.device} --write`: {machine()}.",
        f"{dense_speed()}.",
        "",
        "One step of all members; × is how many times as long they take one by one (median of turns, quartiles).",
        "Below 1 stacking them is slower.",
        "",
        "| net, batch | members | one by one, ms | stacked, ms | × | quartiles |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for case in options.cases:
        for members in MEMBERS:
            times = turns.milliseconds(alternatives(case, members, options.device))
            middle = {kind: sorted(values)[len(values) // 2] for kind, values in times.items()}
            gain, quartiles = ratio(times, "one by one", "stacked"), spread(times, "one by one", "stacked")
            milliseconds = f"{middle['one by one']:.2f} | {middle['stacked']:.2f}"
            lines.append(f"| {case}, {CASES[case][1]} | {members} | {milliseconds} | {gain:.2f} | {quartiles} |")
            print(lines[-1], flush=True)
    lines += ["", f"{turns.said()}."]
    print(lines[-1])
    if options.write:
        write(Path(__file__).parent / "results" / f"members-{options.device}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
