"""Published numbers: the table is sound, says what the papers say, and gives nobody what was not read in print."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tombola.lab import models
from tombola.lab.errors import LabError
from tombola.lab.published import COLUMNS, METRICS, Published, accuracies, lookup, parse, rows
from tombola.lab.recipes import find
from tombola.methods.rigl import RigL

PAPER = "arXiv 1911.11134"


def of(data: str, model: str, method: str, density: float, source: str | None = None) -> list[float]:
    found = lookup(data=data, model=model, density=density)
    return [row.value for row in found if row.method == method and source in (None, row.source)]


def test_the_numbers_that_everything_is_measured_against() -> None:
    assert of("imagenet", "resnet50", "CS", 0.1) == [75.5]
    assert of("imagenet", "resnet50", "RigL", 0.1, PAPER) == [72.0]
    assert of("imagenet", "resnet50", "RigL", 0.2, PAPER) == [74.6]
    assert of("imagenet", "resnet50", "RigL 5× (ERK)", 0.1, PAPER) == [76.4]
    assert of("imagenet", "resnet50", "RigL 5× (ERK)", 0.05, PAPER) == [74.5]
    assert of("imagenet", "resnet50", "RigL (ERK)", 0.035, PAPER) == [67.2]
    assert of("imagenet", "resnet50", "dense", 1, PAPER) == [76.8]
    assert of("imagenet", "mobilenet_v1", "RigL 5× (ERK)", 0.25, PAPER) == [71.9]
    assert of("imagenet", "resnet50", "STR", 0.1, "README of STR") == [74.31]
    wide = lookup(data="cifar10", model="wrn_22_2", density=0.1)
    (rigl,) = [row for row in wide if row.method == "RigL 2×" and row.epochs]
    assert (rigl.value, rigl.epochs, rigl.source) == (93.3, 500, "github.com/google-research/rigl/issues/8")
    (set_,) = [row for row in rows() if row.method == "SET" and row.density == 0.05 and row.source == PAPER]
    assert (set_.value, set_.plus_minus, set_.where) == (64.4, 0.77, "appendix L")


def test_figure_2_of_rigl_whole() -> None:
    """Sums of what the figure prints, so that no digit changes unseen."""
    figure = [row for row in rows() if row.where == "figure 2"]
    assert len(figure) == 33  # 16 methods at two densities, and dense
    assert sum(row.value for row in figure if row.density == 0.2) == pytest.approx(1187.8)
    assert sum(row.value for row in figure if row.density == 0.1) == pytest.approx(1147.5)
    assert [row.method for row in figure if row.density == 0.1 and "quoting" in row.source] == [
        "DSR", "SNFS", "Pruning", "Pruning 1.5×", "DNW",
    ]  # fmt: skip


def test_what_is_not_verified_is_never_looked_up() -> None:
    hidden = [row for row in rows() if not row.verified]
    assert len(hidden) > 50
    for row in hidden:
        for density in (row.density, None):
            assert row not in lookup(data=row.data, model=row.model, density=density, metric=row.metric)
    assert not lookup(data="cifar10", model="vgg16", density=0.018)  # known from memory alone
    for row in rows():
        unknown = any(words in row.source for words in ("memory", "read off", "nobody named"))
        assert row.verified is not unknown, row
        assert (
            row.source not in ("a secondary source", "a secondary blog") and "as quoted" not in row.source
        ) or unknown


def test_every_verified_row_is_plausible() -> None:
    ranges = {
        ("imagenet", "resnet50"): (51.8, 77.5),
        ("imagenet", "mobilenet_v1"): (57.7, 72.1),
        ("imagenet", "mobilenet_v1 width 1.98"): (76.4, 77.0),
        ("imagenet", "vit_b_16"): (70.9, 75.7),
        ("cifar10", "wrn_22_2"): (83.3, 94.6),
        ("cifar10", "resnet20"): (68.3, 90.6),
        ("cifar100", "resnet50"): (69.7, 74.7),
        ("mnist", "not named"): (86, 98.1),
        ("cifar10", "not named"): (41, 41),
    }
    for row in rows():
        if row.verified and row.metric == "accuracy":
            low, high = ranges[row.data, row.model]
            assert low <= row.value <= high, row
        if row.metric == "error":
            assert row.value < 10, row  # in %, as accuracies are
        if row.metric == "loss":
            assert 2 < row.value < 4, row


def test_sparser_is_never_much_better() -> None:
    """Of one method with one schedule in one place: a slip of a digit would stand out."""
    for one in rows():
        for other in rows():
            same = ("paper", "where", "data", "model", "method", "metric", "source", "epochs")
            if one.density and other.density and all(getattr(one, key) == getattr(other, key) for key in same):
                assert one.density >= other.density or one.value <= other.value + 0.6, (one, other)


def test_dense_nets_and_no_others_have_density_1() -> None:
    for row in rows():
        if row.density is not None:
            assert (row.density == 1) == (row.method == "dense"), row
    assert {row.model for row in rows()} & set(models.MODELS) >= {"resnet50", "mobilenet_v1", "wrn_22_2", "resnet20"}


def test_times_and_epochs_agree() -> None:
    for row in rows():
        if (row.data, row.model) == ("imagenet", "resnet50") and row.epochs and row.where in ("figure 2", "appendix L"):
            assert row.epochs == (500 if "5×" in row.method and "1.5×" not in row.method else 100), row


def test_lookup() -> None:
    found = lookup(data="folder/ImageNet", model="resnet50", density=0.1)
    assert found == lookup(data="imagenet", model="resnet50", density=0.1)
    assert [row.value for row in found] == sorted((row.value for row in found), reverse=True)
    assert {row.density for row in found} == {0.1, 0.0977}  # STR's own densities are near enough
    assert all(row.density == 1 for row in lookup(data="imagenet", model="resnet50", density=1.0))
    assert not lookup(data="imagenet", model="resnet50", density=0.97)
    assert not lookup(data="imagenet", model="lenet_300_100")
    errors = lookup(data="mnist", model="lenet_300_100", metric="error")
    assert {row.method for row in errors} >= {"RigL, best epoch", "RigL, last epoch", "SBP"}
    both = accuracies(data="folder/mnist", model="lenet_300_100", density=0.0213)
    assert [(row.method, row.accuracy) for row in both] == [("RigL, best epoch", 98.56), ("RigL, last epoch", 98.52)]
    (plus, _) = accuracies(data="mnist", model="lenet_100_69", density=0.0305)
    assert (plus.method, plus.accuracy) == ("RigL+, best epoch", 98.43)
    (loss, *_) = [row for row in rows() if row.metric == "loss"]
    assert loss.accuracy is None
    for model in ("lenet_300_100", "lenet_100_69"):  # as the recipe has them
        (density,) = {row.density for row in rows() if row.model == model and row.density}
        configs = find("rigl-lenet").runs("full", data_dir=Path("mnist"))
        assert density in {c.method.density for c in configs if c.model == model and isinstance(c.method, RigL)}
    assert len(lookup(data="imagenet", model="resnet50")) > len(found)


# ---- tables that are wrong

GOOD = {
    "paper": "A 2020", "where": "table 1", "data": "cifar10", "model": "resnet20", "method": "RigL, twice",
    "density": "0.1", "metric": "accuracy", "value": "90.1", "plus_minus": "0.2", "epochs": "200", "source": "arXiv",
    "verified": "true",
}  # fmt: skip


def table(*changes: dict[str, str]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(GOOD | change for change in changes)
    return buffer.getvalue()


def test_a_good_table() -> None:
    row, other = parse(
        table({}, {"density": "", "plus_minus": "", "epochs": "", "verified": "false"}), where="mine.csv"
    )
    assert row == Published(
        paper="A 2020", where="table 1", data="cifar10", model="resnet20", method="RigL, twice", density=0.1,
        metric="accuracy", value=90.1, plus_minus=0.2, epochs=200.0, source="arXiv", verified=True,
    )  # fmt: skip
    assert (other.density, other.plus_minus, other.epochs, other.verified) == (None, None, None, False)
    assert METRICS[row.metric] == "%"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the columns must be paper, where, data, .*, not none"),
        ("paper,value\n", "the columns must be .*, not paper, value"),
        (table({}) + "one,two\n", "mine.csv:3: has 2 values for 12 columns"),
        (table({}, {}), "mine.csv:3: is there already, in line 2"),
        (table({"value": "ninety"}), "mine.csv:2: value is 'ninety', which is no number"),
        (table({"value": ""}), "value is empty"),
        (table({"value": "nan"}), "value is nan, but must be above 0 and at most 100"),
        (table({"value": "901"}), "value is 901, but must be above 0 and at most 100"),
        (table({"value": "-1", "metric": "loss"}), "value is -1, but must be above 0$"),
        (table({"density": "10"}), "density is 10, but must be above 0 and at most 1"),
        (table({"density": "0"}), "density is 0, but must be"),
        (table({"metric": "top-1"}), "metric is 'top-1', but must be one of accuracy, "),
        (table({"plus_minus": "-0.1"}), "plus_minus is -0.1, but must be 0 or more"),
        (table({"epochs": "inf"}), "epochs is inf, but must be 0 or more"),
        (table({"verified": "yes"}), "verified is 'yes', but must be true or false"),
        (table({"source": ""}), "source is empty"),
    ],
)
def test_tables_that_are_wrong(text: str, says: str) -> None:
    with pytest.raises(LabError, match=says) as caught:
        parse(text, where="mine.csv")
    assert str(caught.value).startswith("mine.csv")
