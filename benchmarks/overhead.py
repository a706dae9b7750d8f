"""What a sparse method adds to a training step, side by side in one run: dense, Continuous Sparsification (CS), a hard
mask (a fixed ticket; RigL between two moves), and CS the way the authors' code does it (soft-masked layers that
autograd differentiates). Then what RigL keeps between two moves in bits for each weight, what one move takes, and what
that adds to a step at one move in 100 steps.

    python benchmarks/overhead.py [--cases resnet20 conv6 wrn_22_2] [--modes eager compiled] [--repeats 100] [--write]

The variants take turns, in random order, within each repeat; the ratio to dense is the median over repeats of the ratio
of neighbours, so that a slow moment of the machine hits all of them alike. The dense step is there twice: what the
second one differs from the first is the error of all ratios. It may be larger than what a method adds; so on a CPU the
time inside the method's hooks is measured too, the step of the scores' optimiser included, and its share of a dense
step. Memory is the peak of a process (or of the CUDA allocator)
that runs one variant alone.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tombola
from tombola import hard
from tombola.lab import models

VARIANTS = ("dense", "dense again", "cs", "hard", "authors' way")
CASES = {"resnet20": 128, "conv6": 60, "wrn_22_2": 128}
EVERY = 100  # steps from one move of RigL to the next
HOOKED = 33  # steps in which hooks are timed, the first three to warm up
AT_ONE_PLACE = 10  # repeats until the variants are made anew, elsewhere in memory
AT_THE_END = hard.at_the_end
STEPS = 1_000_000  # enough for any number of repeats; the temperature then hardly moves, which costs the same


BUILD = {"resnet20": models.resnet20, "conv6": models.conv6, "wrn_22_2": models.wrn_22_2, "resnet50": models.resnet50}


class SoftMask(nn.Module):
    """w·σ(βs) inside the layer, differentiated by autograd."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.sigmoid(1.5 * self.score)


def optimizer_of(case: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The papers' optimisers.

    Adam is the fused one: the other takes its square roots one after the other at zeros, ten times slower on a CPU, and
    a sparse network's state is mostly zeros.
    """
    if case == "conv6":
        return torch.optim.Adam(parameters, lr=3e-4, fused=True)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)


class Inside:
    """Seconds between hooks that are registered before those of a method and such that are registered after them, and
    in what the method does at the end of a backward pass."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.spent, self._begun, self._of = 0.0, 0.0, (model, optimizer)
        self._register(self._enter)

        def timed(callback: Callable[[], None]) -> None:
            def call() -> None:
                self._enter()
                callback()
                self._leave()

            AT_THE_END(call)

        hard.at_the_end = timed

    def close(self) -> None:
        """To be called when the method has registered its own."""
        self._register(self._leave)

    def _register(self, hook: Callable[..., None]) -> None:
        model, optimizer = self._of
        optimizer.register_step_pre_hook(hook)
        optimizer.register_step_post_hook(hook)
        for parameter in tombola.maskable(model).values():
            parameter.register_post_accumulate_grad_hook(hook)

    def _enter(self, *ignored: object) -> None:
        self._begun = time.perf_counter()

    def _leave(self, *ignored: object) -> None:
        self.spent += time.perf_counter() - self._begun


def training_step(
    case: str, variant: str, mode: str, device: str, inside: list[Inside] | None = None
) -> Callable[[], None]:
    """A function that makes one whole training step of ``variant``; ``inside`` gets what measures its hooks."""
    torch.manual_seed(0)
    batch = CASES[case]
    model = BUILD[case]().to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)
    masked = list(tombola.maskable(model))
    masks: list[SoftMask] = []
    if variant == "authors' way":
        for name in masked:
            layer = model.get_submodule(name.rpartition(".")[0])
            masks.append(SoftMask(layer.weight))
            parametrize.register_parametrization(layer, "weight", masks[-1])
    scores = [mask.score for mask in masks]
    own = [parameter for parameter in model.parameters() if not any(parameter is score for score in scores)]
    optimizers = [optimizer_of(case, group) for group in (own, scores) if group]
    if inside is not None:
        inside.append(Inside(model, optimizers[0]))
    if variant == "cs":
        tombola.attach(model, optimizers[0], tombola.ContinuousSparsification(), steps=STEPS)
    elif variant == "hard":
        generator = torch.Generator().manual_seed(0)
        shapes = {name: model.get_parameter(name).shape for name in masked}
        kept = {name: (torch.rand(shape, generator=generator) < 0.1).to(device) for name, shape in shapes.items()}
        tombola.attach(model, optimizers[0], tombola.Fixed(tombola.Masks(kept)), steps=STEPS)
    if inside is not None:
        inside[0].close()
    network = torch.compile(model) if mode == "compiled" else model

    def step() -> None:
        loss = nn.functional.cross_entropy(network(x), y)
        if masks:
            loss = loss + 1e-8 * sum(torch.sigmoid(1.5 * mask.score).sum() for mask in masks)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def hooks(case: str, variant: str) -> float:
    """Median milliseconds that a step spends in the hooks of ``variant``, on a CPU."""
    inside, spent = list[Inside](), []
    step = training_step(case, variant, "eager", "cpu", inside)
    for _ in range(HOOKED):
        inside[0].spent = 0.0
        step()
        spent.append(inside[0].spent)
    return 1e3 * statistics.median(spent[3:])


