"""Images a second of the lab's training loop, beside a plain PyTorch loop over a DataLoader on the same network.

    python benchmarks/train_throughput.py [--cases conv6 resnet20] [--repeats 7] [--device cuda] [--write]

Both train on the same made-up 32×32 images of one byte a channel, with the papers' optimisers. The plain loop's data
set normalises, crops and flips an image at a time, as recipes for CIFAR usually do (ResNet-20; Conv-6 trains without
augmentation), in the DataLoader's own process or in two workers that live on, whichever is faster. Epochs take turns;
the ratio is the median of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from side_by_side import write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tombola.lab import models
from tombola.lab.data import Data
from tombola.lab.runs.train import fit

CASES = {"conv6": (60, 32, False), "resnet20": (128, 12, True)}  # batch, steps of an epoch, augmentation
TARGETS = {("conv6", "cpu"): 1.2, ("resnet20", "cpu"): 1.0, ("conv6", "cuda"): 5.0}
MEAN, STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))


class Images(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor, augment: bool) -> None:
        self.x, self.y, self.augment = x, y, augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        image = (self.x[place].float() / 255 - MEAN) / STD
        if self.augment:
            top, left = torch.randint(9, (2,)).tolist()
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image, self.y[place]


def network(case: str, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = getattr(models, case)().to(device).train()
    if case == "conv6":
        return model, torch.optim.Adam(model.parameters(), lr=3e-4)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def plain(case: str, data: Data, device: str, workers: int) -> Callable[[], None]:
    batch, _, augment = CASES[case]
    model, optimizer = network(case, device)
    pinned = {"pin_memory": True} if device == "cuda" else {}
    kept = {"persistent_workers": True} if workers else {}
    images = Images(data.train_x.cpu(), data.train_y.cpu(), augment)
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        images, batch, shuffle=True, drop_last=True, num_workers=workers, **kept, **pinned
    )

    def epoch() -> None:
        total = 0.0
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def ours(case: str, data: Data, device: str) -> Callable[[], None]:
    batch, _, augment = CASES[case]
    model, optimizer = network(case, device)

    def epoch() -> None:
        fit(model, optimizer, lambda number: data.epoch(number, batch_size=batch, augment=augment), epochs=1)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/train_throughput-DEVICE.md")
    options = parser.parse_args()
    arguments = f"--repeats {options.repeats} --device {options.device} --write"
    lines = [
        "# Training throughput",
        "",
        f"`python benchmarks/train_throughput.py {arguments}`: torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, {options.device}",
        "",
        "| network, batch | images/s | DataLoader alone | with 2 workers | × the faster of these | target |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines))
    for case in options.cases:
        batch, steps, _ = CASES[case]
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (batch * steps, 3, 32, 32), dtype=torch.uint8, generator=generator)
        y = torch.randint(10, (batch * steps,), generator=generator)
        data = Data(x, y, x[:10], y[:10], 10, "made up", mean=MEAN, std=STD).to(torch.device(options.device))
        epochs = {"ours": ours(case, data, options.device)}
        epochs |= {f"{n} workers": plain(case, data, options.device, n) for n in (0, 2)}
        times: dict[str, list[float]] = {name: [] for name in epochs}
        for repeat in range(-1, options.repeats):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                epoch()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if repeat >= 0:
                    times[name].append(time.perf_counter() - start)
        speed = {name: batch * steps / statistics.median(taken) for name, taken in times.items()}
        pairs = zip(times["ours"], times["0 workers"], times["2 workers"], strict=True)
        ratio = statistics.median(min(others) / mine for mine, *others in pairs)
        target = TARGETS.get((case, options.device), "")
        numbers = " | ".join(f"{speed[name]:,.0f}" for name in epochs)
        lines.append(f"| {case}, {batch} | {numbers} | {ratio:.2f} | {target} |")
        print(lines[-1], flush=True)
    if options.write:
        results = Path(__file__).parent / "results"
        write(results / f"train_throughput-{options.device}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
