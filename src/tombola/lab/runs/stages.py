"""The stages of a run, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tombola.lab.config import Control, RunConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training from beginning to end.

    phase: "train" is that of a run without a search: dense, or sparse in one go.
    round: of the search, or that the ticket comes from; 0 without a search. The training counts as round 1 for one that
        begins with its connections.
    label: which control is trained, if one is.
    epochs_before: epochs that the run trains before this stage.
    """

    phase: Literal["train", "search", "retrain", "control"]
    round: int
    label: Control | None = None
    epochs_before: int

    @property
    def apart(self) -> bool:
        """Whether it needs nothing of the run but the ticket of its round, and so may be trained beside the others."""
        return self.phase in ("retrain", "control")

    @property
    def name(self) -> str:
        """Of the folder that it has while it is trained beside the others."""
        return f"{self.label or self.phase}-{self.round:02d}"


def plan(config: RunConfig) -> list[Stage]:
    """All stages of the run, in order: the search's rounds, the retrainings of their tickets, and the controls."""
    if not config.searches:
        again = [Stage(phase="retrain", round=1, epochs_before=config.epochs)] if config.lottery != "no" else []
        return [Stage(phase="train", round=0, epochs_before=0), *again]
    controls = sorted(set(config.controls), reverse=True)
    kinds: list[tuple[Literal["search", "retrain", "control"], int, Control | None]] = [
        *(("search", round_, None) for round_ in range(1, config.rounds + 1)),
        *(("retrain", round_, None) for round_ in config.retrained()),
        *(("control", round_, label) for round_ in sorted(set(config.control_rounds)) for label in controls),
    ]
    return [
        Stage(phase=phase, round=round_, label=label, epochs_before=place * config.epochs)
        for place, (phase, round_, label) in enumerate(kinds)
    ]
