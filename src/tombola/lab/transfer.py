"""Training tickets on other data than those they were found on, as plain data: a part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass

from tombola.lab.inputs import Inputs
from tombola.lab.settings import Constant, Schedule

_CONSTANT = Constant()


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The data that tickets are trained on besides their own, and how training differs there.

    Each ticket that is retrained, and each of its controls, is trained on these data too. What is not named here (the
    model and its width, the optimiser, label smoothing, clipping) is as it is on the ticket's own data. The fields mean
    what those of the same name do in ``RunConfig``.

    Raises:
        ValueError: a value outside its range.
    """

    data: str
    inputs: Inputs | None = None
    epochs: int
    batch_size: int
    augment: bool = False
    schedule: Schedule = _CONSTANT
    examples: int | None = None

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "examples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be 1 or more, not {value}")
