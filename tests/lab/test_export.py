"""`tombola export` and `tombola bench`: from a ticket to a sparse file, and its speed beside the dense network."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from tombola.lab.cli.main import run
from tombola.lab.engines import compare
from tombola.lab.errors import LabError
from tombola.lab.export import build, restored, speeds
from tombola.ticket import Ticket


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    options = ["--method", "rigl", "--density", "0.05", "--epochs", "1", "--no-dense", "--out", str(out), "--quiet"]
    assert run(["train", *options]) == 0
    (found,) = out.glob("*/tickets/*.safetensors")
    return found


def test_an_exported_ticket_computes_what_the_ticket_does(
    ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.safetensors"
    assert run(["export", str(ticket), "--to", "sparse", "-o", str(path), "--batch", "4"]) == 0
    said = capsys.readouterr().out
    assert f"Sparse network: {path}" in said
    assert "fc1" in said
    net = restored(path)
    loaded = Ticket.load(ticket)
    model = build(loaded.provenance)
    loaded.restore(model)
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model.eval()(x))


def test_the_default_file_lies_beside_the_ticket(ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(ticket), "--to", "sparse"]) == 0
    assert "trained.sparse.safetensors" in capsys.readouterr().out
    assert ticket.with_name("trained.sparse.safetensors").is_file()


def test_bench_times_the_engines_that_there_are(
    ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.safetensors"
    run(["export", str(ticket), "--to", "sparse", "-o", str(path)])
    lines: list[str] = []
    found = {s.engine: s for s in speeds(path, 3, threads=1, turns=2, bf16=False, tell=lines.append)}
    assert lines
    assert not found["tombola"].missing
    assert found["tombola"].ratio == 1
    assert not found["PyTorch"].missing
    assert found["PyTorch"].milliseconds > 0
    for speed in found.values():
        assert speed.missing or speed.difference < 1e-5


class _Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator\nsecond line")


def test_an_engine_that_cannot_run_the_model_is_listed_with_its_reason() -> None:
    linear = functools.partial(nn.Linear, 4, 2)
    found = compare(linear, _Broken, torch.randn(2, 4), threads=1, turns=1, engines=["PyTorch"])
    assert [speed.engine for speed in found] == ["tombola", "PyTorch"]
    assert found[1].missing == "cannot run it: no such operator"


@pytest.mark.parametrize("command", [["bench", "{path}"], ["export", "{path}", "--to", "sparse"]])
def test_mistakes_are_one_line(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.safetensors"
    for content, says in ((None, "there is no such file"), (b"not this", "cannot be read")):
        if content is not None:
            path.write_bytes(content)
        assert run([part.format(path=path) for part in command]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(path) in error
        assert says in error


def test_a_ticket_that_does_not_say_its_model_is_refused(
    ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = Ticket.load(ticket)
    anonymous = tmp_path / "anonymous.safetensors"
    Ticket(loaded.masks, loaded.start, {}).save(anonymous)
    assert run(["export", str(anonymous), "--to", "sparse"]) == 1
    assert "does not say its model and input_shape and classes" in capsys.readouterr().err
    assert run(["export", str(ticket), "--to", "sparse", "-o", str(tmp_path / "no" / "file")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(LabError, match="there is lenet_300_100"):
        build({"model": "nothing", "input_shape": [1, 8, 8], "classes": 10})
