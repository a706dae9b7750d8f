"""Timing alternatives beside each other, for the benchmarks of sparse execution."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

DISTURBED = 0.08  # share of the machine that others may use during a turn; more, and the turn is done again
AT_LEAST = 0.05  # seconds that a function is called for in each turn: a training step follows its like
RETRIES = 200  # of such turns in a whole table: after that they count all the same


class Turns:
    """Alternatives take turns; each table keeps its own count of turns that were disturbed."""

    def __init__(self, repeats: int) -> None:
        self.repeats, self.again, self.disturbed = repeats, 0, 0

    def milliseconds(self, functions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Mean times of each function in each turn; a turn that other processes disturbed is done again."""
        for function in functions.values():
            function()
        taken: dict[str, list[float]] = {name: [] for name in functions}
        while len(next(iter(taken.values()))) < self.repeats:
            before, turn = _cpu_seconds(), {}
            for name, function in functions.items():
                function()  # the first after another alternative finds the caches full of that one's numbers
                start, calls = time.perf_counter(), 0
                while calls == 0 or time.perf_counter() - start < AT_LEAST:
                    function()
                    calls += 1
                turn[name] = (time.perf_counter() - start) * 1000 / calls
            if _others(before) > DISTURBED:
                if self.again < RETRIES:
                    self.again += 1
                    continue
                self.disturbed += 1
            for name, milliseconds in turn.items():
                taken[name].append(milliseconds)
        return taken

    def said(self) -> str:
        """What disturbed the table."""
        return (
            f"{self.again} turns done again because other processes used the machine; {self.disturbed} count although"
        )


class Table:
    """A result file in Markdown that is printed line by line as it comes about.

    Args:
        head: lines of the title, what was done, and the head of the first table.
        turns: what times the alternatives.
    """

    def __init__(self, *head: str, turns: Turns) -> None:
        self.turns, self._lines = turns, list[str]()
        self.add(*head)

    def add(self, *lines: str) -> None:
        """Lines as they are."""
        self._lines += lines
        print("\n".join(lines), flush=True)

    def row(self, *cells: object) -> None:
        """One more row."""
        self.add(f"| {' | '.join(map(str, cells))} |")

    def end(self, result: Path | None) -> None:
        """Say what disturbed it, and write it to the file ``result``, unless that is None."""
        self.add("", f"{self.turns.said()}.")
        if result is not None:
            write(result, "\n".join(self._lines) + "\n")


def middle(times: Mapping[str, list[float]], name: str) -> str:
    """Median over turns, in milliseconds."""
    return f"{sorted(times[name])[len(times[name]) // 2]:.2f}"


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over turns of how many times as long ``slow`` takes."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def spread(times: Mapping[str, list[float]], slow: str, fast: str) -> str:
    """The ratio's quartiles."""
    values = sorted(a / b for a, b in zip(times[slow], times[fast], strict=True))
    return f"{values[len(values) // 4]:.2f} … {values[-len(values) // 4]:.2f}"


def _cpu_seconds() -> tuple[float, float, float]:
    """Now: the clock, busy seconds of the machine, and those of this process."""
    busy = 0.0
    if Path("/proc/stat").exists():
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        busy = (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, time.process_time()


def _others(before: tuple[float, float, float]) -> float:
    now = _cpu_seconds()
    clock, busy, own = (b - a for a, b in zip(before, now, strict=True))
    if clock < 0.2:  # the kernel counts in hundredths of a second
        return 0.0
    return (busy - own) / clock / (os.cpu_count() or 1)


def peak_of(script: str, *arguments: str) -> int:
    """Bytes that a fresh process running ``script arguments`` adds to its memory at most, as it prints them."""
    # the allocator gives memory back at once, so that the peak is that of what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout.split()[-1])


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Forget how much memory this process has had."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of memory that this process has had at most since :func:`reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def memory_of_steps(
    tiny: Callable[[], Callable[[], object]], make: Callable[[], Callable[[], object]], *, from_dense: bool
) -> int:
    """Bytes at the peak of three training steps, above a process that has done one of a tiny net of the same kind.

    Args:
        tiny: makes the step of the tiny net.
        make: makes the step that counts.
        from_dense: whether it makes its net of a dense one that is gone by the first step, and does not count.
    """
    tiny()()
    gc.collect()
    base = resident()
    reset_peak()
    step = make()
    if from_dense:
        reset_peak()
    for _ in range(3):
        step()
    return peak() - base


def machine() -> str:
    """One line: processor, threads, versions, and the speed of dense products."""
    import numba

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, numba {numba.__version__}"


def dense_speed() -> str:
    """GFLOP/s of this machine in the products that the baselines are made of."""
    from tombola.sparse.measure import machine as best

    x, weight = torch.randn(256, 4096), torch.randn(4096, 4096)
    image, kernel = torch.randn(64, 128, 16, 16), torch.randn(128, 128, 3, 3)
    image = image.contiguous(memory_format=torch.channels_last)
    flops = 2 * 256 * 4096 * 4096
    conv_flops = 2 * 64 * 16 * 16 * 128 * 128 * 9
    found = {
        "F.linear float32": (flops, lambda: torch.nn.functional.linear(x, weight)),
        "conv2d float32 (oneDNN)": (conv_flops, lambda: torch.nn.functional.conv2d(image, kernel, padding=1)),
    }
    low, low_weight, low_image, low_kernel = x.bfloat16(), weight.bfloat16(), image.bfloat16(), kernel.bfloat16()
    found["F.linear bfloat16"] = (flops, lambda: torch.nn.functional.linear(low, low_weight))
    found["conv2d bfloat16"] = (conv_flops, lambda: torch.nn.functional.conv2d(low_image, low_kernel, padding=1))
    times = Turns(11).milliseconds({name: function for name, (_, function) in found.items()})
    speeds = [f"{name} {found[name][0] / statistics.median(times[name]) / 1e6:,.0f}" for name in found]
    return f"GFLOP/s: {', '.join(speeds)}; multiply-adds in registers alone {2 * best() / 1e6:,.0f}"


def write(path: Path, text: str) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")
