"""The records of metrics.jsonl: what was measured after an epoch, and the final number of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from tombola.lab.config import RunConfig
from tombola.lab.inputs import Text, bits
from tombola.lab.methods import Dense
from tombola.lab.runs.stages import Stage
from tombola.lab.runs.train import Epoch, Measurement

Parts: TypeAlias = tuple[Measurement, Measurement | None]
"""On the test set, and on the validation part if the data have one."""


def epoch_record(
    config: RunConfig,
    stage: Stage,
    epoch: Epoch,
    whole: Parts,
    hard: Parts | None,
    diagnostics: Mapping[str, Any],
) -> dict[str, Any]:
    """After an epoch. ``whole`` is the network as it trains, ``hard`` that of its hard mask if this is another one.

    ``config`` is that of the data which are trained on."""
    soft = diagnostics.get("temperature") is not None
    return {
        "kind": "epoch",
        "phase": stage.phase,
        "round": stage.round,
        "label": stage.label,
        "epoch": epoch.number,
        "steps": epoch.steps * epoch.number,
        "train_loss": epoch.train_loss,
        "test_loss": _finite(whole[0].loss),
        "test_accuracy": whole[0].accuracy,
        "hard_test_accuracy": hard[0].accuracy if hard else None,
        "hard_test_loss": _finite(hard[0].loss) if hard else None,
        "density": diagnostics.get("density", 1.0),
        "temperature": diagnostics.get("temperature"),
        "undecided": diagnostics["undecided"] if soft else None,
        "lr": epoch.lr,
        **_token(config),
        **_valid(whole, hard),
        **({"data": config.data, "transferred": True} if stage.transferred else {}),
    }


def epoch_text(stage: Stage, epoch: Epoch, last: Mapping[str, Any]) -> str:
    """Where the run stands, in a few words, for live progress. ``last`` is the newest record of the stage, or empty."""
    place = {"train": "training", "search": f"round {stage.round}", "retrain": f"retraining ticket {stage.round}"}
    text = f"{place.get(stage.phase, f'{stage.label} ticket {stage.round}')}"
    text += f"{' on new data' if stage.transferred else ''}, epoch {epoch.number}"
    if not last:
        return f"{text}, loss {epoch.train_loss:.3f}"
    density = f", density {last['density']:.3f}" if stage.phase != "train" or last["density"] < 1 else ""
    if "token" in last:
        return f"{text}, {bits(last['test_loss'])} bits per {last['token']}{density}"
    return f"{text}, accuracy {100 * last['test_accuracy']:.1f} %{density}"


def _token(config: RunConfig) -> dict[str, str]:
    """Of texts a record says what one of their tokens is."""
    return {"token": config.inputs.token} if isinstance(config.inputs, Text) else {}


def _valid(whole: Parts, hard: Parts | None) -> dict[str, float | None]:
    """The same on the validation part of a text."""
    if whole[1] is None:
        return {}
    within = None if hard is None else hard[1]
    return {"valid_loss": _finite(whole[1].loss), "hard_valid_loss": _finite(within.loss) if within else None}


def measured(parts: Parts) -> dict[str, Any]:
    """What the result of a network tells that was not trained at all."""
    return {"epoch": 0, "test_accuracy": parts[0].accuracy, "test_loss": _finite(parts[0].loss), **_valid(parts, None)}


def result_record(
    config: RunConfig,
    trained: RunConfig,
    stage: Stage,
    last: Mapping[str, Any],
    searched: Mapping[str, Any] | None,
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
    *,
    steps: tuple[int, int],
    arithmetic: float | None,
    weighed: Mapping[str, Any],
) -> dict[str, Any]:
    """The final number of a dense net, a sparse one, a retrained ticket or a control.

    Args:
        config, trained: of the run, and of the data that the network was trained on, which may be others.
        stage: ``stage.round`` is the round that the ticket comes from.
        last: record of the training's last epoch, or of what was ``measured`` without one.
        searched: record of the last epoch of the round that found the ticket.
        counts, sizes: kept and all weights of each masked layer.
        steps: of an epoch of the search, and of an epoch of the training.
        arithmetic: of the training, and of the search for a ticket, in epochs of the dense net.
        weighed: multiply-adds and bytes of the network.
    """
    kept, total = sum(counts.values()), sum(sizes.values())
    dense = isinstance(config.method, Dense)
    supermask = config.supermask and stage.label is not None  # whose training is the search for it
    search = (1 if supermask else stage.round) * config.epochs
    if searched is None or searched["temperature"] is None or stage.label is not None or stage.transferred:
        searched = {}
    return {
        "kind": "result",
        "method": "ss" if config.supermask and config.method_name == "iss" else config.method_name,
        "setting": f"{config.setting} from {config.data}".lstrip() if stage.transferred else config.setting,
        "data": trained.data,
        "round": stage.round,
        "control": stage.label,
        "density": kept / total,
        "kept": kept,
        "maskable": total,
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "epochs_search": search,
        "epochs_total": search + last["epoch"],
        "steps_total": search * steps[0] + last["epoch"] * steps[1],
        "arithmetic": arithmetic,
        **weighed,
        "soft_accuracy": searched.get("test_accuracy"),
        "hard_accuracy": searched.get("hard_test_accuracy"),
        "soft_loss": searched.get("test_loss"),
        "hard_loss": searched.get("hard_test_loss"),
        "undecided": searched.get("undecided"),
        "dead_layers": [name for name, count in counts.items() if count == 0],
        "ticket": None if dense or stage.label else f"tickets/{ticket_name(stage.round)}",
        "layers": [{"name": name, "size": size, "kept": counts[name]} for name, size in sizes.items()],
        **_token(trained),
        **({"valid_loss": last["valid_loss"]} if "valid_loss" in last else {}),
        **({"found_on": config.data} if stage.transferred else {}),
    }


def ticket_name(round_: int) -> str:
    """Name of the file of a round's ticket; of the trained sparse network if there was no search, round 0."""
    return f"round-{round_:02d}.safetensors" if round_ else "trained.safetensors"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
