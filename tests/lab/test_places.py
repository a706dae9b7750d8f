"""Where runs go: their folder is made, and nothing around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from configs import DENSE

from tombola.lab.cli.main import run
from tombola.lab.errors import LabError
from tombola.lab.places import made
from tombola.lab.runs.experiment import execute


def test_the_folder_is_made_and_runs_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("mine"), tmp_path / "absolute", Path("runs/digits"), Path("runs"), tmp_path / "runs" / "more"):
        made(out)
        assert out.is_dir()
        made(out)  # as it is
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match=r"file: cannot make this folder: File exists; choose another with --out"):
        made(tmp_path / "file")


@pytest.mark.parametrize("out", ["share/sweep", "share/runs/sweep", "runs/of/mine", "file/sweep"])
def test_a_share_that_is_not_mounted_is_not_made(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for path in (Path(out), tmp_path / out):
        with pytest.raises(LabError, match=rf"{path}: there is no folder {path.parent} for it; make that one or"):
            execute(DENSE, path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["search", "--method", "dense", "--epochs", "1", "--quiet"],
        ["train", "--method", "dense", "--epochs", "1", "--quiet"],
        ["reproduce", "rigl-lenet", "--scale", "smoke"],
        ["reproduce", "cs-figure-1"],
    ],
    ids=" ".join,
)
def test_every_command_says_so(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--out", str(tmp_path / "share" / "sweep")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'share' / 'sweep'}: there is no folder {tmp_path / 'share'} for it" in line
    assert list(tmp_path.iterdir()) == []
