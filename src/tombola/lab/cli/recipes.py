"""How a network is trained unless told otherwise, and what a person may tell about it on the command line.

Whatever is not asked for comes from a recipe: the published one for the networks of the papers, the digits study's for
everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from tombola.lab import models
from tombola.lab.cli.computing import Computing
from tombola.lab.cli.values import Epochs
from tombola.lab.config import RunConfig
from tombola.lab.data import load
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Inputs, Text
from tombola.lab.methods import Dense
from tombola.lab.runs.mode import Precision
from tombola.lab.runs.workshop import Workshop
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Cosine, Drops, Optimizer, Schedule
from tombola.lab.study import BASE, SCORE_OPTIMIZER

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "step"]
OPTIMIZERS: dict[str, type[SGD] | type[Adam] | type[AdamW]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained unless told otherwise."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    score_optimizer: Optimizer | None = None
    schedule: Schedule = Constant()  # noqa: RUF009 - frozen
    augment: bool = False
    rewind_epochs: float = 0.0


# Conv-2/4/6: Frankle & Carbin, ICLR 2019. ResNet-20: Savarese et al., whose code adds Nesterov momentum. WRN: Evci
# et al., "Rigging the Lottery", ICML 2020, for WRN-22-2: 97,656 steps, the learning rate a fifth after each 30,000.
_CONV = Recipe(epochs=40, batch_size=60, optimizer=Adam(lr=3e-4))
_RESNET = Recipe(
    epochs=85,
    batch_size=128,
    optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Drops(epochs=(56, 71), by=0.1),
    augment=True,
    rewind_epochs=2.0,
)
_WIDE = Recipe(
    epochs=250,
    batch_size=128,
    optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Drops(epochs=(77, 154, 230), by=0.2),
    augment=True,
)
_SMALL = Recipe(
    epochs=BASE.epochs,
    batch_size=BASE.batch_size,
    optimizer=BASE.optimizer,
    score_optimizer=SCORE_OPTIMIZER,
    schedule=BASE.schedule,
)
RECIPES = {
    **dict.fromkeys(("conv2", "conv4", "conv6"), _CONV),
    "resnet20": _RESNET,
    **dict.fromkeys(("wrn_16_4", "wrn_22_2", "wrn_28_10", "wrn_40_2"), _WIDE),
}
STEP, STEP_EPOCHS = Drops(epochs=(50, 75), by=0.1), 100  # a tenth after a half and after three quarters
DEFAULT_MODEL = {
    "digits": "lenet_300_100",
    "cifar10": "resnet20",
    "cifar100": "resnet20",
    "folder": "resnet20",
    "text": "gru_lm",
}
AUGMENTED = ("cifar10", "cifar100", "folder")  # where the recipe says so; digits do not stand being mirrored
INPUTS = {
    "image_size": ("folder",),
    "channels": ("folder",),
    "skip_damaged": ("folder",),
    "unit": ("text",),
    "length": ("text",),
}
"""Options that say how some data are read, and which."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was asked for; None leaves a setting to the recipe."""

    data: str = "digits"
    data_dir: Path | None = None
    model: str | None = None
    width: float = 1.0
    unmasked: tuple[str, ...] = ()
    image_size: int | None = None
    augment: bool | None = None
    cutout: int | None = None
    channels: str | None = None
    skip_damaged: bool = False
    unit: Literal["bytes", "characters"] | None = None
    length: int | None = None
    seeds: tuple[int, ...] = (0,)
    epochs: Epochs | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: OptimizerName | None = None
    weight_decay: float | None = None
    schedule: ScheduleName | None = None
    precision: Precision = "fp32"
    channels_last: bool | None = None
    compile: bool | None = None
    micro_batch: int | None = None
    dense: bool = True
    device: str = "cpu"
    together: int = 1

    @property
    def model_name(self) -> str:
        """The model that was asked for, or the one that goes with the data.

        Raises:
            LabError: nothing goes with data of one's own.
        """
        if self.model is None and ":" in self.data:
            raise LabError(
                "--model: is needed with data of your own; give a built-in one or your own as module:function"
            )
        return self.model or DEFAULT_MODEL.get(self.data, "lenet_300_100")

    @property
    def data_name(self) -> str:
        """The data as a config names them: a folder or a text by its own name.

        Raises:
            LabError: it is not said where that lies.
        """
        if self.data not in ("folder", "text"):
            return self.data
        if self.data_dir is None:
            raise LabError(f"--data {self.data}: say which with --data-dir")
        return f"{self.data}/{self.data_dir.resolve().name}"

    @cached_property
    def inputs(self) -> Inputs | None:
        """How the data are read, where they leave that open.

        Raises:
            LabError: it was asked for with data that do not.
        """
        for name, takers in INPUTS.items():
            if getattr(self, name) and self.data not in takers:
                raise LabError(f"--{name.replace('_', '-')}: is for --data {' or '.join(takers)}, not {self.data}")
        if self.cutout and self.data not in AUGMENTED:
            raise LabError(f"--cutout: is for --data {' or '.join(AUGMENTED)}, not {self.data}")
        if self.data == "text":
            return Text(unit=self.unit or "bytes", length=self.length or Text.length)
        if self.data == "folder" or self.cutout:
            return Images(
                size=self.image_size, cutout=self.cutout or 0, channels=self._channels, skip_damaged=self.skip_damaged
            )  # fmt: skip
        return None

    @property
    def _channels(self) -> Literal[1, 3]:
        """Those that were asked for, else those of the folder: a run's identity says which, so that it is looked at."""
        if self.data != "folder" or self.channels == "3":
            return 3
        if self.channels == "1":
            return 1
        from tombola.lab.data.folder import all_grey  # needs Pillow

        return 1 if self.data_dir is not None and all_grey(self.data_dir) else 3

    @property
    def recipe(self) -> Recipe:
        """How that model is trained."""
        return RECIPES.get(self.model_name, _SMALL)

    def base(self) -> tuple[RunConfig, Workshop]:
        """What all runs have in common, and what makes it. The model is made once, so that a mistake shows now.

        Raises:
            LabError: choices that contradict each other, or data or a model that cannot be had.
        """
        recipe = self.recipe
        epochs = recipe.epochs if self.epochs is None else self.epochs.of(recipe.epochs)
        data = load(self.data_name, data_dir=self.data_dir, inputs=self.inputs, tell=lambda text: None)  # runs tell
        batch_size = self.batch_size or recipe.batch_size
        data.steps(batch_size)
        base = RunConfig(
            data=self.data_name,
            inputs=self.inputs,
            model=self.model_name,
            width=self.width,
            method=Dense(),
            epochs=epochs,
            batch_size=batch_size,
            augment=self._augment(),
            optimizer=self._optimizer(),
            schedule=self._schedule(epochs),
            unmasked=self.unmasked or models.unmasked(self.model_name),
        )
        make = Workshop(config=base, data=data, device=torch.device("cpu"))
        asked = Computing(
            device=self.device, precision=self.precision, channels_last=self.channels_last, compile=self.compile,
            micro_batch=self.micro_batch, together=self.together,
        )  # fmt: skip
        asked.check()
        base = asked.of(base, data)
        make = replace(make, config=base)
        make.check()
        make.maskable(make.model())
        return base, make

    def score_optimizer(self) -> Optimizer | None:
        """The recipe's optimiser of scores, unless another one was asked for the weights."""
        return self.recipe.score_optimizer if self.optimizer is None else None

    def _augment(self) -> bool:
        """Whether training images are changed at random."""
        if self.augment is None:
            usual = self.recipe.augment or self.cutout is not None or self.image_size is not None
            return usual and self.data in AUGMENTED
        if self.augment and self.data not in AUGMENTED:
            raise LabError(f"--augment: is for --data {' or '.join(AUGMENTED)}, not {self.data}")
        if self.cutout and not self.augment:
            raise LabError("--cutout: is part of the augmentation, so give it without --no-augment")
        return self.augment

    def _optimizer(self) -> Optimizer:
        usual = self.recipe.optimizer
        same = self.optimizer is None or isinstance(usual, OPTIMIZERS[self.optimizer])
        optimizer = usual if same or self.optimizer is None else OPTIMIZERS[self.optimizer]()
        if self.lr is not None:
            optimizer = replace(optimizer, lr=self.lr)
        return optimizer if self.weight_decay is None else replace(optimizer, weight_decay=self.weight_decay)

    def _schedule(self, epochs: int) -> Schedule:
        """The asked-for schedule, or the recipe's with its drops at the same shares of the training."""
        named: dict[str | None, Schedule] = {"cosine": Cosine(), "constant": Constant(), "step": STEP}
        schedule = named.get(self.schedule, self.recipe.schedule)
        if isinstance(schedule, Drops) and (schedule is STEP or epochs != self.recipe.epochs):
            whole = STEP_EPOCHS if schedule is STEP else self.recipe.epochs
            drops = {max(1, math.floor(drop * epochs / whole)) for drop in schedule.epochs}
            return replace(schedule, epochs=tuple(sorted(drops)))
        return schedule
