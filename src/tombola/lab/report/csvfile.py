"""The summary as CSV: one line for each setting and round, and one for each of its controls, nothing rounded."""

from __future__ import annotations

import csv
import io

from tombola.lab.report.summary import Row, Stat, Summary

COLUMNS = (
    "data",
    "model",
    "method",
    "setting",
    "round",
    "control",
    "density",
    "density_sd",
    "kept_by_seed",
    "maskable",
    "test_accuracy",
    "test_accuracy_sd",
    "seeds",
    "epochs",
    "epochs_with_every_initial_score",
    "initial_scores_tried",
    "soft_accuracy",
    "hard_accuracy",
    "soft_hard_gap",
    "undecided",
    "dead_layers",
)


def csv_text(summary: Summary) -> str:
    """All rows of all tasks; accuracies and densities are fractions, lists are separated by spaces."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for task in summary.tasks:
        for row in task.rows:
            writer.writerow(_line(row, "", row.accuracy))
            for control, accuracy in row.controls.items():
                writer.writerow(_line(row, control, accuracy))
    return buffer.getvalue()


def _line(row: Row, control: str, accuracy: Stat) -> list[object]:
    about: list[object] = [row.data, row.model, row.method, row.setting, row.round, control]
    size = [row.density.mean, _sd(row.density), " ".join(map(str, row.kept)), row.maskable]
    reached = [accuracy.mean, _sd(accuracy), " ".join(map(str, row.seeds))]
    spent = [f"{row.epochs.mean:g}", f"{row.epochs_all.mean:g}", row.tried]
    state = [_mean(row.soft), _mean(row.hard), _mean(row.gap), _mean(row.undecided), " ".join(row.dead)]
    return about + size + reached + (["", "", ""] if control else spent) + (["", "", "", "", ""] if control else state)


def _sd(value: Stat) -> object:
    return "" if value.sd is None else value.sd


def _mean(value: Stat | None) -> object:
    return "" if value is None else value.mean
