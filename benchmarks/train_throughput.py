"""Images a second of the lab's training loop, beside plain PyTorch loops over a DataLoader on the same network.

    python benchmarks/train_throughput.py [--cases conv6 resnet20] [--repeats 7] [--device cuda] [--write]

All train on the same made-up 32×32 images of one byte a channel, with the papers' optimisers, each in a process of its
own that lives as long as the benchmark; the lab's is started as the lab starts its workers. The plain loop's data set
crops and flips an image at a time, as recipes for CIFAR usually do (ResNet-20; Conv-6 trains without augmentation), in
the DataLoader's own process or in two workers that live on, whichever is faster; it normalises whole batches on the
device. ``tuned`` is the same loop with what PyTorch offers to those who ask for it: channels-last, a fused optimiser,
no look at the loss before the epoch ends, and ``torch.compile`` where the lab compiles: on CUDA, there in CUDA graphs.
Epochs take turns; a ratio is the median of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from side_by_side import write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tombola.lab import models
from tombola.lab.data import Data
from tombola.lab.runs.allocator import environment
from tombola.lab.runs.compiling import compiled
from tombola.lab.runs.mode import Mode
from tombola.lab.runs.train import fit, objective_of
from tombola.lab.settings import SGD, Adam

CASES = {"conv6": (60, False), "resnet20": (128, True)}  # batch, augmentation
STEPS = {"cpu": 12, "cuda": 300}  # of an epoch
TARGETS = {("conv6", "cpu"): 1.2, ("resnet20", "cpu"): 1.0, ("conv6", "cuda"): 5.0}
OTHERS = [f"{kind}, {workers}" for kind in ("plain", "tuned") for workers in (0, 2)]
MEAN, STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
DONE = "seconds"


class Images(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor, augment: bool) -> None:
        self.x, self.y, self.augment = x, y, augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        image = self.x[place]
        if self.augment:
            top, left = torch.randint(9, (2,)).tolist()
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image, self.y[place]


def images(case: str, steps: int) -> tuple[Tensor, Tensor]:
    batch, generator = CASES[case][0], torch.Generator().manual_seed(0)
    x = torch.randint(256, (batch * steps, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return x, torch.randint(10, (batch * steps,), generator=generator)


def network(case: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(models, case)()
    return model.to(device).train()


def plain(case: str, x: Tensor, y: Tensor, given: argparse.Namespace, workers: int, tuned: bool) -> Callable[[], None]:
    batch, augment = CASES[case]
    device, layout = given.device, torch.channels_last if tuned else torch.contiguous_format
    model = network(case, device).to(memory_format=layout)
    fused = {"fused": True} if tuned else {}
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr=3e-4, **fused)
        if case == "conv6"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, **fused)
    )
    graphs = "reduce-overhead" if device == "cuda" else "default"
    net = torch.compile(model, mode=graphs) if tuned and given.compile else model
    kept = {"persistent_workers": True} if workers else {}
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        Images(x, y, augment),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device == "cuda",
        **kept,
    )
    mean, std = MEAN.to(device), STD.to(device)

    def epoch() -> None:
        total: float | Tensor = 0.0
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x = ((x.float() / 255 - mean) / std).contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.detach() if tuned else loss.item()
        float(total)

    return epoch


def ours(case: str, x: Tensor, y: Tensor, given: argparse.Namespace) -> Callable[[], None]:
    batch, augment = CASES[case]
    data = Data(x, y, x[:10], y[:10], 10, "made up", mean=MEAN, std=STD).to(torch.device(given.device))
    model = network(case, given.device)
    settings = Adam(lr=3e-4) if case == "conv6" else SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    optimizer = settings.make(model.parameters())
    objective = objective_of(model, mode=Mode(precision=given.precision, channels_last=True))
    if given.compile:
        objective = compiled(objective, model, batch_size=batch, tell=partial(print, file=sys.stderr))

    def epoch() -> None:
        batches = partial(data.epoch, batch_size=batch, augment=augment)
        fit(model, optimizer, batches, epochs=1, objective=objective)

    return epoch


def serve(name: str, case: str, given: argparse.Namespace) -> None:
    """For each line that comes in, train an epoch and print the seconds that it took."""
    torch.set_num_threads(given.threads)
    x, y = images(case, given.steps)
    kind, _, workers = name.partition(", ")
    epoch = ours(case, x, y, given) if kind == "ours" else plain(case, x, y, given, int(workers), kind == "tuned")
    for _ in sys.stdin:
        start = time.perf_counter()
        epoch()
        if given.device == "cuda":
            torch.cuda.synchronize()
        print(DONE, time.perf_counter() - start, flush=True)


class Alternative:
    """A process that serves one of them."""

    def __init__(self, name: str, case: str, given: argparse.Namespace) -> None:
        settings = ["--device", given.device, "--threads", given.threads, "--steps", given.steps]
        settings += ["--precision", given.precision, "--compile" if given.compile else "--no-compile"]
        command = [sys.executable, __file__, "--serve", name, case, *map(str, settings)]
        own = environment() if name == "ours" else {}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | own)

    def epoch(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(DONE):
                return float(line.split()[1])
        raise RuntimeError(f"an alternative ended with exit code {self.process.wait()}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(case: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each epoch of each alternative, in turns, after one that does not count."""
    alternatives = {name: Alternative(name, case, given) for name in ("ours", *OTHERS)}
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for repeat in range(-1, given.repeats):
        for name, alternative in alternatives.items():
            seconds = alternative.epoch()
            if repeat >= 0:
                times[name].append(seconds)
    for alternative in alternatives.values():
        alternative.end()
    return times


