"""`tombola export` and `tombola bench`: from a ticket to files of several forms, and its speed beside the dense net."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from configs import DENSE
from torch import Tensor, nn

import tombola
from tombola.lab import forms
from tombola.lab.cli.main import run
from tombola.lab.engines import compare
from tombola.lab.errors import LabError
from tombola.lab.export import build, network, restored, speeds
from tombola.lab.runs.experiment import execute
from tombola.methods.rigl import RigL
from tombola.sparse import convert, save, semi_structured
from tombola.ticket import Ticket, model_tensors


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    execute(replace(DENSE, model="lenet_300_100", method=RigL(density=0.05, every=5), epochs=1), out)
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


def wanted(ticket: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(Ticket.load(ticket))[0](x)


@pytest.mark.parametrize(("to", "name"), [("state-dict", "trained.pt"), ("safetensors", "trained.dense.safetensors")])
def test_a_plain_state_dict_that_any_program_loads(
    to: str, name: str, ticket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(ticket), "--to", to]) == 0
    path = ticket.with_name(name)
    assert (
        f"Network: {path} ({path.stat().st_size:,} bytes)\nTo read it: model.load_state_dict("
        in capsys.readouterr().out
    )
    plain = nn.Sequential(  # the architecture written again, as somebody would who has never heard of tombola
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    read = torch.load(path, weights_only=True) if to == "state-dict" else safetensors.torch.load_file(path)
    names = [f"fc{i}.{what}" for i in (1, 2, 3) for what in ("weight", "bias")]
    assert sorted(read) == sorted(names)
    plain.load_state_dict({mine: read[name] for mine, name in zip(plain.state_dict(), names, strict=True)})
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(plain(x.flatten(1)), wanted(ticket, x))
    masks = Ticket.load(ticket).masks
    assert all(not read[name][~mask].any() for name, mask in masks.items())
    assert sum(int(read[name].count_nonzero()) for name in masks) <= masks.kept


def test_a_program_of_torch_export(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pt2"
    assert run(["export", str(ticket), "--to", "torch-export", "-o", str(path)]) == 0
    assert "Checked: torch.export gives PyTorch's outputs, at most" in capsys.readouterr().out
    program = torch.export.load(path).module()
    for batch in (1, 7):  # of any size
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(program(x), wanted(ticket, x))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime: 'tombola[bench]'")
def test_onnx_in_onnx_runtime(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    path = tmp_path / "net.onnx"
    assert run(["export", str(ticket), "--to", "onnx", "-o", str(path)]) == 0
    assert "Checked: ONNX Runtime gives PyTorch's outputs, at most" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        x = torch.randn(batch, 1, 8, 8)
        (output,) = session.run(["output"], {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), wanted(ticket, x))


def test_what_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-3 * torch.rand(()))

    with pytest.raises(LabError, match=r"torch.export computes something else than PyTorch: .*e-04 of the largest"):
        forms.write("torch-export", Noisy(3, 2), torch.randn(3, 3), tmp_path / "x")
    with pytest.raises(LabError, match=r"--to torch-export: this model cannot be exported so \("):
        forms.write("torch-export", _Broken(), torch.randn(3, 3), tmp_path / "x")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(LabError, match=r"--to onnx needs onnxruntime: pip install 'tombola\[bench\]'"):
        forms.write("onnx", nn.Linear(3, 2), torch.randn(3, 3), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_two_of_four_that_nothing_fits(ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(ticket), "--to", "2:4"]) == 1
    said = capsys.readouterr().err
    assert "no weight fits 2:4 (fc1.weight: 300×64 is not a multiple of 32×64; " in said
    assert "--pattern 2:4" in said
    assert not ticket.with_name("trained.2to4.safetensors").exists()


def test_two_of_four_of_a_model_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build({"model": "lenet_300_100", "input_shape": [1, 8, 8], "classes": 10, "width": 6.4})  # 1920 and 640
    mask = (torch.arange(64) % 4 < 2).expand(1920, 64)
    masks = tombola.Masks({"fc1.weight": mask, "fc2.weight": torch.ones(640, 1920, dtype=torch.bool)})
    about = {"model": "lenet_300_100", "input_shape": [1, 8, 8], "classes": 10, "width": 6.4}
    Ticket(masks, model_tensors(model), about).save(tmp_path / "t.safetensors")
    assert run(["export", str(tmp_path / "t.safetensors"), "--to", "2:4", "--bf16"]) == 0
    said = capsys.readouterr().out
    assert "These are start weights, not trained ones" in said
    assert "fc2.weight  dense: it keeps more than two of four neighbouring inputs" in said
    again = semi_structured.load(tmp_path / "t.2to4.safetensors", model)
    assert torch.equal(again.fc1.weight, (model.fc1.weight * mask).bfloat16())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onnx", "--batch", "2"], "--batch goes with --to sparse, not with --to onnx"),
        (["--to", "safetensors", "--bf16"], "--bf16 goes with --to sparse and 2:4, not with --to safetensors"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], says: str, ticket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(ticket), *options]) == 2
    assert says in capsys.readouterr().err


def test_the_default_file_lies_beside_the_ticket(ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(ticket), "--to", "sparse"]) == 0
    assert "trained.sparse.safetensors" in capsys.readouterr().out
    assert ticket.with_name("trained.sparse.safetensors").is_file()


@pytest.mark.slow
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


OWN = """
from pathlib import Path
from typing import Any
from torch import nn
Path("ran").touch()

