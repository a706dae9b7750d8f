"""The records of metrics.jsonl: what was measured after an epoch, and the final number of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tombola.lab.config import Dense, RunConfig
from tombola.lab.inputs import Text, bits
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.train import Epoch, Measurement


def epoch_record(
    config: RunConfig,
    stage: Stage,
    epoch: Epoch,
    whole: Measurement,
    hard: Measurement | None,
    diagnostics: Mapping[str, Any],
) -> dict[str, Any]:
    """After an epoch. ``whole`` is the network as it trains, ``hard`` that of its hard mask if this is another one."""
    soft = diagnostics.get("temperature") is not None
    return {
        "kind": "epoch",
        "phase": stage.phase,
        "round": stage.round,
        "label": stage.label,
        "epoch": epoch.number,
        "steps": epoch.steps * epoch.number,
        "train_loss": epoch.train_loss,
        "test_loss": _finite(whole.loss),
        "test_accuracy": whole.accuracy,
        "hard_test_accuracy": hard.accuracy if hard else None,
        "hard_test_loss": _finite(hard.loss) if hard else None,
        "density": diagnostics.get("density", 1.0),
        "temperature": diagnostics.get("temperature"),
        "undecided": diagnostics["undecided"] if soft else None,
        "lr": epoch.lr,
        **_token(config),
    }


def epoch_text(stage: Stage, epoch: Epoch, last: Mapping[str, Any]) -> str:
    """Where the run stands, in a few words, for live progress. ``last`` is the newest record of the stage, or empty."""
    place = {"train": "training", "search": f"round {stage.round}", "retrain": f"retraining ticket {stage.round}"}
    text = f"{place.get(stage.phase, f'{stage.label} ticket {stage.round}')}, epoch {epoch.number}"
    if not last:
        return f"{text}, loss {epoch.train_loss:.3f}"
    density = f", density {last['density']:.3f}" if stage.phase != "train" or last["density"] < 1 else ""
    if "token" in last:
        return f"{text}, {bits(last['test_loss'])} bits per {last['token']}{density}"
    return f"{text}, accuracy {100 * last['test_accuracy']:.1f} %{density}"


def _token(config: RunConfig) -> dict[str, str]:
    """Of texts a record says what one of their tokens is."""
    return {"token": config.inputs.token} if isinstance(config.inputs, Text) else {}


def result_record(
    config: RunConfig,
    stage: Stage,
    last: Mapping[str, Any],
    searched: Mapping[str, Any] | None,
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
    *,
    steps: int,
    arithmetic: float | None,
    weighed: Mapping[str, Any],
) -> dict[str, Any]:
    """The final number of a dense net, a sparse one, a retrained ticket or a control.

    Args:
        config: of the run.
        stage: ``stage.round`` is the round that the ticket comes from.
        last: record of the training's last epoch.
        searched: record of the last epoch of the round that found the ticket.
        counts, sizes: kept and all weights of each masked layer.
        steps: of an epoch.
        arithmetic: of the training, and of the search for a ticket, in epochs of the dense net.
        weighed: multiply-adds and bytes of the network.
    """
    kept, total = sum(counts.values()), sum(sizes.values())
    dense = isinstance(config.method, Dense)
    search = stage.round * config.epochs
    if searched is None or searched["temperature"] is None or stage.label is not None:
        searched = {}
    return {
        "kind": "result",
        "method": "ss" if config.supermask and config.method_name == "iss" else config.method_name,
        "setting": config.setting,
        "round": stage.round,
        "control": stage.label,
        "density": kept / total,
        "kept": kept,
        "maskable": total,
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "epochs_search": search,
        "epochs_total": search + last["epoch"],
        "steps_total": (search + last["epoch"]) * steps,
        "arithmetic": arithmetic,
        **weighed,
        "soft_accuracy": searched.get("test_accuracy"),
        "hard_accuracy": searched.get("hard_test_accuracy"),
        "undecided": searched.get("undecided"),
        "dead_layers": [name for name, count in counts.items() if count == 0],
        "ticket": None if dense or stage.label else f"tickets/{ticket_name(stage.round)}",
        "layers": [{"name": name, "size": size, "kept": counts[name]} for name, size in sizes.items()],
        **_token(config),
    }


def ticket_name(round_: int) -> str:
    """Name of the file of a round's ticket; of the trained sparse network if there was no search, round 0."""
    return f"round-{round_:02d}.safetensors" if round_ else "trained.safetensors"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
