"""How the recipes for ImageNet are made smaller: other data at cpu scale, small images at smoke scale."""

from __future__ import annotations

from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.inputs import Images
from tombola.lab.recipes.base import Scale, by, smaller

SMOKE_SIZE = 32  # of the images of a folder that is given at smoke scale


def reduced(base: RunConfig, scale: Scale) -> RunConfig:
    """``base`` at full scale; at cpu scale on a part of CIFAR-10; the learning rate follows the smaller batches."""
    if scale == "full":
        return base
    batch = by(scale, full=0, cpu=128, smoke=16)
    rate = base.optimizer.lr * batch / base.batch_size
    small = replace(base, batch_size=batch, micro_batch=None, optimizer=replace(base.optimizer, lr=rate))
    inputs = Images(size=SMOKE_SIZE)
    small = by(scale, full=base, cpu=replace(small, data="cifar10", inputs=None), smoke=replace(small, inputs=inputs))
    return smaller(small, scale, epochs=6, width=0.25, examples=2500)
