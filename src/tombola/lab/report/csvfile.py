"""The summary as CSV: one line for each setting and round, and one for each of its controls, nothing rounded.

``epochs`` are those of a ticket alone, ``epochs_in_all`` those of the whole curve as far as it: see `Row`.
"""

from __future__ import annotations

import csv
import io

from tombola.lab.report.rows import Row, Stat, Summary

COLUMNS = (
    "data",
    "model",
    "method",
    "setting",
    "round",
    "control",
    "found_on",
    "density",
    "density_sd",
    "kept_by_seed",
    "maskable",
    "scale",
    "test_accuracy",
    "test_accuracy_sd",
    "test_loss",
    "valid_loss",
    "seeds",
    "epochs",
    "epochs_in_all",
    "arithmetic_in_dense_epochs",
    "settings_tried",
    "multiply_adds",
    "bytes",
    "wall_seconds",
    "soft_accuracy",
    "hard_accuracy",
    "soft_hard_gap",
    "soft_loss",
    "hard_loss",
    "undecided",
    "dead_layers",
)


def csv_text(summary: Summary) -> str:
    """All rows of all tasks; accuracies and densities are fractions, lists are separated by spaces."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")  # what a line does not have stays empty
    writer.writeheader()
    for task in summary.tasks:
        for row in task.rows:
            writer.writerow(_line(row, "", row.accuracy) | _search(row))
            for control, accuracy in row.controls.items():
                writer.writerow(_line(row, control, accuracy))
    return buffer.getvalue()


def _line(row: Row, control: str, accuracy: Stat) -> dict[str, object]:
    """A ticket, or its control."""
    return {
        "data": row.data,
        "model": row.model,
        "method": row.method,
        "setting": row.setting,
        "round": row.round,
        "control": control,
        "found_on": row.found_on,
        "density": row.density.mean,
        "density_sd": _sd(row.density),
        "kept_by_seed": " ".join(map(str, row.kept)),
        "maskable": row.maskable,
        "scale": row.label,
        "test_accuracy": accuracy.mean,
        "test_accuracy_sd": _sd(accuracy),
        "seeds": " ".join(map(str, row.seeds)),
    }


def _search(row: Row) -> dict[str, object]:
    """What the search of a ticket cost, and how decided it was."""
    return {
        "epochs": f"{row.epochs.mean:g}",
        "epochs_in_all": f"{row.epochs_all.mean:g}",
        "arithmetic_in_dense_epochs": _mean(row.arithmetic),
        "settings_tried": row.tried,
        "multiply_adds": _mean(row.multiply_adds),
        "bytes": _mean(row.bytes),
        "wall_seconds": _mean(row.seconds),
        "test_loss": _mean(row.loss),
        "valid_loss": _mean(row.valid),
        "soft_accuracy": _mean(row.soft),
        "hard_accuracy": _mean(row.hard),
        "soft_hard_gap": _mean(row.gap),
        "soft_loss": _mean(row.soft_loss),
        "hard_loss": _mean(row.hard_loss),
        "undecided": _mean(row.undecided),
        "dead_layers": " ".join(row.dead),
    }


def _sd(value: Stat) -> object:
    return "" if value.sd is None else value.sd


def _mean(value: Stat | None) -> object:
    return "" if value is None else value.mean
