"""Machine code on disk: the next process finds it and compiles nothing; where it cannot be kept, all works without."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tombola
from tombola.sparse import SparseConv2d, SparseGRU, SparseLinear, convert

PACKAGE = Path(tombola.__file__).parent
WORK = """
import torch
from tombola.sparse import SparseConv2d

layer = SparseConv2d(4, 6, 3, padding=1, density=0.3)
x = torch.randn(5, 4, 6, 7, requires_grad=True)
layer(x).sum().backward()
dense, z = layer.to_dense(), x.detach().requires_grad_()
dense(z).sum().backward()
torch.testing.assert_close(layer(x), dense(x))
torch.testing.assert_close(x.grad, z.grad)
gradient = dense.weight.grad.movedim(1, -1)[layer.mask().movedim(1, -1)]
torch.testing.assert_close(layer.values.grad, gradient)
"""
NORM = """
from tombola.sparse.norms import normalised

y, _, _ = normalised(torch.randn(4, 3, 3, 2, requires_grad=True), torch.ones(4), torch.zeros(4), 1e-5, relu=True)
y.sum().backward()
"""
PROGRAM = """
from torch import nn
from tombola.sparse import convert

convs = [nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)]
model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
net = convert(model.eval(), example=torch.ones(1, 2, 8, 8), choose="sparse")
net.as_program = True
with torch.no_grad():
    for batch in (1, 16):
        assert net._program.run(net.net, torch.randn(batch, 2, 8, 8)) is not None
"""
OF_PROGRAMS = ("product_at", "dot", "gather", "runs", "mean", "join", "enter", "leave", "steps")


def run(code: str, **environment: str) -> str:
    return finished(code, **environment).stdout


def finished(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_next_process_compiles_nothing(tmp_path: Path) -> None:
    """It reads what the first one kept, and leaves the folder as it is, instead of adding to it for ever."""

    def kept() -> dict[str, tuple[int, int]]:
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}

    run(WORK + NORM + PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    first = kept()
    loops = {name.split("-")[0].split(".", 1)[1].rsplit("_", 1)[0] for name in first if name.endswith(".nbc")}
    assert loops == {"", "product", "product_in_order", "gradient", "forward", "backward", *OF_PROGRAMS}
    assert len([name for name in first if name.endswith(".nbc")]) == len(loops) + 1  # two of them are called _
    run(WORK + NORM + PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    assert kept() == first


def test_where_nothing_can_be_kept_on_disk(tmp_path: Path) -> None:
    """Neither in the folder that is named, nor beside the package, nor in the home of the user."""
    shutil.copytree(PACKAGE, tmp_path / "tombola", ignore=shutil.ignore_patterns("__pycache__", "lab"))
    for package in [tmp_path / "tombola", *(tmp_path / "tombola").rglob("*/")]:
        (package / "__pycache__").write_text("a file, so that no folder can be here")
    nowhere = tmp_path / "file"
    nowhere.write_text("a file, so that no folder can be in it")
    check = """
import tombola
import torch
from tombola.sparse import SparseLinear, structure

SparseLinear(4, 4, density=0.5)(torch.ones(2, 4))
print(tombola.__file__, type(structure.transpose._cache).__name__)
"""
    names = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "USERPROFILE", "LOCALAPPDATA")
    folders = {name: str(nowhere / "folder") for name in names}
    done = finished(check, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", **folders)
    assert done.stderr.count("compiled code cannot be kept on disk") == 1
    assert done.stdout.split() == [
        str(tmp_path / "tombola" / "__init__.py"),
        "NullCache",
    ]  # it was the copy, and kept none


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_where_there_is_no_room_on_the_disk(tmp_path: Path) -> None:
    """Files may be created, but a write of more than a few bytes fails, as on a full disk."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    work = """
import numpy as np, torch
from tombola.bits import PackedMask
from tombola.sparse.scan import scan

