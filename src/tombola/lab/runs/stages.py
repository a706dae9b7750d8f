"""The stages of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tombola.lab.config import Control, RunConfig

_Kind: TypeAlias = tuple[Literal["search", "retrain", "control"], int, Control | None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training from beginning to end.

    phase: "train" is that of a run without a search: dense, or sparse in one go.
    round: of the search, or that the ticket comes from; 0 without a search. The training counts as round 1 for one that
        begins with its connections.
    label: which control is trained, if one is.
    transferred: on the data that tickets are transferred to.
    epochs, epochs_before: epochs of this stage, and those that the run trains before it. The controls of a supermask
        have none: they are measured as they are.
    """

    phase: Literal["train", "search", "retrain", "control"]
    round: int
    label: Control | None = None
    transferred: bool = False
    epochs: int
    epochs_before: int

    @property
    def apart(self) -> bool:
        """Whether it needs nothing of the run but the ticket of its round, and so may be trained beside the others."""
        return self.phase in ("retrain", "control")

    @property
    def key(self) -> str:
        """What its result and its wall time are called."""
        return key_of(self.round, self.label, transferred=self.transferred)

    @property
    def name(self) -> str:
        """Of the folder that it has while it is trained beside the others."""
        return self.key.replace(" ", "-")


def key_of(round_: int, label: str | None, *, transferred: bool) -> str:
    """What tells the results of a run apart: "2", "2 shuffled", "2 shuffled transferred"."""
    return " ".join([str(round_), *([label] if label else []), *["transferred"] * transferred])


def _in_one_go(config: RunConfig, controls: Sequence[Control]) -> list[Stage]:
    """A training; lottery initialisation trains once more, and so the controls of its ticket. A supermask is the ticket
    of round 0, that of the training."""
    once, lottery = config.stretched(config.epochs), config.lottery != "no"
    stages = [Stage(phase="train", round=0, epochs=once, epochs_before=0)]
    if lottery:
        stages.append(Stage(phase="retrain", round=1, epochs=once, epochs_before=once))
    before = len(stages) * once
    return stages + [
        Stage(
            phase="control", round=int(lottery), label=label, epochs=once * lottery,
            epochs_before=before + place * once * lottery,
        )
        for place, label in enumerate(controls)
    ]  # fmt: skip


def plan(config: RunConfig) -> list[Stage]:
    """All stages of the run, in order: the search's rounds, the retrainings of their tickets, and the controls; then
    retrainings and controls on other data."""
    controls = sorted(set(config.controls), reverse=True)
    if not config.searches:
        return _in_one_go(config, controls)
    controlled = [(round_, label) for round_ in sorted(set(config.control_rounds)) for label in controls]
    here: list[_Kind] = [
        *(("search", round_, None) for round_ in range(1, config.rounds + 1)),
        *(("retrain", round_, None) for round_ in config.retrained()),
        *(("control", round_, label) for round_, label in controlled),
    ]
    stages = [
        Stage(phase=phase, round=round_, label=label, epochs=config.epochs, epochs_before=place * config.epochs)
        for place, (phase, round_, label) in enumerate(here)
    ]
    if config.transfer is None:
        return stages
    there: list[_Kind] = [
        *(("retrain", round_, None) for round_ in config.transferred()),
        *(("control", round_, label) for round_, label in controlled),
    ]
    before, each = len(stages) * config.epochs, config.transfer.epochs
    return stages + [
        Stage(
            phase=phase, round=round_, label=label, transferred=True, epochs=each, epochs_before=before + place * each
        )
        for place, (phase, round_, label) in enumerate(there)
    ]
