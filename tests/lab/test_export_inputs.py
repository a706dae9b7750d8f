"""`tombola export` and `bench` of networks on texts and tokens, too: tickets say what their inputs are."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from configs import DENSE
from torch import Tensor

from tombola.budgets import uniform
from tombola.lab.cli.main import run
from tombola.lab.errors import LabError
from tombola.lab.examples import KEY, example
from tombola.lab.export import build, network, restored, speeds
from tombola.lab.inputs import Text
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.methods.rigl import RigL
from tombola.methods.static import Static
from tombola.patterns import NM
from tombola.sparse import semi_structured
from tombola.ticket import Ticket

OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tombola.lab.data import Loaders

def load():
    x = torch.randint(3, 50, (80, 6), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] % 3).long()
    train, test = TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])
    return Loaders(DataLoader(train, batch_size=16), DataLoader(test, batch_size=16), 3, (6,), "tokens")

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.hidden, self.out = nn.Linear(64, 32), nn.Linear(32, classes)

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x).mean(1)).relu())

def net(classes):
    return Net(classes)
"""
PRUNED = replace(DENSE, method=RigL(density=0.2, every=4), epochs=1, batch_size=16)
TWO_OF_FOUR = Static(density=0.5, budget=uniform, pattern=NM(2, 4))
CONFIGS = {
    "text": replace(
        PRUNED, data="text/poem.txt", model="gru_lm", width=0.125, inputs=Text(unit="characters", length=8)
    ),
    "batch norm": replace(PRUNED, data="tombola.lab.recipes.tiny:images", model="resnet20", width=0.25),
    "own text": replace(PRUNED, data="tombola.lab.recipes.tiny:text", model="gru_lm", width=0.125),
    "own tokens": replace(
        PRUNED, data="own_tokens:load", model="own_tokens:net", method=TWO_OF_FOUR, unmasked=("out.weight",)
    ),
}
NEEDS_ONNX = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime: 'tombola[bench]'"
)
CHEAP = ("state-dict", "safetensors")
OFTEN = [("own tokens", "torch-export"), ("own tokens", "sparse"), ("text", "sparse")]
kinds = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder, before = tmp_path_factory.mktemp("inputs"), Path.cwd()
    (folder / "poem.txt").write_text("".join(chr(97 + place * place % 11) for place in range(4000)))
    (folder / "own_tokens.py").write_text(OWN)
    os.chdir(folder)
    yield {
        kind: execute(config, folder / "runs", How(data_dir=folder)) / "tickets" / "trained.safetensors"
        for kind, config in CONFIGS.items()
    }
    os.chdir(before)
    sys.modules.pop("own_tokens", None)


def inputs(path: Path, batch: int) -> Tensor:
    return example(Ticket.load(path).provenance, batch)


def own(path: Path) -> str | None:
    """The model of a ticket, if somebody has to say that its code may run."""
    name = Ticket.load(path).provenance["model"]
    return name if ":" in name else None


def say(path: Path) -> list[str]:
    """The same on the command line."""
    return ["--model", name] if (name := own(path)) else []


def wanted(path: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(Ticket.load(path), own=own(path))[0](x)


def export(path: Path, to: str, folder: Path) -> Path:
    written = folder / "written"
    batch = ["--batch", "4"] if to == "sparse" else []
    assert run(["export", str(path), "--to", to, "-o", str(written), *batch, *say(path)]) == 0
    return written


def test_a_ticket_says_what_its_inputs_are(tickets: dict[str, Path]) -> None:
    said = {kind: Ticket.load(path).provenance.get(KEY) for kind, path in tickets.items()}
    last = torch.randint(3, 50, (80, 6), dtype=torch.int32, generator=torch.Generator().manual_seed(0))[64:]
    assert said == {
        "text": {"dtype": "int64", "range": [0, len({place * place % 11 for place in range(11)})]},
        "batch norm": None,  # floats, as ever
        "own text": {"dtype": "int64", "range": [0, 256]},
        "own tokens": {"dtype": "int32", "range": [int(last.min()), int(last.max()) + 1]},
    }
    x = inputs(tickets["own tokens"], 500)
    assert (x.dtype, x.shape, int(x.min()), int(x.max())) == (torch.int32, (500, 6), int(last.min()), int(last.max()))
    assert torch.equal(x[:1], inputs(tickets["own tokens"], 500)[:1])
    assert inputs(tickets["batch norm"], 2).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        pytest.param(kind, to, marks=[] if to in CHEAP or (kind, to) in OFTEN else pytest.mark.slow)
        for kind in CONFIGS for to in (*CHEAP, "torch-export", "sparse")
    ],
)  # fmt: skip
def test_what_is_written_computes_what_the_ticket_does(
    to: str, kind: str, tickets: dict[str, Path], tmp_path: Path
) -> None:
    path, written = tickets[kind], export(tickets[kind], to, tmp_path)
    x = inputs(path, 4)
    net: Any
    if to == "torch-export":
        net = torch.export.load(written).module()
    elif to == "sparse":
        net = restored(written, own=own(path))
    else:
        net = build(Ticket.load(path).provenance, own=own(path)).eval()
        read = torch.load(written, weights_only=True) if to == "state-dict" else safetensors.torch.load_file(written)
        net.load_state_dict(read)
    with torch.no_grad():
        for batch in (x, x[:1]):
            torch.testing.assert_close(net(batch), wanted(path, batch), rtol=1e-4, atol=1e-5)