values, mask = torch.ones(300), torch.arange(300) % 3 == 0
PackedMask(mask, values).clear(values)
assert torch.equal(values, mask.float())
out = np.zeros(3, np.float32), np.zeros(3, np.int64)
assert scan(np.array([1, 3, 2], np.float32), 5, np.float32(2), False, *out, 0) == 2
assert [array.tolist() for array in out] == [[3.0, 2.0, 0.0], [6, 7, 0]]
"""
    done = finished(full + work, NUMBA_CACHE_DIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert done.stderr.count("compiled code cannot be kept on disk") == 1
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]


# ---- without Numba

WITHOUT = """
import sys

sys.modules["numba"] = sys.modules["llvmlite"] = None  # so that importing them fails
"""
TRAIN = """
import torch
import tombola
from tombola import ContinuousSparsification, Masks, RigL, StochasticSparsification
from torch import nn

METHODS = {
    "rigl": RigL(density=0.2, every=2),
    "cs": ContinuousSparsification(initial_score=0.05, penalty=1e-3),
    "stochastic": StochasticSparsification(initial_score=0.1),
}


def trained(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    model[0].to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = tombola.attach(model, optimizer, METHODS[method], steps=6)
    for step in range(6):
        x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    run.detach()
    return [parameter.tolist() for parameter in model.parameters()]
"""


def test_masks_do_without_numba() -> None:
    """The same weights by PyTorch's operations, and one warning."""
    names: dict[str, Any] = {}
    exec(TRAIN, names)
    done = finished(WITHOUT + TRAIN + "import json\nprint(json.dumps({name: trained(name) for name in METHODS}))")
    for name, found in json.loads(done.stdout).items():
        for one, other in zip(found, names["trained"](name), strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-6)
    assert done.stderr.count("RuntimeWarning: Numba cannot be imported (import of numba halted") == 1
    assert done.stderr.count("Warning") == 1


def test_sparse_layers_say_that_they_need_numba() -> None:
    check = """
import tombola, torch
from torch import nn
from tombola.sparse import SparseConv2d, SparseGRU, SparseLinear, convert, measure

model, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
for way in (
    lambda: SparseLinear(4, 4, density=0.5),
    lambda: SparseConv2d(4, 4, 3, density=0.5),
    lambda: SparseGRU(4, 4, density=0.5),
    lambda: convert(model, {"0.weight": torch.eye(4).bool()}, example=x),
    lambda: measure(model, {"0.weight": torch.eye(4).bool()}, x),
):
    try:
        way()
    except ImportError as error:
        print(error)
"""
    lines = finished(WITHOUT + check).stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert "computes by Numba, which cannot be imported here (import of numba halted" in line
        assert line.endswith("install it (pip install numba), or train under masks, which do without")


def test_a_pickled_sparse_layer_says_that_it_needs_numba(tmp_path: Path) -> None:
    """It is loaded, and becomes dense; whatever it would compute says what is missing."""
    torch.manual_seed(0)
    program = convert(nn.Sequential(nn.Linear(4, 4)).eval(), example=torch.ones(1, 4), choose="sparse")
    program.as_program = True
    layer = SparseLinear(4, 4, density=0.5)
    inputs = {"small": torch.ones(2, 4), "large": torch.ones(2048, 4), "image": torch.ones(2, 4, 5, 5)}
    cases = {
        "linear": (layer, inputs["small"]),
        "of many": (layer, inputs["large"]),
        "convolution": (SparseConv2d(4, 4, 3, density=0.5), inputs["image"]),
        "recurrent": (SparseGRU(4, 4, density=0.5), inputs["small"]),
        "program": (program, inputs["small"]),
    }
    (tmp_path / "layers").write_bytes(pickle.dumps((cases, layer.weight())))
    check = f"""
import pickle, torch

with open({str(tmp_path / "layers")!r}, "rb") as file:
    cases, weight = pickle.load(file)
assert torch.equal(cases["linear"][0].to_dense().weight, weight)
for grad in (True, False):
    for layer, x in cases.values():
        try:
            with torch.set_grad_enabled(grad):
                layer(x)
        except ImportError as error:
            print(error)
"""
    lines = finished(WITHOUT + check).stdout.splitlines()
    assert len(lines) == 10
    assert set(lines) == {
        "a sparse layer computes by Numba, which cannot be imported here (import of numba halted; None in sys.modules)"
        "; install it (pip install numba), or train under masks, which do without"
    }
