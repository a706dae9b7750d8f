"""What the report's figures show of trainings: their numbers, what is left out, and the files for a paper."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_runs import config as settings
from fabricated_runs import epoch, followed, result, study, trainings, write
from matplotlib.figure import Figure

from tombola.lab.cli.main import run
from tombola.lab.errors import LabError
from tombola.lab.report import curves, panels
from tombola.lab.report.bars import EDGES, undecided
from tombola.lab.report.figures import DENSITY, draw, series_of, views
from tombola.lab.report.page import read_summary, write_report
from tombola.lab.report.paper import _drawn, files, pictures
from tombola.lab.report.reading import read_run
from tombola.lab.report.rows import Summary, Task
from tombola.lab.report.svg import INK
from tombola.lab.runs import watch


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return read_summary([followed(tmp_path_factory.mktemp("followed"))])


@pytest.fixture
def task(summary: Summary) -> Task:
    (only,) = summary.tasks
    return only


def keys(task: Task, summary: Summary) -> list[list[str]]:
    return [[look.key for look in panel.looks] for panel in panels.panels(task, summary.runs)]


# ---- numbers


def test_training_curves_are_means_over_seeds(task: Task, summary: Summary) -> None:
    found = curves.training(task, summary.runs, lambda epoch: epoch.accuracy)
    assert [curve.row.method for curve in found] == ["dense", "cs", "cs", "imp", "gmp", "rigl"]
    assert found[0].series is None
    firsts = {"dense": 0.44, "gmp": 0.35, "rigl": 0.3}
    for curve in found:
        if curve.row.trained or curve.row.dense:
            assert curve.epochs == (1, 2, 3, 4)
            for number, value in zip(curve.epochs, curve.values, strict=True):
                seeds = [firsts[curve.row.method] + 0.1 * number + 0.02 * seed for seed in (0, 1)]
                assert value.mean == pytest.approx(statistics.fmean(seeds))
                assert value.sd == pytest.approx(statistics.stdev(seeds))
    losses = curves.training(task, summary.runs, lambda epoch: epoch.train_loss)
    assert [value.mean for value in losses[0].values] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_tickets_are_shown_while_they_are_retrained(task: Task, summary: Summary) -> None:
    found = curves.training(task, summary.runs, lambda epoch: epoch.accuracy)
    cs = next(curve for curve in found if curve.row.method == "cs")
    assert cs.row.round == 1
    assert cs.values[-1].mean == pytest.approx(0.45 + 0.4 + 0.01)
    imp = next(curve for curve in found if curve.row.method == "imp")
    assert imp.row.round == 1  # trained in the round that searches for the second ticket
    assert imp.values[-1].mean == pytest.approx(0.5 + 0.4 + 0.01)


def test_searches_are_drawn_round_after_round(task: Task, summary: Summary) -> None:
    found = {curve.row.method: curve for curve in curves.searching(task, summary.runs)}
    assert sorted(found) == ["cs", "imp"]
    assert found["cs"].epochs == found["imp"].epochs == tuple(range(1, 9))
    assert [value.mean for value in found["cs"].values] == pytest.approx([0.36] * 4 + [0.46] * 4)  # the hard mask's
    assert found["imp"].values[4].mean == pytest.approx(0.5 + 0.1 + 0.01)


def test_moves_are_shares_of_what_was_there(task: Task, summary: Summary) -> None:
    dropped = {c.row.method: c for c in curves.moves(task, summary.runs, lambda moved: moved.dropped)}
    grown = {c.row.method: c for c in curves.moves(task, summary.runs, lambda moved: moved.grown)}
    assert sorted(dropped) == sorted(grown) == ["gmp", "rigl"]
    assert [value.mean for value in dropped["rigl"].values] == pytest.approx([0.3, 0.15, 0.1, 0.075])
    assert [value.mean for value in grown["rigl"].values] == pytest.approx([0.3, 0.15, 0.1, 0.075])
    assert [value.mean for value in dropped["gmp"].values] == pytest.approx([0.1] * 4)
    assert [value.mean for value in grown["gmp"].values] == [0.0] * 4


def test_histograms_of_scores(task: Task, summary: Summary) -> None:
    found = curves.histograms(task, summary.runs)
    assert [[(scores.name[-4:], scores.round) for scores in row] for row in found] == [
        [("0.05", 1), ("0.05", 2)],
        [("0.05", 1), ("0.05", 2)],
    ]
    assert [undecided(scores) for scores in found[0]] == pytest.approx([0.16, 0.32])
    assert list(EDGES[1:-1]) == watch.EDGES.tolist()
    assert len(EDGES) - 1 == curves.BINS == len(watch.histogram({}, 1.0))


def test_of_many_rounds_some_are_shown(tmp_path: Path) -> None:
    scores = [1] * curves.BINS
    records = [epoch("search", n, 1, 0.5, scores=scores) for n in range(1, 31)] + [result("iss", "", 30, 0.1, 0.5)]
    write(tmp_path / "run", settings({"kind": "iss"}, 0), records)
    summary = read_summary([tmp_path])
    (row,) = curves.histograms(summary.tasks[0], summary.runs)
    assert [scores.round for scores in row] == [1, 7, 13, 18, 24, 30]


def test_only_what_all_seeds_measured_is_averaged(tmp_path: Path) -> None:
    for seed, numbers in enumerate([(2, 4, 5), (1, 2, 3, 4, 5)]):
        records = [epoch("train", 0, n, 0.1 * n) for n in numbers] + [result("set", "", 0, 0.1, 0.5)]
        write(tmp_path / str(seed), settings({"kind": "set"}, seed), records)
    summary = read_summary([tmp_path])
    (curve,) = curves.training(summary.tasks[0], summary.runs, lambda epoch: epoch.accuracy)
    assert curve.epochs == (2, 4, 5)


def test_methods_of_a_task_have_inks_of_their_own(task: Task) -> None:
    """RigL and CS would have the same one if they were alone, IMP and GMP another."""
    inks = {series.method: series.ink for series in series_of(task)}
    assert len(set(inks.values())) == len(inks) == 4
    assert inks["cs"] == INK["s1"]  # of two that want one the first has it
    assert {series.ink for series in series_of(task) if series.method == "cs"} == {INK["s1"]}


def test_the_dense_bar_is_solid_whatever_it_is_called(tmp_path: Path) -> None:
    nothing = {"ticket": None, "epochs_search": 0}
    for epochs, accuracy in ((10, 0.9), (20, 0.95)):
        for seed in (0, 1):
            record = result("dense", "", 0, 1.0, accuracy + 0.01 * seed, epochs_total=epochs, **nothing)
            write(tmp_path / f"d{epochs}{seed}", settings({"kind": "dense"}, seed) | {"epochs": epochs}, [record])
    write(tmp_path / "s", settings({"kind": "set"}, 0), [result("set", "", 0, 0.1, 0.8)])
    (task,) = read_summary([tmp_path]).tasks
    assert task.dense is not None
    assert task.dense.setting == "epochs=20"
    axes = Figure().add_subplot()
    draw(axes, task, DENSITY)
    (bar,) = [line for line in axes.lines if line.get_color() == INK["dense"]]
    assert bar.get_linestyle() == "-"
    assert list(bar.get_ydata()) == pytest.approx([0.955, 0.955])
    assert len(axes.patches) == 1  # the band


# ---- what is there, and what is not


def test_each_figure_and_its_views(task: Task, summary: Summary) -> None:
    assert keys(task, summary) == [
        ["accuracy-density"],
        ["accuracy-epochs-spent", "accuracy-arithmetic"],
        ["training-accuracy", "training-loss", "search-accuracy"],
        ["connections-dropped", "connections-grown"],
        ["scores"],
    ]


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    old = read_summary([study(tmp_path / "old", seeds=(0,))])
    assert keys(old.tasks[0], old) == [["accuracy-density"], ["accuracy-epochs-spent"]]
    text = write_report([tmp_path / "old"]).html.read_text()
    assert text.count("<figure>") == 2
    assert "<fieldset" not in text
    once = read_summary([trainings(tmp_path / "once", seeds=(0,))])
    assert keys(once.tasks[0], once) == [["accuracy-density"], ["accuracy-arithmetic", "accuracy-epochs-spent"]]
    folder = tmp_path / "bare" / "run"
    records = [epoch("train", 0, 1, 0.4), result("rigl", "density=0.1", 0, 0.1, 0.5)]
    for key in ("label", "hard_test_accuracy"):
        del records[0][key]
    write(folder, settings({"kind": "rigl"}, 0), records)
    bare = read_summary([tmp_path / "bare"])
    assert keys(bare.tasks[0], bare)[-1] == ["training-accuracy", "training-loss"]


def test_dense_alone_has_no_figure(tmp_path: Path) -> None:
    write(tmp_path / "d", settings({"kind": "dense"}, 0), [epoch("train", 0, 1, 0.5), result("dense", "", 0, 1.0, 0.9)])
    text = write_report([tmp_path]).html.read_text()
    assert "<figure" not in text
    assert 'class="filters"' not in text  # nothing to choose between


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1, -1]}, "scores must be counts"),
        ({"scores": {"a": 1}}, "scores is {'a': 1}, must be list"),
        ({"moved": {"fc": {"kept": 1, "grown": 0}}}, "has no dropped"),
        ({"test_accuracy": "high"}, "test_accuracy is 'high', must be int or float"),
    ],
)
def test_a_damaged_epoch_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    write(
        tmp_path / "run", settings({"kind": "set"}, 0), [epoch("train", 0, 1, 0.5), epoch("train", 0, 2, 0.5) | change]
    )
    with pytest.raises(LabError, match=r"metrics\.jsonl:2: ") as error:
        read_run(tmp_path / "run")
    assert message in str(error.value)


def test_arithmetic_leaves_out_what_is_not_counted(tmp_path: Path) -> None:
    summary = read_summary([trainings(tmp_path, seeds=(0,))])
    (task,) = summary.tasks
    uncounted = replace(task, rows=tuple(replace(row, arithmetic=None) for row in task.rows))
    assert [view.what for view in views(uncounted)] == ["epochs spent"]
    rows = tuple(replace(row, arithmetic=None) if row.method == "static" else row for row in task.rows)
    arithmetic, _ = views(replace(task, rows=rows))
    assert [row.method for row in rows if not row.dense and arithmetic.place(row) is None] == ["static", "static"]


def test_every_part_knows_its_method(task: Task, summary: Summary) -> None:
    """So that the filter hides all of it: no ink of a method is left outside."""
    text = write_report(
        [run.folder for run in summary.runs], summary.runs[0].folder.parent / "page.html"
    ).html.read_text()
    figures = re.findall(r'<svg role="img".*?</svg>', text, re.DOTALL)
    assert len(figures) == 9
    for figure in figures:
        parts, opened, inks = [], 0, []
        for tag in re.finditer(r"<g\b([^>]*)>|</g>|<(?:use|path|text)\b[^>]*style=\"([^\"]*)\"", figure):
            if tag[0] == "</g>":
                parts.pop()
            elif tag[0].startswith("<g"):
                opened += 1
                parts.append("data-method" in tag[1])
            elif re.search(r"var\(--s\d\)", tag[2]):
                inks.append(any(parts))
        assert inks
        assert all(inks)


# ---- files


def test_every_figure_has_files(summary: Summary) -> None:
    found = dict(pictures(summary))
    assert sorted(found) == [
        f"conv_digits-on-digits-{key}"
        for key in (
            "accuracy-arithmetic", "accuracy-density", "accuracy-epochs-spent", "connections-dropped",
            "connections-grown", "layers", "scores", "search-accuracy", "training-accuracy", "training-loss",
        )
    ]  # fmt: skip
    heads = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    for key in ("accuracy-density", "scores", "layers"):
        look = found[f"conv_digits-on-digits-{key}"]
        contents = dict(files(look))
        assert [content.startswith(heads[suffix]) for suffix, content in contents.items()] == [True] * 3
        for content in contents.values():
            assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate|D:20\d\d", content)
        assert b"var(--" not in contents["svg"]
        assert INK["s1"].encode() in contents["svg"]  # a real colour
        if key == "scores":
            assert contents == dict(files(look))


LONG = "SS width = 0.25 schedule = constant penalty = 1e-11 seed"


@pytest.mark.parametrize("length", [10, 40, 55])
def test_a_legend_stays_inside_its_figure(length: int, summary: Summary) -> None:
    _, look = next(pictures(summary))
    figure = _drawn(replace(look, legend=tuple(replace(entry, text=LONG[:length]) for entry in look.legend)))
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 <= figure.bbox.height


def test_files_of_two_tasks_never_meet(tmp_path: Path) -> None:
    for place, model in enumerate(("a/b:net", "a b:net")):
        write(tmp_path / str(place), settings({"kind": "set"}, 0, model=model), [result("set", "", 0, 0.1, 0.5)])
    found = [name for name, _ in pictures(read_summary([tmp_path])) if "density" in name]
    assert found == ["a-b-net-on-digits-accuracy-density", "a-b-net-on-digits-accuracy-density-2"]


def test_figures_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs" / "r", settings({"kind": "set"}, 0), [result("set", "", 0, 0.1, 0.5)])
    (tmp_path / "file").write_text("")
    assert run(["report", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]) == 0
    assert f"Figures: {tmp_path / 'figures'}" in capsys.readouterr().out
    names = ("accuracy-density", "accuracy-epochs-spent", "layers")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"conv_digits-on-digits-{name}.{suffix}" for name in names for suffix in ("pdf", "png", "svg")
    ]
    with pytest.raises(LabError, match=r"cannot be written: Not a directory; choose another place with --figures"):
        write_report([tmp_path / "runs"], figures_folder=tmp_path / "file" / "figures")
    write(tmp_path / "dense" / "d", settings({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.5)])
    with pytest.raises(LabError, match=r"figures: there is no sparse network to draw yet"):
        write_report([tmp_path / "dense"], figures_folder=tmp_path / "figures")
