"""How networks are to compute: as was asked for on the command line, or else as is fastest on the device.

Measured on CPUs, channels_last trains ResNet-20 and Conv-6 in 0.8 of the time, while compiled code is faster for one
and slower for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tombola.lab import models
from tombola.lab.config import RunConfig
from tombola.lab.data import Dataset
from tombola.lab.errors import LabError
from tombola.lab.runs.mode import Precision, check_precision

WORTH_COMPILING = 5000  # steps of a training: a minute of compiling comes first


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What was asked for; None leaves it to the device."""

    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool | None = None
    compile: bool | None = None
    micro_batch: int | None = None
    together: int = 1

    @classmethod
    def of_recipes(cls, options: Mapping[str, Any]) -> Computing:
        """What the options of `tombola reproduce` ask for.

        On the CPU its runs keep their channels as they are unless told otherwise, as they did before there was a
        choice: it is a part of their names.
        """
        last = options["channels_last"]
        if last is None and torch.device(options["device"]).type == "cpu":
            last = False
        return cls(
            device=options["device"],
            precision=options["precision"] or cls.precision,
            channels_last=last,
            compile=options["compile"],
            micro_batch=options["micro_batch"],
            together=options["together"],
        )

    def check(self) -> None:
        """Raise LabError if the device cannot do it, or it contradicts itself."""
        if self.compile and self.together > 1:
            raise LabError("--together: is not for --compile, whose code is that of one network; leave one of them out")
        check_precision(self.precision, torch.device(self.device))

    def of(self, config: RunConfig, data: Dataset) -> RunConfig:
        """``config``, which trains on ``data``, with how it computes.

        Raises:
            LabError: its model cannot be had, or its batches are larger than the data.
        """
        device, last, fast = torch.device(self.device).type, self.channels_last, self.compile
        if last is None and device not in ("cpu", "cuda"):
            last = False
        if fast is None and (device != "cuda" or self.together > 1):
            fast = False
        if last is None or fast is None:
            spatial = _convolves(config, data)
            last = spatial if last is None else last
            if fast is None:
                fast = spatial and config.stretched(config.epochs) * _steps(config, data) >= WORTH_COMPILING
        parts = config.micro_batch if self.micro_batch is None else self.micro_batch
        return replace(config, precision=self.precision, channels_last=last, compile=fast, micro_batch=parts)


def _steps(config: RunConfig, data: Dataset) -> int:
    """Of one epoch."""
    return config.examples // config.batch_size if config.examples is not None else data.steps(config.batch_size)


def _convolves(config: RunConfig, data: Dataset) -> bool:
    """Whether its model has convolutions, and there are channels to be put innermost."""
    shape = data.input_shape
    if len(shape) != 3 or shape[0] == 1:
        return False
    with torch.device("meta" if config.model in models.MODELS else "cpu"):  # large nets take long to initialise
        model = models.build(config.model, input_shape=shape, classes=data.classes, seed=0)
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
