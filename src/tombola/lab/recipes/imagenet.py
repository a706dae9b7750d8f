"""How the recipes for ImageNet are made smaller: other data at cpu scale, small images at smoke scale."""

from __future__ import annotations

from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.inputs import Images
from tombola.lab.recipes.base import Scale, smaller

SMOKE_SIZE = 32  # of the images of a folder that is given at smoke scale


def reduced(base: RunConfig, scale: Scale, *, times: float = 1) -> RunConfig:
    """``base``, ``times`` as long; at cpu scale on a part of CIFAR-10 with a learning rate for batches of 128."""
    if scale == "full":
        return base
    if scale == "smoke":
        return smaller(replace(base, inputs=Images(size=SMOKE_SIZE)), scale, epochs=1, width=0.05)
    rate = base.optimizer.lr * 128 / base.batch_size
    small = replace(base, data="cifar10", inputs=None, batch_size=128, optimizer=replace(base.optimizer, lr=rate))
    return smaller(small, scale, epochs=round(6 * times), width=0.25, examples=5000)
