"""How images and texts are read, as plain data: the part of a run's identity that the name of its data leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read.

    Args:
        size: height and width that the images of a folder are brought to, by a crop of random size and shape when
            training is to augment, else by the middle of the image; they are read anew in each epoch. None: as they
            are, all of one size, in memory, and augmented by flips and crops of the padded image as CIFAR is.
        cutout: side of the square that is blanked out in each training image, in pixels; 0: none. It is part of the
            augmentation.
        channels: that images of a folder are read with: 3, red, green and blue, or 1, grey.
        skip_damaged: leave damaged images of a folder out instead of stopping at the first.

    Raises:
        ValueError: a value outside its range.
    """

    size: int | None = None
    cutout: int = 0
    channels: Literal[1, 3] = 3
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be 1 or more, not {self.size}")
        if self.cutout < 0:
            raise ValueError(f"cutout must be 0 or more, not {self.cutout}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")


@dataclass(frozen=True, kw_only=True)
class Text:
    """How a text is read.

    Args:
        unit: what a token is. Of bytes there are 256 classes, of characters as many as the text has.
        length: tokens in one example, each of which predicts the next.

    Raises:
        ValueError: a value outside its range.
    """

    unit: Literal["bytes", "characters"] = "bytes"
    length: int = 128

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be 1 or more, not {self.length}")

    @property
    def token(self) -> str:
        """What one token is called."""
        return self.unit.removesuffix("s")


Inputs: TypeAlias = Images | Text


def bits(loss: float | None) -> str:
    """A loss in nats as bits."""
    return "∞" if loss is None else f"{loss / math.log(2):.3f}"