def peak(case: str, variant: str, device: str) -> float:
    """MiB at the peak of a fresh process that makes three eager steps."""
    command = [sys.executable, __file__, "--device", device, "--peak", case, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(case: str, variant: str, device: str) -> None:
    """Print the peak memory of this very process, in MiB."""
    step = training_step(case, variant, "eager", device)
    for _ in range(3):
        step()
    if device == "cpu":
        # not resource.getrusage(): on Linux its peak includes that of the parent before it became this process
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 1024)
    else:
        print(torch.cuda.max_memory_allocated() / 2**20)


def measure(case: str, mode: str, device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step of each variant, taken in turns after warming up."""
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    shuffle, left = random.Random(0).sample, repeats
    while left > 0:
        # anew now and then, for where its tensors happen to lie makes a step faster or slower by percents
        steps = {variant: training_step(case, variant, mode, device) for variant in shuffle(VARIANTS, len(VARIANTS))}
        for repeat in range(-3, min(left, AT_ONE_PLACE)):
            for variant in shuffle(VARIANTS, len(VARIANTS)):  # nobody always runs on the caches that another one left
                begin = time.perf_counter()
                steps[variant]()
                if repeat >= 0:
                    times[variant].append(time.perf_counter() - begin)
        left -= AT_ONE_PLACE
    return times


def alive() -> int:
    """Bytes of all tensors that there are."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]  # not the compiler's
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def moves(case: str, device: str) -> tuple[float, float, float]:
    """Median milliseconds of an ``optimizer.step()`` of the dense net, and of one that is a move of RigL; and the
    memory that RigL takes between moves, in bits a weight."""
    found, bits = [], 0.0
    for dense in (True, False):
        torch.manual_seed(0)
        model = BUILD[case]().to(device, memory_format=torch.channels_last)
        optimizer = optimizer_of(case, list(model.parameters()))
        if not dense:
            method = tombola.RigL(density=0.1, every=1, anneal="constant", until=1.0)
            before = alive()
            run = tombola.attach(model, optimizer, method, steps=STEPS)
            bits = 8 * (alive() - before) / sum(p.numel() for p in run.parameters.values())
        times = []
        for step in range(12):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            begin = time.perf_counter()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()
            if step % 2 == 0 and step:  # RigL moves at even steps
                times.append(time.perf_counter() - begin)
        found.append(1e3 * statistics.median(times))
    return found[0], found[1], bits


def image_step(device: str) -> float:
    """Median milliseconds of a dense training step of ResNet-50, 8 images of 224×224."""
    torch.manual_seed(0)
    model = models.resnet50().to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of("resnet50", list(model.parameters()))
    x = torch.randn(8, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        nn.functional.cross_entropy(model(x), torch.zeros(8, dtype=torch.int64, device=device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", default=["resnet20", "conv6"], choices=list(CASES))
    parser.add_argument("--modes", nargs="+", default=["eager"], choices=["eager", "compiled"])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/overhead-DEVICE.md")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print_peak(*given.peak, given.device)
        return
    chip = torch.cuda.get_device_name() if given.device != "cpu" else f"{platform.machine()}, {given.threads} threads"
    lines = [f"torch {torch.__version__}, {chip}; {given.repeats} repeats, channels-last, fp32", ""]
    lines += [
        "| network, batch | mode | variant | ms per step | ratio to dense | in hooks, ms | peak MiB |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines))
    middle: dict[str, float] = {}
    for case in given.cases:
        batch = CASES[case]
        peaks = {variant: peak(case, variant, given.device) for variant in VARIANTS}
        for mode in given.modes:
            times = measure(case, mode, given.device, given.repeats)
            for variant in VARIANTS:
                ratios = [mine / dense for mine, dense in zip(times[variant], times["dense"], strict=True)]
                median, ratio = statistics.median(times[variant]) * 1e3, statistics.median(ratios)
                spread = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios))  # standard error of a median
                memory = f"{peaks[variant]:.0f}" if mode == "eager" else ""
                own = ""
                if given.device == "cpu" and mode == "eager" and variant in ("cs", "hard"):
                    own = f"{(took := hooks(case, variant)):.1f} = {took / 1e3 / statistics.median(times['dense']):.1%}"
                row = f"| {case}, {batch} | {mode} | {variant} | {median:.1f} | {ratio:.3f} ± {spread:.3f} "
                row += f"| {own} | {memory} |"
                print(row, flush=True)
                lines.append(row)
            middle.setdefault(case, statistics.median(times["dense"]) * 1e3)
    lines += [
        "",
        "| network, batch | weights | bits a weight | optimiser, ms | move, ms | step, ms | share at 1 in 100 |",
        "|---" * 7 + "|",
    ]
    middle["resnet50"] = image_step(given.device)  # with few images, which is the hardest comparison
    for case in [*given.cases, "resnet50"]:
        plain, move, bits = moves(case, given.device)
        share = f"{100 * max(move - plain, 0) / EVERY / middle[case]:.2f} %"
        weights = sum(p.numel() for p in tombola.maskable(BUILD[case]()).values())
        batch = CASES.get(case, 8)
        times = f"{plain:.1f} | {move:.1f} | {middle[case]:.1f}"
        lines.append(f"| {case}, {batch} | {weights:,} | {bits:.2f} | {times} | {share} |")
    print("\n".join(lines[-len(given.cases) - 3 :]))
    if given.write:
        options = f"--cases {' '.join(given.cases)} --modes {' '.join(given.modes)} --repeats {given.repeats}"
        command = f"`python benchmarks/{Path(__file__).name} {options} --threads {given.threads} --write`"
        path = Path(__file__).parent / "results" / f"overhead-{given.device}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["# Overhead of a sparse method on a training step", "", command, "", *lines, ""]))


if __name__ == "__main__":
    main()
