"""Machine code on disk: the next process finds it and compiles nothing; where it cannot be kept, all works without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import tombola

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
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_next_process_compiles_nothing(tmp_path: Path) -> None:
    """It reads what the first one kept, and leaves the folder as it is, instead of adding to it for ever."""

    def kept() -> dict[str, tuple[int, int]]:
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}

    run(WORK + NORM + PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    first = kept()
    loops = {name.split("-")[0].split(".", 1)[1].rsplit("_", 1)[0] for name in first if name.endswith(".nbc")}
    assert loops == {"", "product", "product_in_order", "gradient", "forward", "backward", *OF_PROGRAMS}
    assert len([name for name in first if name.endswith(".nbc")]) == len(loops)
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
from tombola.sparse import kernels
print(tombola.__file__, type(kernels.transpose._cache).__name__)
"""
    names = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "USERPROFILE", "LOCALAPPDATA")
    folders = {name: str(nowhere / "folder") for name in names}
    found = run(WORK + check, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", **folders)
    assert found.split() == [str(tmp_path / "tombola" / "__init__.py"), "NullCache"]  # it was the copy, and kept none
