"""Several networks trained at once in one process, as one stacked model, beside one after the other.

    python benchmarks/members.py [--repeats 9] [--device cuda] [--threads 1] [--write]

What is timed is the lab's own way of doing so (``--together``; ``tombola.lab.runs.stack``): members have the same
architecture, each with weights, batch and optimiser of its own. A step is forward, backward and SGD with momentum, as
``tombola bench parallel`` has it for any model and data. Before anything is timed each member's loss, gradients and
buffers are compared with those of the network alone. Alternatives take turns, and the ratio is the median of the
ratios within a turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import Table, Turns, dense_speed, machine, middle, ratio, spread
from torch import nn

from tombola.lab import models
from tombola.lab.runs.mode import Mode
from tombola.lab.runs.stack import quiet
from tombola.lab.runs.train import objective_of
from tombola.lab.runs.weighing import alternatives

CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "LeNet-300-100 on 8×8": (lambda: models.lenet_300_100(image_size=8), 64, (1, 8, 8)),
    "Conv net on 8×8": (models.conv_digits, 64, (1, 8, 8)),
    "Conv-6": (models.conv6, 60, (3, 32, 32)),
    "ResNet-20": (models.resnet20, 128, (3, 32, 32)),
}
MEMBERS = (2, 4, 8)


def ways(case: str, members: int, device: str) -> dict[str, Callable[[], object]]:
    """A step of all members, by how it is computed. Images of several channels have these innermost, as in the lab."""
    make, batch, shape = CASES[case]
    torch.manual_seed(0)
    mode = Mode(channels_last=shape[0] > 1)
    objectives = [objective_of(make().to(device).train(), mode=mode) for _ in range(members)]
    y = torch.arange(batch, device=device) % 10
    batches = [(torch.randn(batch, *shape, device=device), y) for _ in range(members)]
    return dict(alternatives(objectives, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="as each job of the lab has, unless told otherwise")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/members-DEVICE.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = Turns(options.repeats)
    settings = f"--repeats {options.repeats} --device {options.device} --threads {options.threads}"
    where = torch.cuda.get_device_name(options.device) if torch.device(options.device).type == "cuda" else "CPU"
    table = Table(
        "# Several networks at once in one process",
        "",
        f"`python benchmarks/members.py {settings} --write`: {where}; {machine()}.",
        f"{dense_speed()}.",
        "",
        "One step of all members; × is how many times as long they take one by one (median of turns, quartiles).",
        "Below 1 stacking them is slower.",
        "",
        "| net, batch | members | one by one, ms | stacked, ms | × | quartiles |",
        "|---|---|---|---|---|---|",
        turns=turns,
    )
    for case in options.cases:
        for members in MEMBERS:
            with quiet():
                times = turns.milliseconds(ways(case, members, options.device))
            gain, quartiles = ratio(times, "one by one", "stacked"), spread(times, "one by one", "stacked")
            net, each = f"{case}, {CASES[case][1]}", (middle(times, way) for way in ("one by one", "stacked"))
            table.row(net, members, *each, f"{gain:.2f}", quartiles)
    name = options.device.replace(":", "")
    table.end(Path(__file__).parent / "results" / f"members-{name}.md" if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
