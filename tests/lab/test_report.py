"""The report: what it reads, what it says, and the page it writes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricated_runs import EPOCHS, MASKABLE, config, result, study, trainings, write
from matplotlib.figure import Figure
from rich.console import Console

from tombola.lab.errors import LabError
from tombola.lab.report.columns import cost_columns, result_columns
from tombola.lab.report.experiments import Experiment, experiments, remember
from tombola.lab.report.figures import DENSITY, draw, entries
from tombola.lab.report.findings import account, findings, matching, trust
from tombola.lab.report.labels import EndLabel, label_ends
from tombola.lab.report.page import read_summary, write_report
from tombola.lab.report.reading import find_runs, read_run
from tombola.lab.report.rows import Row, Task
from tombola.lab.report.svg import INK
from tombola.lab.report.terminal import print_summary
from tombola.lab.report.words import percent

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.urls: list[str] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "action", "data", "poster", "srcset", "xlink:href"}:
                self.urls.append(value or "")
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "aria-labelledby":
                self.references.append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data


def task_of(folder: Path) -> Task:
    (task,) = read_summary([folder]).tasks
    return task


def row_of(task: Task, method: str, setting: str, round_: int) -> Row:
    (row,) = [r for r in task.rows if (r.method, r.setting, r.round) == (method, setting, round_)]
    return row


def test_groups_over_seeds(tmp_path: Path) -> None:
    accuracies = [0.95, 0.96, 0.98]
    for seed, accuracy in enumerate(accuracies):
        settings = config({"kind": "imp", "keep": 0.8}, seed)
        more = {"control_rounds": [1]} if seed == 0 else {}  # controls for one seed only make no other setting
        records = [result("imp", "keep=0.8", 1, 0.8 + 0.01 * seed, accuracy)]
        if seed == 0:
            records.append(records[0] | {"control": "shuffled", "test_accuracy": 0.9})
        write(tmp_path / f"s{seed}", settings | more, records)
    row = row_of(task_of(tmp_path), "imp", "keep=0.8", 1)
    assert row.seeds == (0, 1, 2)
    assert row.accuracy.mean == pytest.approx(statistics.fmean(accuracies))
    assert row.accuracy.sd == pytest.approx(statistics.stdev(accuracies))
    assert row.density.mean == pytest.approx(0.81)
    assert (row.controls["shuffled"].mean, row.controls["shuffled"].n, row.controls["shuffled"].sd) == (0.9, 1, None)


def test_what_a_ticket_costs_and_what_the_whole_curve_does(tmp_path: Path) -> None:
    """By hand: a round and a retraining take 20 epochs each, and three initial scores were tried."""
    written = write_report([study(tmp_path)])
    (task,) = written.summary.tasks
    for round_, alone, in_all in ((1, 40, 3 * 40), (2, 60, 3 * 80), (3, 80, 3 * 120)):
        row = row_of(task, "cs", "s0=0.05", round_)
        assert (row.epochs.mean, row.epochs_all.mean, row.tried) == (alone, in_all, 3)
    row = row_of(task, "cs", "density=0.05", 1)
    assert (row.epochs.mean, row.epochs_all.mean, row.tried) == (40, 40, 1)
    row = row_of(task, "imp", "keep=0.8", 12)  # the next round has trained each of the tickets before
    assert (row.epochs.mean, row.epochs_all.mean, row.tried) == (260, 260, 1)
    lines = [line for line in csv.DictReader(io.StringIO(written.csv.read_text())) if not line["control"]]
    (second,) = [line for line in lines if (line["setting"], line["round"]) == ("s0=0.05", "2")]
    assert [second[key] for key in ("epochs", "epochs_in_all", "settings_tried")] == ["60", "240", "3"]
    page = Page(written.html.read_text())
    head = next(row for row in page.rows if row[0] == "method" and "epochs" in row)
    mine = [
        row for row in page.rows if len(row) == len(head) and row[0].replace("\N{NO-BREAK SPACE}", "") == "CS s₀=0.05"
    ]
    (cells,) = [row for row in mine if row[1] == "2"]
    assert [cells[head.index(name)] for name in ("epochs", "epochs in all")] == ["60", "240"]
    assert "the training of every ticket on the way" in " ".join(page.words.split())


def test_tickets_that_go_on_with_their_weights_are_retrained_for_the_curve(tmp_path: Path) -> None:
    for name, more in (("imp", {}), ("imp-c", {"rewind": False})):
        records = [result("imp", "keep=0.8", round_, 0.8**round_, 0.9) for round_ in (1, 2, 3)]
        write(tmp_path / name, config({"kind": "imp", "keep": 0.8, **more}, 0), records)
    spent = {
        (row.setting, row.round): (row.epochs.mean, row.epochs_all.mean) for row in task_of(tmp_path).rows
    }  # fmt: skip
    rewinding, going_on = sorted({setting for setting, _ in spent}, key=lambda setting: "False" in setting)
    assert [spent[rewinding, round_] for round_ in (1, 2, 3)] == [(40, 40), (60, 60), (80, 80)]
    assert [spent[going_on, round_] for round_ in (1, 2, 3)] == [(40, 40), (60, 80), (80, 120)]


def test_every_number_of_a_method_that_was_tried_counts(tmp_path: Path) -> None:
    """Whichever it is; but no density, which is asked for, no other rule, and no length of a dense training."""
    once = {"epochs_search": 0, "epochs_total": EPOCHS}
    methods: list[tuple[dict[str, object], str]] = [
        *(({"kind": "cs", "initial_score": 0.0, "density": None, "penalty": p}, "s0=0") for p in (1e-7, 1e-9, 1e-11)),
        ({"kind": "cs", "initial_score": 0.0, "density": 0.1, "penalty": 1e-7}, "density=0.1"),
        ({"kind": "cs", "initial_score": 0.0, "density": None, "penalty": 1e-7, "scale": "initial"}, "s0=0"),
        *(
            ({"kind": "rigl", "density": d, "drop_fraction": f}, f"density={d:g}")
            for d in (0.1, 0.2)
            for f in (0.1, 0.3)
        ),
        *(({"kind": "dense", "times": times}, "") for times in (1, 2, 3)),
    ]
    for seed in (0, 1):
        for place, (method, setting) in enumerate(methods):
            record = result(str(method["kind"]), setting, 0, 0.5, 0.9, **once)
            write(tmp_path / f"{place}-{seed}", config(method, seed), [record])
    tried = sorted((row.method, row.asked or 0, row.tried, row.epochs_all.mean) for row in task_of(tmp_path).rows)
    assert tried == [
        ("cs", 0, 1, 20), *[("cs", 0, 3, 60)] * 3, ("cs", 0.1, 1, 20), *[("dense", 0, 1, 20)] * 3,
        *[("rigl", 0.1, 2, 40)] * 2, *[("rigl", 0.2, 2, 40)] * 2,
    ]  # fmt: skip


def test_texts_have_bits_and_perplexity(tmp_path: Path) -> None:
    for seed, bits in enumerate((1.5, 1.7)):
        more = {"test_loss": bits * math.log(2), "token": "byte", "epochs_search": 0}
        settings = config({"kind": "rigl", "density": 0.1}, seed, data="text/poems")
        write(tmp_path / str(seed), settings, [result("rigl", "density=0.1", 0, 0.1, 0.5, **more)])
    write(tmp_path / "digits", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.9)])
    summary = read_summary([tmp_path])
    said = {column.name: [column.text(row) for task in summary.tasks for row in task.rows] for column in
            result_columns(summary.tasks)}  # fmt: skip
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in said["bits per byte"]] == ["1.600 ± 0.141", ""]
    assert said["perplexity"] == [f"{2**1.6:.4g}", ""]
    (only,) = (task for task in summary.tasks if task.data == "digits")
    assert not {"bits per byte", "perplexity"} & {column.name for column in result_columns([only])}
    page = Page(write_report([tmp_path], tmp_path / "page.html").html.read_text())
    assert "bits per byte" in page.words
    losses = [line["test_loss"] for line in csv.DictReader((tmp_path / "page.csv").read_text().splitlines())]
    assert [float(loss) for loss in losses] == pytest.approx([1.6 * math.log(2), 0.1])


def test_swept_settings_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    scores = [-0.3, -0.1, -0.05, 0.0, 0.02, 0.1]
    for score in scores[::-1]:
        settings = config({"kind": "cs", "initial_score": score}, 0)
        write(tmp_path / str(score), settings, [result("cs", f"s0={score:g}", 1, 0.5, 0.9)])
    assert [row.setting for row in task_of(tmp_path).rows] == [f"s0={score:g}" for score in scores]


def test_settings_that_share_a_label_are_told_apart(tmp_path: Path) -> None:
    for epochs in (20, 40):
        settings = config({"kind": "imp", "keep": 0.8}, 0) | {"epochs": epochs}
        write(tmp_path / str(epochs), settings, [result("imp", "keep=0.8", 1, 0.8, 0.9)])
    assert {row.setting for row in task_of(tmp_path).rows} == {"keep=0.8 epochs=20", "keep=0.8 epochs=40"}


def test_findings_follow_the_numbers(tmp_path: Path) -> None:
    task = task_of(study(tmp_path))
    best = matching(task.tickets)
    assert task.dense is not None
    assert best is not None
    assert best.accuracy.mean >= task.dense.accuracy.mean
    sparser = [row for row in task.tickets if row.density.mean < best.density.mean]
    assert sparser
    assert all(row.accuracy.mean < task.dense.accuracy.mean for row in sparser)
    sparsest, asked, controls = findings(task)
    assert sparsest.number == percent(best.density.mean)
    assert best.name in sparsest.text
    assert asked.number == f"{round(0.05 * MASKABLE):,}"
    assert "Exactly so in all 3 seeds" in asked.text
    assert controls.number.startswith("+")


def test_findings_own_up_to_a_loss(tmp_path: Path) -> None:
    write(tmp_path / "dense", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.97)])
    method = {"kind": "cs", "initial_score": 0.0, "density": 0.1}
    record = result("cs", "density=0.1", 1, 0.12, 0.9, kept=1630)
    worse = record | {"control": "shuffled", "test_accuracy": 0.95}
    write(tmp_path / "cs", config(method, 0), [record, worse])
    none, asked, controls = findings(task_of(tmp_path))
    assert none.number == "none"
    assert "97.0" in none.text
    assert "90.0" in none.text
    assert asked.text.startswith("That is 272 off at most")
    assert controls.number == "−5.0 points"


def test_account_names_what_was_run(tmp_path: Path) -> None:
    study(tmp_path)
    text = account(read_summary([tmp_path]))
    for part in ("conv_digits", "digits", "s₀ = −0.05", "density = 0.05", "14 rounds", "0, 1 and 2"):
        assert part in text.replace("\N{NO-BREAK SPACE}", " ")


def test_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    study(tmp_path / "runs", model="lenet_300_100")
    written = write_report([tmp_path / "runs"], commands=["tombola search --out runs"])
    assert written.html == tmp_path / "runs" / "report.html"
    text = written.html.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert all(url.startswith("#") or url == "data:," for url in page.urls)
    assert not re.search(r"https?:|//[a-z]|@import|xmlns|@font-face", text.replace("</", ""))
    assert "DejaVu Sans'" not in text  # figures are in the page's own font
    shown = [row for row in page.rows if row[:1] in (["conv_digits"], ["lenet_300_100"])]
    assert len(shown) == sum(len(task.rows) for task in written.summary.tasks) == 2 * 26
    for row, cells in zip([r for task in written.summary.tasks for r in task.rows], shown, strict=True):
        assert cells[1] == row.name
        assert cells[4].startswith(f"{100 * row.accuracy.mean:.1f}")
        assert cells[5] == ("✓" if row.good else "")
    assert "tombola search --out runs" in page.words
    assert "conv1.weight has no weight left" in page.words
    assert text.count('role="img"') == 4
    for sentinel in re.findall(r"#[0-9a-f]{6}\b", text[text.index("</style>") :]):
        pytest.fail(f"{sentinel}: a colour that no theme changes")


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    pages = [write_report([tmp_path / "runs"], tmp_path / name).html.read_bytes() for name in ("a.html", "b.html")]
    assert pages[0].replace(b"a.csv", b"b.csv") == pages[1]


def test_csv_holds_the_same_numbers(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    written = write_report([tmp_path / "runs"])
    assert written.csv == tmp_path / "runs" / "results.csv"
    lines = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    (task,) = written.summary.tasks
    own = [line for line in lines if not line["control"]]
    assert len(own) == len(task.rows)
    assert len(lines) - len(own) == sum(len(row.controls) for row in task.rows)
    for line, row in zip(own, task.rows, strict=True):
        assert (line["method"], line["setting"], int(line["round"])) == (row.method, row.setting, row.round)
        assert float(line["test_accuracy"]) == row.accuracy.mean
        assert [int(kept) for kept in line["kept_by_seed"].split()] == list(row.kept)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> $x_1$ & {{ 7*7 }}"
    settings = config({"kind": "imp", "keep": 0.8}, 0, data=evil, model="m:<b>net</b>")
    record = result("imp", "keep=<i>0.8", 1, 0.8, 0.9, layers=[{"name": "<u>w", "size": 10, "kept": 0}])
    write(tmp_path / "runs", settings, [record, {"kind": "warning", "text": "</li><img src=x onerror=alert(2)>"}])
    text = write_report([tmp_path / "runs"]).html.read_text()
    page = Page(text)
    for tag in ("<script>alert", "<b>", "<i>", "<u>", "<img"):
        assert tag not in text
    assert evil in page.words
    assert "m:<b>net</b>" in page.words


def test_unfinished_runs_count_for_what_they_have(tmp_path: Path) -> None:
    records = [result("imp", "keep=0.8", r, 0.8**r, 0.9) for r in (1, 2)]
    folder = write(tmp_path / "runs" / "imp", config({"kind": "imp"}, 0), records, done=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "result", "meth')  # killed while writing
    write(tmp_path / "runs" / "empty", config({"kind": "dense"}, 0), [], done=False)
    written = write_report([tmp_path / "runs"])
    assert len(written.summary.unfinished) == 2
    assert [row.round for row in written.summary.tasks[0].rows] == [1, 2]
    assert "2 of 2" in Page(written.html.read_text()).words


def test_a_page_without_a_result(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", config({"kind": "dense"}, 0), [], done=False)
    (folder / "metrics.jsonl").unlink()
    assert "No result yet" in Page(write_report([tmp_path]).html.read_text()).words


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "", "config.json: not readable as JSON"),
        ("config.json", "[1]", "holds list, not a JSON object"),
        ("config.json", "{}", "config.json: data is None"),
        ("config.json", '{"data": "d", "model": "m"}', "config.json: has no seed (int)"),
        ("config.json", '{"data": "d", "model": "m", "seed": "0"}', "seed is '0', must be int"),
        ("done.json", "{}", "done.json: is damaged (KeyError('metrics_sha256'))"),
        ("metrics.jsonl", "{}\n", "was changed after the run was finished"),
        ("metrics.jsonl", None, "was changed after the run was finished"),
    ],
)
def test_damaged_finished_run(tmp_path: Path, file: str, content: str | None, says: str) -> None:
    folder = write(tmp_path / "run", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.9)])
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(LabError, match=re.escape(says)) as caught:
        write_report([tmp_path])
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test_accuracy": 97.0}, ":1: test_accuracy is 97.0, must be in [0, 1]"),
        ({"density": None}, ":1: density is None, must be int or float"),
        ({"kept": True}, ":1: kept is True, must be int"),
        ({"layers": [3]}, ":1: an entry of layers is int, must be an object"),
        ({"layers": [{"name": "a", "size": 3}]}, ":1: has no kept (int)"),
        ({"method": None}, ":1: method is None, must be str"),
    ],
)
def test_damaged_record(tmp_path: Path, change: dict[str, object], says: str) -> None:
    record = result("imp", "keep=0.8", 1, 0.8, 0.9) | change
    write(tmp_path / "run", config({"kind": "imp"}, 0), [record])
    with pytest.raises(LabError, match=re.escape(says)):
        read_run(tmp_path / "run")


def test_damaged_line_in_the_middle(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", config({"kind": "imp"}, 0), [], done=False)
    good = json.dumps(result("imp", "keep=0.8", 1, 0.8, 0.9))
    (folder / "metrics.jsonl").write_bytes(good.encode() + b"\n\xff\x00{\n" + good.encode() + b"\n")
    with pytest.raises(LabError, match=r"metrics.jsonl:2: not a JSON record"):
        read_run(folder)


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such folder"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(LabError, match=r"no config.json in it or below it"):
        find_runs([tmp_path])
    study(tmp_path / "runs", seeds=(0,))
    assert find_runs([tmp_path / "runs", tmp_path]) == find_runs([tmp_path])  # each run once


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "run", config({"kind": "imp"}, 0), [result("imp", "keep=0.8", 1, 0.8, 0.9)])
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot be written"):
        write_report([tmp_path / "run"], tmp_path / "file" / "report.html")


@pytest.mark.parametrize("accuracies", [(1.0, 1.0), (0.1, 0.1), (0.97, 0.971), (0.1, 1.0)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_figures_of_extreme_numbers(tmp_path: Path, accuracies: tuple[float, float], seeds: int) -> None:
    for seed in range(seeds):
        write(tmp_path / f"d{seed}", config({"kind": "dense"}, seed), [result("dense", "", 0, 1.0, accuracies[seed])])
        dead = result("imp", "keep=0.8", 1, 1 / MASKABLE, accuracies[1 - seed], dead_layers=["conv1.weight"])
        write(tmp_path / f"i{seed}", config({"kind": "imp"}, seed), [dead])
    page = Page(write_report([tmp_path]).html.read_text())
    assert "weights kept" in page.words
    assert "NaN" not in page.words


def test_no_finding_is_told_twice(tmp_path: Path) -> None:
    write(tmp_path / "dense", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.97)])
    records = [result("imp", "keep=0.8", 1, 0.8, 0.968), result("imp", "keep=0.8", 2, 0.64, 0.971)]
    write(tmp_path / "imp", config({"kind": "imp"}, 0), records)
    (only,) = findings(task_of(tmp_path))  # the sparsest within half a point of dense is the one above dense
    assert only.number == percent(0.64)
    write(tmp_path / "imp-sparser", config({"kind": "imp"}, 1), [result("imp", "keep=0.8", 3, 0.512, 0.966)])
    assert [found.number for found in findings(task_of(tmp_path))] == [percent(0.64), percent(0.512)]


def test_whether_searches_can_be_trusted(tmp_path: Path) -> None:
    method = {"kind": "cs", "initial_score": 0.0}
    first = result("cs", "s0=0", 1, 0.3, 0.97, soft_accuracy=0.96, hard_accuracy=0.972, undecided=0.002)
    dead = {"dead_layers": ["fc1.weight"]}
    second = result("cs", "s0=0", 2, 0.1, 0.95, soft_accuracy=0.95, hard_accuracy=0.949, undecided=0.0314, **dead)
    second |= {"soft_loss": 0.25, "hard_loss": 0.375}  # which older runs do not tell
    third = result("cs", "s0=0", 3, 0.05, 0.94, soft_accuracy=0.94, hard_accuracy=0.94, undecided=0.0, **dead)
    write(tmp_path / "cs", config(method, 0), [first, second, third])
    said = trust(task_of(tmp_path)).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Scores undecided at the end of a round: 3.14 % at most (CS s₀ = 0, round 2). "
        "Accuracy of the soft net against its hard ticket: 1.2 points apart at most (CS s₀ = 0, round 1). "
        "Their losses: 0.125 apart at most (CS s₀ = 0, round 2). "
        "Layers that kept no weight: fc1.weight (first in CS s₀ = 0, round 2)."
    )
    written = write_report([tmp_path])
    page = Page(written.html.read_text())
    assert ["CS s₀ = 0", "2", "3.14 %", "95.0 %", "94.9 %", "0.25", "0.375", "fc1.weight"] in [
        [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in page.rows
    ]
    with written.csv.open(newline="") as file:
        shown = [(line["round"], line["soft_loss"], line["hard_loss"]) for line in csv.DictReader(file)]
    assert shown == [("1", "", ""), ("2", "0.25", "0.375"), ("3", "", "")]
    write(tmp_path / "imp" / "run", config({"kind": "imp"}, 0), [result("imp", "keep=0.8", 1, 0.8, 0.9)])
    assert trust(task_of(tmp_path / "imp")) == "No layer died."
    write(tmp_path / "decided" / "run", config(method, 0), [third | {"dead_layers": []}])
    assert "Accuracy of the soft net against its hard ticket: 0.0 points apart. No" in trust(
        task_of(tmp_path / "decided")
    )


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(tmp_path: Path, width: int) -> None:
    summary = read_summary([study(tmp_path / "runs")])
    console = Console(file=io.StringIO(), width=width)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert all(len(line) <= width for line in lines)
    (task,) = summary.tasks
    numbers = [row.accuracy for row in task.rows] + [c for row in task.rows for c in row.controls.values()]
    shown = [match for line in lines for match in re.findall(r"\d+\.\d ± \d+\.\d", line)]
    expected = [f"{100 * stat.mean:.1f} ± {100 * stat.sd:.1f}" for stat in numbers if stat.sd is not None]
    assert sorted(shown) == sorted(expected)


def test_the_picture_is_a_file_of_its_own(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    study(tmp_path / "runs", model="lenet_300_100")
    pictures = [tmp_path / "a" / "picture.svg", tmp_path / "b.svg"]
    for picture in pictures:
        write_report([tmp_path / "runs"], tmp_path / "page.html", figure=picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    text = pictures[0].read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"https?://[^\"]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.findall(r"#[0-9a-f]{6}\b", text[text.index("</style>") :])  # every colour is the theme's
    words = [" ".join("".join(element.itertext()).split()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    names = {row.name for task in read_summary([tmp_path / "runs"]).tasks for row in task.tickets}
    for name in {*names, "conv_digits on digits", "lenet_300_100 on digits", "control: shuffled", "dense, ± 1 sd"}:
        assert words.count(" ".join(name.split())) == 1, name


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.9)])
    with pytest.raises(LabError, match=r"picture.svg: there is no sparse network to draw yet"):
        write_report([tmp_path], figure=tmp_path / "picture.svg")
    assert not (tmp_path / "picture.svg").exists()


def test_an_empty_ticket_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path / "d", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.1)])
    method = {"kind": "cs", "initial_score": 0.0, "density": 0.1}
    write(tmp_path / "c", config(method, 0), [result("cs", "density=0.1", 1, 0.1, 0.1)])
    dead = ["conv1.weight", "conv2.weight"]
    records = [result("imp", "keep=0.8", n, density, 0.1, dead_layers=dead) for n, density in ((1, 0.09), (2, 0.0))]
    write(tmp_path / "i", config({"kind": "imp"}, 0), records)
    page = Page(write_report([tmp_path], figure=tmp_path / "picture.svg").html.read_text())
    assert "conv1.weight (first in IMP keep = 0.8, round 1)" in page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert [row.good for row in task_of(tmp_path).tickets] == [True, True, False]  # as good as dense, but nothing


def test_dense_nets_stand_at_their_epochs(tmp_path: Path) -> None:
    text = write_report([study(tmp_path / "runs")]).html.read_text().replace("\N{NO-BREAK SPACE}", " ")
    by_density, by_epochs = (
        text[text.index(f'aria-label="Test accuracy against {what}') :].split("</svg>")[0]
        for what in ("density", "epochs spent")
    )
    for name, epochs in (("Dense", EPOCHS), ("Dense equal epochs", 4 * EPOCHS)):
        tip = re.compile(rf"<title>{name}: 100 % of the weights, [\d.]+ ± [\d.]+ %, {epochs} epochs</title>")
        assert tip.search(by_epochs)
        assert not tip.search(by_density)


def test_labels_stay_apart_and_inside() -> None:
    axes = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ends = [(0.99, 0.5), (0.99, 0.5), (0.99, 0.51), (0.5, 0.99), (0.02, 0.01)]
    label_ends(axes, [EndLabel([(0.3, 0.4), end], [(end, end)], "12.3 %", "black") for end in ends])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(ends)
    frame = axes.get_window_extent()
    for number, box in enumerate(boxes):
        assert box.x0 >= frame.x0
        assert box.x1 <= frame.x1
        assert box.y0 >= frame.y0
        assert box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


# ---- networks trained sparse in one go


def test_trainings_are_told_as_what_they_are(tmp_path: Path) -> None:
    written = write_report([trainings(tmp_path)], commands=["tombola train"])
    (task,) = written.summary.tasks
    assert not task.searched
    names = [row.name.replace("\N{NO-BREAK SPACE}", " ") for row in task.rows]
    assert names == [
        "Dense", "Dense 2 epochs", "GMP density = 0.1", "GMP density = 0.05", "RigL density = 0.1",
        "RigL density = 0.05", "Static density = 0.1", "Static density = 0.05",
    ]  # fmt: skip
    page = Page(written.html.read_text(encoding="utf-8"))
    words = " ".join(page.words.split()).replace("\N{NO-BREAK SPACE}", " ")
    assert "Sparse training of conv_digits on digits" in words
    assert "static random masks with density = 0.1 and density = 0.05" in words
    assert "dense training (also shorter or narrower)" in words
    assert re.findall(r"tickets?\b|\bround\b|retrain|search", words.lower()) == []
    headings = next(row for row in page.rows if row[0] == "method")
    assert headings == ["method", "density", "accuracy", "≥ dense", "epochs", "arithmetic"]
    rigl = next(row for row in page.rows if row[0].startswith("RigL") and "0.05" in row[0] and len(row) == 6)
    assert rigl[1:] == ["5\N{NO-BREAK SPACE}%", "96.2\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1", "", "20", "1.2"]
    lines = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    assert [line["arithmetic_in_dense_epochs"] for line in lines][:2] == ["20.0", "2.0"]


def test_a_dense_net_is_found_under_any_name(tmp_path: Path) -> None:
    """All narrower, or twice with different epochs: where none was trained as long, the longest is the bar."""
    for place, (epochs, accuracy) in enumerate([(20, 0.9), (50, 0.95)]):
        more = {"ticket": None, "epochs_search": 0, "epochs_total": epochs, "arithmetic": float(epochs)}
        settings = config({"kind": "dense"}, 0) | {"epochs": epochs}
        write(tmp_path / f"d{place}", settings, [result("dense", "width=0.5", 0, 1.0, accuracy, **more)])
    more = {"ticket": None, "epochs_search": 0, "epochs_total": 10, "arithmetic": 1.0}
    rows = [result("rigl", "density=0.1 width=0.5", 0, 0.1, 0.92, **more)]
    write(tmp_path / "r", config({"kind": "rigl", "density": 0.1}, 0), rows)
    (task,) = read_summary([tmp_path]).tasks
    assert task.dense is not None
    assert task.dense.accuracy.mean == 0.95
    assert [row.good for row in task.tickets] == [False]


@pytest.mark.parametrize("precision", ["", "bf16"])
def test_the_dense_net_of_equal_epochs_is_drawn_in_any_precision(precision: str, tmp_path: Path) -> None:
    for place, (setting, epochs) in enumerate([("", 10), ("equal epochs", 40)]):
        more = {"ticket": None, "epochs_search": 0, "epochs_total": epochs, "arithmetic": float(epochs)}
        settings = config({"kind": "dense"}, 0) | {"epochs": epochs}
        said = f"{setting} {precision}".strip()
        write(tmp_path / f"d{place}", settings, [result("dense", said, 0, 1.0, 0.9 + place / 100, **more)])
    (task,) = read_summary([tmp_path]).tasks
    assert task.dense is not None
    assert task.dense.setting == precision
    assert "dense, equal epochs" in [entry.text for entry in entries(task)]


def test_each_length_of_training_has_its_own_bar(tmp_path: Path) -> None:
    """A net that was trained once as long is not held against dense nets that were trained five times as long."""

    def put(name: str, method: dict[str, object], accuracy: float, epochs: int, **settings: object) -> None:
        more = {"ticket": None, "epochs_search": 0, "epochs_total": epochs, "arithmetic": float(epochs)}
        density = method.get("density", 1.0)
        assert isinstance(density, float)
        width = f" width={settings['width']}" if "width" in settings else ""
        setting = (f"density={density:g}" if density < 1 else "") + width
        record = result(str(method["kind"]), setting.strip(), 0, density, accuracy, **more)
        write(tmp_path / name, config(method, 0) | {"epochs": epochs} | settings, [record])

    dense, rigl = {"kind": "dense", "times": 1.0}, {"kind": "rigl", "density": 0.1}
    put("once", dense, 0.90, 10)
    put("once, cosine", dense, 0.91, 10, schedule={"kind": "cosine", "floor": 0.0})
    put("five times", dense, 0.95, 50)
    put("narrow", dense, 0.99, 10, width=0.5)
    put("rigl", rigl, 0.92, 10)
    put("rigl, another", {"kind": "rigl", "density": 0.05}, 0.905, 10)
    put("rigl, five times", rigl, 0.94, 50)
    put("rigl, wide", rigl, 0.93, 10, width=2.0)
    put("rigl, narrow", rigl, 0.93, 10, width=0.5)
    put("set", {"kind": "set", "density": 0.1}, 0.93, 30)  # no dense net was trained as long
    written = write_report([tmp_path], tmp_path / "page.html")
    (task,) = written.summary.tasks
    held = {
        (row.method, row.asked, row.training.mean, row.width): (row.bar.accuracy.mean if row.bar else None, row.good)
        for row in task.tickets
    }
    assert held == {
        ("rigl", 0.1, 10, 1.0): (0.91, True), ("rigl", 0.05, 10, 1.0): (0.91, False),
        ("rigl", 0.1, 50, 1.0): (0.95, False), ("rigl", 0.1, 10, 2.0): (0.91, True),
        ("rigl", 0.1, 10, 0.5): (0.99, False), ("set", 0.1, 30, 1.0): (0.95, False),
    }  # fmt: skip
    assert [bar.accuracy.mean for bar in task.bars] == [0.91, 0.95, 0.99]
    assert task.dense == task.bars[0]
    axes = Figure().add_subplot()
    draw(axes, task, DENSITY)
    lines = {line.get_linestyle(): list(line.get_ydata()) for line in axes.lines if line.get_color() == INK["dense"]}
    assert {style: y[0] for style, y in lines.items()} == {"-": 0.91, ":": 0.95, "-.": 0.99}
    names = [entry.text.replace("\N{NO-BREAK SPACE}", " ") for entry in entries(task)]
    assert names[:3] == ["dense, 10 epochs", "dense, 50 epochs", "dense, 10 epochs, width 0.5"]
    page = " ".join(Page(written.html.read_text()).words.split()).replace("\N{NO-BREAK SPACE}", " ")
    assert "93.0 % against 91.0 % for the dense net in 10 epochs" in page


def test_dense_training_alone_is_neither(tmp_path: Path) -> None:
    write(tmp_path / "d", config({"kind": "dense"}, 0), [result("dense", "", 0, 1.0, 0.9, ticket=None)])
    page = Page(write_report([tmp_path]).html.read_text(encoding="utf-8"))
    words = " ".join(page.words.split())
    assert "Training of conv_digits on digits" in words
    assert "What is shown is the accuracy after training, for the one seed 0." in words
    assert re.findall(r"tickets?\b|\bround\b|retrain|search|[Ss]parse net", words) == []


def test_how_far_above_static_masks(tmp_path: Path) -> None:
    summary = read_summary([trainings(tmp_path)])
    finding = findings(summary.tasks[0])[-1]
    text = finding.text.replace("\N{NO-BREAK SPACE}", " ")
    assert finding.number == "+3.5 points"  # GMP's 96.7 over 93.2, at the lower density
    assert (
        text == "Static density = 0.05 93.2 ± 0.1 %; GMP density = 0.05 96.7 ± 0.1 %; RigL density = 0.05 96.2 ± 0.1 %."
    )


@pytest.mark.parametrize("width", [80, 120])
def test_density_of_each_layer_on_the_terminal(tmp_path: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(read_summary([trainings(tmp_path)]), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert max(map(len, lines)) <= width
    (layer,) = [line for line in lines if line.startswith("conv2.weight")]
    assert layer.split()[:2] == ["conv2.weight", "4,608"]
    assert layer.count("%") == 6
    assert any(line.split()[:2] == ["layer", "weights"] for line in lines)


def test_a_search_and_a_training_share_a_page(tmp_path: Path) -> None:
    study(tmp_path / "a", seeds=(0,))
    trainings(tmp_path / "b", seeds=(0,))
    (task,) = read_summary([tmp_path / "a", tmp_path / "b"]).tasks
    assert task.searched
    assert {row.trained for row in task.tickets} == {True, False}
    written = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    page = Page(written.html.read_text(encoding="utf-8"))
    assert "Winning tickets in" in page.words
    assert next(row for row in page.rows if row[0] == "method")[1] == "round"


def test_what_networks_cost(tmp_path: Path) -> None:
    weighed = {"multiply_adds": 1_234_567, "bytes": 1536}
    nothing = {"epochs_search": 0, "ticket": None, "epochs_total": EPOCHS, "arithmetic": 20.0}
    for seed, seconds in enumerate((100.0, 140.0)):
        record = result("dense", "", 0, 1.0, 0.9, **weighed, **nothing)
        folder = write(tmp_path / str(seed), config({"kind": "dense"}, seed), [record])
        (folder / "times.json").write_text(json.dumps({"device": "cpu", "seconds": {"0": seconds}}))
    old = write(tmp_path / "old", config({"kind": "set"}, 0), [result("set", "", 0, 0.1, 0.8, **nothing)])
    (old / "times.json").write_text("damaged")
    written = write_report([tmp_path])
    shown = {
        c.name: [c.text(row) for row in written.summary.tasks[0].rows] for c in cost_columns(written.summary.tasks)
    }
    plain = {name: [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts] for name, texts in shown.items()}
    assert plain == {"multiply-adds": ["1.23 M", ""], "bytes": ["1.50 k", ""], "wall time": ["2 min", ""]}
    lines = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    assert [lines[0][key] for key in ("multiply_adds", "bytes", "wall_seconds")] == ["1234567.0", "1536.0", "120.0"]
    assert [lines[1][key] for key in ("multiply_adds", "bytes", "wall_seconds")] == ["", "", ""]
    console = Console(file=io.StringIO(), width=80)
    print_summary(written.summary, console)
    assert isinstance(console.file, io.StringIO)
    assert "What they cost" in console.file.getvalue()


def test_what_is_reduced_says_so_everywhere(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / f"run{seed}", config({"kind": "dense"}, seed), [result("dense", "", 0, 1.0, 0.9)])
    write(tmp_path / "mine", config({"kind": "set"}, 0), [result("set", "", 0, 0.5, 0.8)])
    for name in ("run0", "run1"):  # noted one after the other, as by the same command with other seeds
        remember(tmp_path, Experiment(name="x", title="Figure 9 of X", about="<Shorter>.", scale="cpu", runs=(name,)))
    (noted,) = experiments(tmp_path)
    assert noted.runs == ("run0", "run1")
    written = write_report([tmp_path])
    (task,) = written.summary.tasks
    assert [row.label for row in task.rows] == ["reduced (cpu scale)", ""]
    assert task.label == "partly reduced (cpu scale)"
    lines = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    assert [line["scale"] for line in lines] == ["reduced (cpu scale)", ""]
    page = Page(written.html.read_text(encoding="utf-8"))
    assert "Figure 9 of X, reduced (cpu scale). <Shorter>." in " ".join(page.words.split())
    console = Console(file=io.StringIO(), width=120)
    print_summary(written.summary, console)
    assert isinstance(console.file, io.StringIO)
    shown = " ".join(console.file.getvalue().split())
    assert "Figure 9 of X reduced (cpu scale)" in shown
    assert "conv_digits on digits, seeds 0 and 1, partly reduced (cpu scale)" in shown
    (tmp_path / "experiments.json").write_text('[{"name": "x"}]')
    with pytest.raises(LabError, match=r"experiments\.json: is damaged"):
        write_report([tmp_path])


def test_schedules_are_told_apart_by_their_kind(tmp_path: Path) -> None:
    drops, cosine = {"kind": "drops", "epochs": [3], "by": 0.1}, {"kind": "cosine", "floor": 0.0}
    longer = {"schedule": {**drops, "epochs": [6]}, "epochs": 2 * EPOCHS}
    for place, more in enumerate(({"schedule": drops}, {"schedule": cosine}, longer)):
        accuracy = (0.9, 0.95, 0.93)[place]
        write(tmp_path / str(place), config({"kind": "dense"}, 0) | more, [result("dense", "", 0, 1.0, accuracy)])
    task = task_of(tmp_path)
    assert sorted(row.setting for row in task.rows) == [
        f"epochs={EPOCHS} schedule=cosine", f"epochs={EPOCHS} schedule=drops", f"epochs={2 * EPOCHS} schedule=drops",
    ]  # fmt: skip
    assert task.dense is not None
    assert task.dense.accuracy.mean == 0.95  # of equal epochs the stricter one to compare with


def test_one_setting_is_called_the_same_at_every_density(tmp_path: Path) -> None:
    """Also where it is the only one, so that a line can go through all of them."""
    drops, cosine = {"kind": "drops", "epochs": [3], "by": 0.1}, {"kind": "cosine", "floor": 0.0}
    for density, schedule in ((0.2, drops), (0.1, drops), (0.1, cosine)):
        run = config({"kind": "set", "density": density}, 0) | {"schedule": schedule}
        folder = tmp_path / f"{density} {schedule['kind']}"
        write(folder, run, [result("set", f"density={density}", 0, density, 0.9)])
    rows = task_of(tmp_path).rows
    named = ["density=0.1 schedule=cosine", "density=0.1 schedule=drops", "density=0.2 schedule=drops"]
    assert sorted(row.setting for row in rows) == named
    assert len({row.family for row in rows}) == 2