def net(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_file_has_no_code_run_by_its_word_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(OWN)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    said = {"model": "own_net:net", "input_shape": [1, 8, 8], "classes": 10}
    masks = tombola.Masks({"1.weight": torch.rand(10, 64) < 0.1})
    Ticket(masks, model_tensors(model), said).save("t.safetensors")
    save(convert(model.eval(), masks, example=torch.randn(1, 1, 8, 8)), "s.safetensors", about=said)
    forms = [["export", "t.safetensors", "--to", to] for to in ("state-dict", "sparse", "2:4")]
    for command in (*forms, ["bench", "s.safetensors"]):
        assert run(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{command[1]}: its model 'own_net:net' is somebody's own code" in line
        assert line.endswith("run it with --model 'own_net:net'")
        assert run([*command, "--model", "own_net:another"]) == 1
        assert "it is of the model 'own_net:net', not of 'own_net:another'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own_net.py", "s.safetensors", "t.safetensors"]
    assert run([*forms[0], "--model", "own_net:net"]) == 0
    assert (tmp_path / "ran").exists()
    assert torch.load("t.pt", weights_only=True)["1.weight"].count_nonzero() == masks.kept
    with torch.no_grad():
        x = torch.randn(2, 1, 8, 8)
        dense = restored(Path("s.safetensors"), own="own_net:net").to_dense()
        torch.testing.assert_close(dense(x), masked(model, masks)(x))
    sys.modules.pop("own_net")


def masked(model: nn.Module, masks: tombola.Masks) -> nn.Module:
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ["lenet_300_100"]), ("model", None), ("input_shape", 5), ("input_shape", [1, 8, -8]),
        ("input_shape", ["1", 8, 8]), ("classes", "10"), ("classes", True), ("classes", 0), ("width", "1"),
        ("width", float("nan")), ("width", 0),
    ],
)  # fmt: skip
def test_nonsense_about_the_model_is_refused(key: str, value: object) -> None:
    said = {"model": "lenet_300_100", "input_shape": [1, 8, 8], "classes": 10, "width": 0.5}
    build(said)
    with pytest.raises(LabError, match=f"its {key} is .*, which no model has; the file is damaged or foreign"):
        build(said | {key: value})


# ---- files that claim sizes which their tensors contradict

LENET: dict[str, Any] = {"model": "lenet_300_100", "input_shape": [1, 8, 8], "classes": 10}


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, tombola.Masks]:
    model = build(LENET)
    masks = {name: torch.rand(p.shape) < 0.1 for name, p in model.named_parameters() if p.ndim > 1}
    return model.eval(), tombola.Masks(masks)


def refused(way: Callable[[Path], object], path: Path) -> str:
    """What is said of the file, without memory for a single parameter."""
    real = torch.empty

    def empty(*shape: Any, **settings: Any) -> Tensor:
        made = real(*shape, **settings)
        assert made.is_meta, f"memory for {shape}"
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        with pytest.raises(LabError) as caught:
            way(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"classes": 10**12}, "'fc3.weight' has shape (10, 100) in the ticket, (1000000000000, 100) in _Chain"),
        ({"classes": 11}, "'fc3.weight' has shape (10, 100) in the ticket, (11, 100) in _Chain"),
        ({"classes": 10**30}, "model 'lenet_300_100' failed: "),
        ({"width": 1e6}, "'fc1.weight' has shape (300, 64) in the ticket, (300000000, 64) in _Chain"),
        ({"input_shape": [1, 8000, 8000]}, "'fc1.weight' has shape (300, 64) in the ticket, (300, 64000000) in _Chain"),
        ({"input_shape": [1, 10**6, 10**6]}, "its input_shape is [1, 1000000, 1000000], which no model has"),
    ],
)
def test_sizes_that_a_ticket_only_claims_are_never_made(
    lie: dict[str, Any], says: str, small: tuple[nn.Module, tombola.Masks], tmp_path: Path
) -> None:
    path = tmp_path / "t.safetensors"
    Ticket(small[1], model_tensors(small[0]), LENET | lie).save(path)
    assert says in refused(lambda path: network(Ticket.load(path)), path)
    assert run(["inspect", str(path)]) == 0


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"classes": 10**12}, "'fc3.weight' has 10 rows, and shape (1000000000000, 100) in the _Chain that it names"),
        ({"width": 1e6}, "'fc1.weight' has 300 rows, and shape (300000000, 64) in the _Chain that it names"),
        ({"model": "conv2", "input_shape": [1, 10**4, 10**4]}, "has no 'conv1.weight', which a _Chain has"),
    ],
)
def test_nor_are_those_that_a_sparse_file_claims(
    lie: dict[str, Any], says: str, small: tuple[nn.Module, tombola.Masks], tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    save(convert(*small, example=torch.randn(1, 1, 8, 8), choose="sparse"), path, about=LENET | lie)
    found = refused(restored, path)
    assert says in found
    assert found.startswith(str(path))