def ratio(times: dict[str, list[float]], kind: str) -> str:
    """How many times as fast ours is as the faster of those of this kind: median, and the middle half."""
    theirs = [times[name] for name in OTHERS if name.startswith(kind)]
    ratios = sorted(min(others) / mine for mine, *others in zip(times["ours"], *theirs, strict=True))
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.2f} ({ratios[quarter]:.2f} … {ratios[-1 - quarter]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=list(STEPS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, help="of an epoch")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="ours and tuned; by default on CUDA")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/train_throughput….md")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.steps = given.steps or STEPS[given.device]
    usual = given.device == "cuda"
    given.compile = usual if given.compile is None else given.compile
    if given.serve:
        serve(*given.serve, given)
        return
    special = [f"--precision {given.precision}"] if given.precision != "fp32" else []
    special += ["--compile" if given.compile else "--no-compile"] if given.compile != usual else []
    arguments = f"--repeats {given.repeats} --device {given.device} --threads {given.threads} --steps {given.steps}"
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()}, {given.threads} threads"
    lines = [
        "# Training throughput",
        "",
        f"`python benchmarks/train_throughput.py {' '.join([arguments, *special, '--write'])}`",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {where}; images/s; the plain and tuned loops "
        "with 0 and with 2 workers of their DataLoader; × the faster of the two, with the middle half of the turns",
        "",
        "| network, batch | ours | plain, 0 | plain, 2 | tuned, 0 | tuned, 2 | × plain | × tuned | target, × plain |",
        "|---|" + "---:|" * 8,
    ]
    print("\n".join(lines))
    for case in given.cases:
        batch, times = CASES[case][0], measured(case, given)
        speeds = [f"{batch * given.steps / statistics.median(taken):,.0f}" for taken in times.values()]
        target = "" if special else TARGETS.get((case, given.device), "")
        cells = [f"{case}, {batch}", *speeds, ratio(times, "plain"), ratio(times, "tuned"), str(target)]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if given.write:
        name = "-".join(["train_throughput", given.device, *(word.split()[-1].strip("-") for word in special)])
        write(Path(__file__).parent / "results" / f"{name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