@NEEDS_ONNX
@pytest.mark.parametrize(
    "kind", ["own tokens", *(pytest.param(kind, marks=pytest.mark.slow) for kind in CONFIGS if kind != "own tokens")]
)
def test_onnx_in_onnx_runtime(kind: str, tickets: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    path, written = tickets[kind], export(tickets[kind], "onnx", tmp_path)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = inputs(path, batch)
        (output,) = session.run(["output"], {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), wanted(path, x), rtol=1e-4, atol=1e-5)


@kinds
def test_two_of_four(kind: str, tickets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tickets[kind]
    if kind != "own tokens":
        assert run(["export", str(path), "--to", "2:4"]) == 1
        said = capsys.readouterr().err
        assert "no weight fits 2:4 (" in said
        assert "a GRU; PyTorch has" in said or "a Conv2d; PyTorch has" in said
        return
    net = semi_structured.load(export(path, "2:4", tmp_path), build(Ticket.load(path).provenance, own=own(path)))
    x = inputs(path, 4)
    with torch.no_grad():
        torch.testing.assert_close(net(x).float(), wanted(path, x), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@kinds
def test_bench(kind: str, tickets: dict[str, Path], tmp_path: Path) -> None:
    written = export(tickets[kind], "sparse", tmp_path)
    timed = speeds(written, 3, threads=1, turns=1, bf16=True, tell=lambda text: None, own=own(tickets[kind]))
    found = {s.engine: s for s in timed}
    for engine in ("tombola", "PyTorch", "PyTorch, channels_last", "ONNX Runtime"):
        assert not found[engine].missing, found[engine]
        assert found[engine].difference < 1e-4
    assert found["PyTorch, bfloat16"].difference < 0.1


def silent(path: Path, folder: Path) -> Path:
    """The ticket as it was before tickets said what their inputs are."""
    ticket = Ticket.load(path)
    about = {name: value for name, value in ticket.provenance.items() if name != KEY}
    Ticket(ticket.masks, ticket.start, about).save(folder / "old.safetensors")
    return folder / "old.safetensors"


def test_tickets_that_do_not_say(tickets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = silent(tickets["text"], tmp_path)  # of a text it is known
    x = inputs(tickets["text"], 4)
    assert torch.equal(inputs(old, 4), x)
    torch.testing.assert_close(torch.export.load(export(old, "torch-export", tmp_path)).module()(x), wanted(old, x))
    old = silent(tickets["own tokens"], tmp_path)
    for to in ("sparse", "torch-export", "onnx"):
        capsys.readouterr()
        assert run(["export", str(old), "--to", to, "-o", str(tmp_path / "none"), *say(old)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{old}: its model 'own_tokens:net' does not take inputs of shape" in line
        assert "torch.float32, which is meant where a ticket does not say; train once more" in line
    assert not (tmp_path / "none").exists()
    export(old, "state-dict", tmp_path)  # for which no input is needed


@pytest.mark.parametrize("values", [7, {}, {"dtype": "load"}, {"dtype": "int64"}, {"dtype": "int64", "range": [3, 3]}])
def test_damaged_inputs(values: object) -> None:
    with pytest.raises(LabError, match="its input_values are damaged"):
        example({"input_shape": [3], "classes": 2, KEY: values}, 2)
