"""Run folders: the identity, the metrics, checkpoints and the fall-back to the one before, locks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configs import CS, DENSE
from hypothesis import given
from hypothesis import strategies as st

from tombola.lab.errors import LabError
from tombola.lab.runs.looking import read_metrics
from tombola.lab.runs.store import RunFolder


def never(text: str) -> None:
    raise AssertionError(text)


def filled(out: Path) -> Path:
    """A run that was stopped: three checkpoints written, a record before and after each."""
    with RunFolder(out, DENSE) as folder:
        assert folder.resume(warn=never) is None
        for number in (1, 2, 3):
            folder.record({"before": number})
            folder.save({"number": number, "x": torch.full((3,), float(number))})
        folder.record({"after": 3})
    return folder.path


def checkpoints(path: Path) -> list[str]:
    return sorted(found.name for found in path.glob("checkpoint-*"))


def test_a_fresh_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a", DENSE) as folder:
        assert folder.path == tmp_path / "a" / DENSE.folder_name
        assert folder.name == DENSE.folder_name
        assert not folder.finished
        assert folder.ticket_path(3) == folder.path / "tickets" / "round-03.safetensors"
        assert (folder.path / "config.json").read_text() == DENSE.to_json()
        assert read_metrics(folder.path / "metrics.jsonl") == []


def test_resuming_cuts_the_metrics_back(tmp_path: Path) -> None:
    path = filled(tmp_path)
    assert checkpoints(path) == ["checkpoint-000002.pt", "checkpoint-000003.pt"]  # the newest and the one before
    assert len(read_metrics(path / "metrics.jsonl")) == 4
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    with RunFolder(tmp_path, DENSE) as folder:
        found = folder.resume(warn=never)
        assert found is not None
        assert found["number"] == 3
        assert found.keys() == {"number", "x"}
        assert read_metrics(path / "metrics.jsonl") == [{"before": 1}, {"before": 2}, {"before": 3}]
        folder.record({"ß": 4})
        folder.save({"number": 4})
    assert checkpoints(path) == ["checkpoint-000003.pt", "checkpoint-000004.pt"]
    assert read_metrics(path / "metrics.jsonl")[-1] == {"ß": 4}


def test_finishing(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with RunFolder(tmp_path, DENSE) as folder:
        folder.resume(warn=never)
        folder.finish()
        assert folder.finished
    assert checkpoints(path) == []
    shutil.copy(path / "done.json", path / "checkpoint-000009.pt")  # as if killed while they were deleted
    with RunFolder(tmp_path, DENSE) as folder:
        assert folder.finished
    assert checkpoints(path) == []


def test_leftovers_of_a_save_that_was_killed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    for leftover in (path / ".checkpoint-000004.pt.ab12.part", path / "tickets" / ".round-01.safetensors.xy.part"):
        leftover.write_bytes(b"half a fi")
    with RunFolder(tmp_path, DENSE) as folder:
        assert folder.resume(warn=never) is not None
    assert list(path.rglob("*.part")) == []


def test_records_are_json(tmp_path: Path) -> None:
    with RunFolder(tmp_path, DENSE) as folder:
        folder.resume(warn=never)
        with pytest.raises(ValueError, match="JSON"):
            folder.record({"loss": float("nan")})
        folder.record({"loss": 1.0})
        assert read_metrics(folder.path / "metrics.jsonl") == [{"loss": 1.0}]


# ---- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95 this is a pickle, say")


def of_another_run(path: Path) -> None:
    with RunFolder(path.parent / "other", CS) as folder:
        folder.resume(warn=never)
        folder.save({"number": 99})
    shutil.copy(folder.path / "checkpoint-000001.pt", path)


DAMAGE: list[Callable[[Path], None]] = [cut, emptied, flipped, foreign, of_another_run]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = filled(tmp_path)
    damage(path / "checkpoint-000003.pt")
    warnings: list[str] = []
    with RunFolder(tmp_path, DENSE) as folder:
        found = folder.resume(warn=warnings.append)
        assert found is not None
        assert found["number"] == 2
        assert read_metrics(path / "metrics.jsonl") == [{"before": 1}, {"before": 2}]
        folder.record({"again": 3})
        folder.save({"number": 5})
    (warning,) = warnings
    assert "checkpoint-000003.pt" in warning
    assert checkpoints(path) == ["checkpoint-000002.pt", "checkpoint-000004.pt"]  # the one before is an intact one
    with RunFolder(tmp_path, DENSE) as folder:
        found = folder.resume(warn=never)
        assert found is not None
        assert found["number"] == 5


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_checkpoint_is_intact(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = filled(tmp_path)
    for name in checkpoints(path):
        damage(path / name)
    with (
        RunFolder(tmp_path, DENSE) as folder,
        pytest.raises(LabError, match=f"No other checkpoint is intact: delete {path} to start this run over"),
    ):
        folder.resume(warn=lambda text: None)


def test_no_metrics_of_a_checkpoint(tmp_path: Path) -> None:
    path = filled(tmp_path)
    for change in (cut_to_two, flipped, Path.unlink):
        copy = tmp_path / change.__name__
        shutil.copytree(path, copy / path.name)
        change(copy / path.name / "metrics.jsonl")
        with RunFolder(copy, DENSE) as folder, pytest.raises(LabError, match=r"metrics.jsonl: was changed .*delete"):
            folder.resume(warn=never)


def cut_to_two(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


@pytest.mark.parametrize("damage", [cut, emptied, foreign, flipped])
def test_a_damaged_config(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = filled(tmp_path) / "config.json"
    damage(path)
    with pytest.raises(LabError, match=r"config\.json: .*; delete the folder, or choose another with --out"):
        RunFolder(tmp_path, DENSE)


def test_the_folder_of_another_run(tmp_path: Path) -> None:
    path = filled(tmp_path)
    (path / "config.json").write_text(replace(DENSE, seed=1).to_json())
    with pytest.raises(LabError, match="holds another run than its name says; delete the folder"):
        RunFolder(tmp_path, DENSE)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"metrics_sha256": "0"}', b"\xff"])
def test_a_damaged_mark_of_being_done(content: bytes, tmp_path: Path) -> None:
    path = filled(tmp_path)
    (path / "done.json").write_bytes(content)
    with pytest.raises(LabError, match=f"delete {path} and run the same command again"):
        RunFolder(tmp_path, DENSE)


def test_metrics_changed_after_the_run(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with RunFolder(tmp_path, DENSE) as folder:
        folder.resume(warn=never)
        folder.finish()
    for change in (cut, flipped, Path.unlink):
        copy = tmp_path / change.__name__
        shutil.copytree(path, copy / path.name)
        change(copy / path.name / "metrics.jsonl")
        with pytest.raises(LabError, match=r"metrics.jsonl: was changed after the run was finished; delete"):
            RunFolder(copy, DENSE)


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 100_000 + b"\n", b"3\n", b'"x"\n{}\n', b'{"a": 1}\n{"to']))
def test_metrics_of_any_content(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(b'{"kind": "x"}\n' + content)
    try:
        assert read_metrics(path)[0] == {"kind": "x"}
    except LabError as error:
        damaged = str(error)
    else:
        return
    assert re.match(rf"{re.escape(str(path))}:\d+: not a JSON record", damaged)


def test_an_out_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot make this folder: File exists; choose another with --out"):
        RunFolder(tmp_path / "file", DENSE)


def test_a_folder_that_could_not_be_opened_is_free_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text("")
    with pytest.raises(LabError, match="not valid JSON"):
        RunFolder(tmp_path, DENSE)
    (path / "config.json").write_text(text)
    with RunFolder(tmp_path, DENSE, patience=0.0) as folder:
        assert not folder.finished
    assert json.loads(text)["data"] == "digits"
