"""Measured beside published: same data, model and density, what is reduced or of other data, nothing unverified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_runs import beside_published, config, result, study, write
from rich.console import Console

from tombola.lab.errors import LabError
from tombola.lab.published import lookup, rows
from tombola.lab.report.leaderboard import Group, leaderboard, sources
from tombola.lab.report.page import read_summary, write_report
from tombola.lab.report.rows import Task
from tombola.lab.report.terminal import print_summary


def task_of(folder: Path) -> Task:
    (task,) = read_summary([folder]).tasks
    return task


def measured(groups: list[Group]) -> dict[tuple[str, float], str]:
    """Method and density of each measured line -> what is said of it."""
    return {(e.name.split()[0], round(e.density, 6)): e.origin for group in groups for e in group.entries if e.measured}


def test_the_same_data_model_and_density(tmp_path: Path) -> None:
    groups = leaderboard(task_of(beside_published(tmp_path)))
    assert [(round(group.density, 6), group.title.replace("\N{NO-BREAK SPACE}", " ")) for group in groups] == [
        (1.0, "dense"), (0.1, "about 10 % of the weights"), (0.05, "about 5 % of the weights"),
    ]  # fmt: skip  # of density 0.3 nothing is published
    for group in groups:
        accuracies = [entry.accuracy for entry in group.entries]
        assert accuracies == sorted(accuracies, reverse=True)
        published = lookup(data="cifar10", model="wrn_22_2", density=group.density)
        assert [entry.accuracy for entry in group.entries if not entry.measured] == [row.value for row in published]
    assert set(measured(groups)) == {("Dense", 1.0), ("RigL", 0.1), ("Static", 0.1), ("RigL", 0.05)}
    (rigl,) = [e for e in groups[1].entries if e.measured and e.name.startswith("RigL")]
    assert rigl.accuracy == pytest.approx(90.6)
    assert (rigl.shown.replace("\N{NO-BREAK SPACE}", " "), rigl.epochs, rigl.source) == ("90.6 ± 0.1", 30, "")
    (set_,) = [e for e in groups[1].entries if e.name == "SET 2×"]
    assert (set_.shown.replace("\N{NO-BREAK SPACE}", " "), set_.source) == ("83.3 ± 15.3", "zenodo.org/records/4835564")
    (small,) = [e for e in groups[1].entries if e.name == "Small-Dense"]
    assert small.shown == "89.0"  # as printed
    assert sources(groups).count("zenodo.org/records/4835564;") >= 1


def test_what_is_reduced_and_what_has_other_data(tmp_path: Path) -> None:
    said = measured(leaderboard(task_of(beside_published(tmp_path / "copy"))))
    assert {text.replace("\N{NO-BREAK SPACE}", " ") for text in said.values()} == {
        "measured here; reduced: 30 epochs, published from 250 on; other data: not the publisher’s own files"
    }
    for original in (True, None):
        said = measured(leaderboard(task_of(beside_published(tmp_path / f"{original}", original=original, epochs=250))))
        assert set(said.values()) == {"measured here"}
    said = measured(leaderboard(task_of(beside_published(tmp_path / "one", seeds=(4,), original=True, epochs=249))))
    assert said["RigL", 0.1].startswith("measured here; reduced: 249")
    assert said["RigL", 0.1].endswith("one seed, 4")


def test_retraining_counts_and_not_the_search(tmp_path: Path) -> None:
    """Epochs beside those of a paper are those of one training, however long the search for the ticket was."""
    record = result("imp", "keep=0.8", 6, 0.27, 0.9, epochs_search=6 * 85, epochs_total=7 * 85)
    write(tmp_path / "run", config({"kind": "imp", "keep": 0.8}, 0, data="cifar10", model="resnet20"), [record])
    task = task_of(tmp_path)
    assert task.rows[0].training.mean == 85
    (group,) = leaderboard(task)
    assert [(e.name, e.accuracy) for e in group.entries if not e.measured] == [
        ("IMP to initialisation, warm-up", 90.5),
    ]  # fmt: skip
    assert measured([group]) == {("IMP", 0.27): "measured here; one seed, 0"}


def test_an_error_stands_among_accuracies(tmp_path: Path) -> None:
    """RigL on LeNet is published as an error, and so are the dense nets of Frankle et al."""
    once = {"epochs_search": 0, "epochs_total": 200}
    lenet = result("rigl", "density=0.0213", 0, 0.0213, 0.983, **once)
    method = {"kind": "rigl", "density": 0.0213}
    write(tmp_path / "lenet", config(method, 0, data="folder/mnist", model="lenet_300_100"), [lenet])
    (group,) = leaderboard(task_of(tmp_path / "lenet"))
    lines = [(entry.name.replace("\N{NO-BREAK SPACE}", " "), entry.shown) for entry in group.entries]
    assert lines == [
        ("RigL, best epoch (error 1.44 %)", "98.56"), ("RigL, last epoch (error 1.48 %)", "98.52"),
        ("RigL density = 0.0213", "98.3"),
    ]  # fmt: skip
    assert group.entries[2].measured
    dense = result("dense", "", 0, 1.0, 0.9, epochs_search=0, epochs_total=85)
    for model, best in (("resnet20", ["91.7", "90.5", "90.0"]), ("vgg16", ["93.7", "90.0"])):
        write(tmp_path / model, config({"kind": "dense"}, 0, data="cifar10", model=model), [dense])
        (group,) = leaderboard(task_of(tmp_path / model))
        assert [entry.shown for entry in group.entries] == best
        said = sources([group])
    assert said == "Read in: Frankle et al. 2020, dense nets: public notes on the paper."


def test_what_is_from_memory_is_never_shown(tmp_path: Path) -> None:
    hidden = [row for row in rows() if not row.verified and row.data == "cifar10" and row.density]
    assert len({row.model for row in hidden}) >= 2
    for number, row in enumerate(hidden):
        name = f"cs-{number}"
        record = result("cs", f"s0={number}", 1, row.density or 1.0, 0.5, epochs_search=85, epochs_total=170)
        write(tmp_path / name, config({"kind": "cs", "n": number}, 0, data="cifar10", model=row.model), [record])
    shown = [
        entry for task in read_summary([tmp_path]).tasks for group in leaderboard(task) for entry in group.entries
    ]  # fmt: skip
    published = {(row.accuracy, row.paper) for row in rows() if row.verified}
    assert all(entry.measured or (entry.accuracy, entry.origin.partition(",")[0]) in published for entry in shown)
    page = write_report([tmp_path], tmp_path / "page.html").html.read_text()
    for row in hidden:
        if row.value not in {other.value for other in rows() if other.verified}:
            assert f"{row.value:g}" not in page.partition("Beside published numbers")[2].partition("<h3>")[0]
    assert "from memory" not in page


def test_most_tasks_have_none(tmp_path: Path) -> None:
    assert leaderboard(task_of(study(tmp_path, seeds=(0,)))) == []
    page = write_report([tmp_path], tmp_path / "page.html").html.read_text()
    assert "Beside published numbers" not in page


def test_other_widths_empty_nets_and_texts_are_left_out(tmp_path: Path) -> None:
    task = task_of(beside_published(tmp_path))
    for change in ({"width": 0.5}, {"token": "byte"}, {"density": replace(task.rows[0].density, mean=0.0)}):
        assert leaderboard(replace(task, rows=tuple(replace(row, **change) for row in task.rows))) == []
    narrow = config({"kind": "dense"}, 0, data="cifar10", model="wrn_22_2") | {"width": 0.5}
    write(tmp_path / "narrow", narrow, [result("dense", "width=0.5", 0, 1.0, 0.9, epochs_search=0, epochs_total=30)])
    assert len(measured(leaderboard(task_of(tmp_path)))) == 4


def test_wider_nets_stand_beside_wider_ones(tmp_path: Path) -> None:
    for width in (1.0, 1.98):
        record = result("rigl", "density=0.25", 0, 0.25, 0.75, epochs_search=0, epochs_total=500)
        settings = config({"kind": "rigl", "density": 0.25}, 0, data="folder/imagenet", model="mobilenet_v1")
        write(tmp_path / f"{width}", settings | {"width": width}, [record])
    usual, wide = leaderboard(task_of(tmp_path))
    assert (usual.width, wide.width) == (1, 1.98)
    assert wide.title.replace("\N{NO-BREAK SPACE}", " ") == "about 25 % of the weights, width 1.98"
    assert [entry.accuracy for entry in wide.entries] == [77.0, 76.4, 75.0]
    assert {entry.accuracy for entry in usual.entries} >= {71.9, 71.5, 66.0, 75.0}


def test_on_the_terminal_and_on_the_page(tmp_path: Path) -> None:
    summary = read_summary([beside_published(tmp_path)])
    console = Console(record=True, width=150, file=(tmp_path / "out").open("w"))
    print_summary(summary, console)
    said = console.export_text().replace("\N{NO-BREAK SPACE}", " ")
    console.file.close()
    page = write_report([tmp_path], tmp_path / "page.html").html.read_text().replace("\N{NO-BREAK SPACE}", " ")
    for text in (said, page):
        for words in (
            "Beside published numbers", "about 10 % of the weights", "Evci et al. 2020, WRN-22-2 figure",
            "github.com/google-research/rigl/issues/8", "reduced: 30 epochs, published from 250 on",
        ):  # fmt: skip
            assert words in text
    assert page.count('<tr class="measured"') == 4


def test_a_damaged_record_of_the_data(tmp_path: Path) -> None:
    folder = beside_published(tmp_path, seeds=(0,)) / "rigl-wrn_22_2-cifar10-s0-0.1"
    (folder / "done.json").unlink()
    metrics = folder / "metrics.jsonl"
    metrics.write_text(json.dumps({"kind": "data", "original": "no"}) + "\n" + metrics.read_text())
    with pytest.raises(LabError, match=r"metrics.jsonl:1: original is 'no', must be bool"):
        read_summary([tmp_path])
