"""What the recipes share: what a recipe is, how it is made smaller, and where its data are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.report.experiments import reduced
from tombola.lab.settings import Drops, Schedule, WarmUp

Scale = Literal["smoke", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "full")
T = TypeVar("T")
SEEDS = (0, 1, 2)
SMOKE = "One seed and a few steps of tiny nets, without --data-dir on generated data: it shows that all of it runs."
SMOKE_EXAMPLES = 32  # to train on, two steps
TINY = {"cifar10": "images", "folder": "images", "text": "text"}  # generated data in place of what is not there


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment of a paper.

    Args:
        name: on the command line.
        paper, where: which, and which of its figures, tables or sections.
        about: what is done, in a sentence or two.
        departures: from the paper; what in it is from memory is said here too.
        data, model, methods: in the words of the list of recipes.
        cpu: what the scale "cpu" makes smaller.
        configs: scale -> its runs with seed 0; None where nothing is trained.
        draw: folder -> files drawn into it, where nothing is trained.
    """

    name: str
    paper: str
    where: str
    about: str
    departures: str
    data: str
    model: str
    methods: str
    cpu: str = ""
    configs: Callable[[Scale], Sequence[RunConfig]] | None = None
    draw: Callable[[Path], Sequence[Path]] | None = None

    def runs(self, scale: Scale, *, seeds: Sequence[int] = (), data_dir: Path | None = None) -> list[RunConfig]:
        """Every run, each once, in all seeds (by default three; one at smoke scale).

        Args:
            scale: how large.
            seeds: others than these.
            data_dir: where the data lie. An image folder or a text may have any name.

        Raises:
            LabError: full and cpu need data, and it is not said where they lie.
        """
        seeds = seeds or by(scale, full=SEEDS, cpu=SEEDS, smoke=SEEDS[:1])
        found = different([placed(config, scale, data_dir) for config in self._each(scale)])
        return [replace(config, seed=seed) for config in found for seed in seeds]

    def epochs(self, scale: Scale) -> int:
        """Epochs of all its runs together: every round, every retraining, every control, every seed."""
        return len(by(scale, full=SEEDS, cpu=SEEDS, smoke=SEEDS[:1])) * sum(c.total_epochs for c in self._each(scale))

    def _each(self, scale: Scale) -> list[RunConfig]:
        return different(self.configs(scale)) if self.configs else []

    @property
    def title(self) -> str:
        """Paper and place."""
        return f"{self.paper}, {self.where}"

    def text(self, scale: Scale) -> str:
        """What is done at this scale, and where that departs from the paper."""
        smaller = by(scale, full="", cpu=self.cpu, smoke=SMOKE)
        said = reduced(scale)
        label = f"{said[:1].upper()}{said[1:]}: {smaller}" if smaller else ""
        return " ".join(part for part in (self.about, self.departures, label) if part)


def by(scale: Scale, *, full: T, cpu: T, smoke: T) -> T:
    """What goes with the scale.

    Raises:
        LabError: there is no such scale.
    """
    values = {"full": full, "cpu": cpu, "smoke": smoke}
    if scale not in values:
        raise LabError(f"--scale {scale}: there is {', '.join(SCALES)}")
    return values[scale]


def different(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Each of them once, in order."""
    return [config for place, config in enumerate(configs) if config not in configs[:place]]


def smaller(config: RunConfig, scale: Scale, *, epochs: int, width: float, examples: int | None = None) -> RunConfig:
    """``config`` at full scale; at cpu with so many epochs and examples and of that width; at smoke tiny.

    The schedule drops at the same shares of the training.
    """
    if scale == "full":
        return config
    epochs, examples = by(scale, full=0, cpu=epochs, smoke=1), by(scale, full=None, cpu=examples, smoke=SMOKE_EXAMPLES)
    return replace(
        config,
        epochs=epochs,
        width=by(scale, full=1.0, cpu=width, smoke=0.05),
        batch_size=by(scale, full=0, cpu=config.batch_size, smoke=16),
        examples=examples if config.data == "cifar10" else None,
        schedule=stretched(config.schedule, config.epochs, epochs),
        evaluate_every=epochs,
    )


def stretched(schedule: Schedule, whole: int, epochs: int) -> Schedule:
    """A schedule for ``whole`` epochs as it is for so many; warming up takes as long as it did, or a tenth at most."""
    if isinstance(schedule, WarmUp):
        then = stretched(schedule.then, whole, epochs)
        assert not isinstance(then, WarmUp)
        return WarmUp(epochs=min(schedule.epochs, max(1, epochs // 10)), then=then)
    if isinstance(schedule, Drops) and epochs != whole:
        drops = {max(1, math.floor(drop * epochs / whole)) for drop in schedule.epochs}
        return replace(schedule, epochs=tuple(sorted(drops)))
    return schedule


def placed(config: RunConfig, scale: Scale, data_dir: Path | None) -> RunConfig:
    """``config`` with the name that its image folder or text has; at smoke scale without ``data_dir`` generated data.

    Raises:
        LabError: it is not said where the data lie.
    """
    kind, _, name = config.data.partition("/")
    if kind not in TINY:
        return config
    if data_dir is None:
        if scale != "smoke":
            raise LabError(f"data {config.data!r}: say where {name or config.data} is with --data-dir")
        tiny = f"tombola.lab.recipes.tiny:{TINY[kind]}"
        return replace(config, data=tiny, inputs=None, examples=None)
    if name and not (data_dir / name).exists():
        config = replace(config, data=f"{kind}/{data_dir.resolve().name}")
    return config
