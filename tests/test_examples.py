"""Every example runs; those for a library of others as they are, and these are short."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tombola.lab.cli.main import run

EXAMPLES = Path(__file__).parents[1] / "examples"
slow = pytest.mark.slow
NEEDS = {
    "huggingface_trainer": ("transformers", "accelerate"),
    "gpt2_continuous_sparsification": ("transformers", "accelerate"),
    "accelerate_loop": ("accelerate",),
    "lightning_trainer": ("lightning",),
    "compiled_loop": (),
    "ray_train": ("ray", "pyarrow", "pandas"),
}
SLOW = ("compiled_loop", "ray_train")  # which compile, or start a cluster


@pytest.mark.filterwarnings("ignore")  # of libraries of others
@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if name in SLOW else name for name in NEEDS])
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]:
        pytest.skip(f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if name == "compiled_loop" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # no cluster that happens to be here
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    paths = [str(EXAMPLES.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # for processes that it starts
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    wanted = {
        "huggingface_trainer": "1,747 of 17,472 weights are left in bert/sparse/model.safetensors",
        "gpt2_continuous_sparsification": "density 0.2000, loss of the ticket",
        "accelerate_loop": "282 of 1,408 weights are left after 40 steps",
        "lightning_trainer": "282 of 1,408 weights are left after 40 steps",
        "compiled_loop": "282 of 1,408 weights are left after 80 steps",
        "ray_train": "density 0.200, checkpoint in ",
    }
    assert wanted[name] in said
    if name == "ray_train":
        import ray

        ray.shutdown()


@slow
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit: pip install submitit")
def test_searches_as_slurm_jobs(tmp_path: Path) -> None:
    """A job for each seed, by processes of this machine instead of Slurm's; the jobs leave what the command would."""
    search = ["--method", "imp", "--rounds", "1", "--epochs", "1", "--no-dense", "--no-controls", "--out", "sweep"]
    command = [sys.executable, str(EXAMPLES / "on_slurm.py"), "--cluster", "local", "--seeds", "0,1", "--", *search]
    path = os.pathsep.join([str(EXAMPLES.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=250
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in said] == [
        f"done: {' '.join(search)} --jobs 1 --quiet --seeds {seed}" for seed in (0, 1)
    ]
    runs = sorted((tmp_path / "sweep").glob("imp-*"))
    assert [run.name.split("-")[3] for run in runs] == ["s0", "s1"]
    assert all((run / "done.json").is_file() for run in runs)


@pytest.mark.parametrize("name", NEEDS)
def test_it_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.usefixtures("without_workers")
def test_data_and_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / "own_data.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    (command,) = re.findall(r"^tombola (.*)$", text, re.MULTILINE)
    monkeypatch.chdir(EXAMPLES)
    try:
        assert run([*shlex.split(command), "--out", str(tmp_path), "--quiet"]) == 0
    finally:
        sys.modules.pop("own_data", None)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (accuracy,) = [float(row[3]) for row in rows if row[:3] == ["2", "64", "%"]]  # of the second round
    assert 80 < accuracy <= 100


def test_sparse_digits(capsys: pytest.CaptureFixture[str]) -> None:
    run = runpy.run_path(str(EXAMPLES / "sparse_digits.py"), run_name="__main__")["run"]
    *steps, end = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in steps] == [f"step {step}" for step in range(100, 700, 100)]
    assert float(steps[-1].split()[-2]) > 90
    assert run.density == (6554 + 5243) / (64 * 512 + 512 * 512)
    assert end.startswith("4.0% of the weights are there, ")


def test_wide_lenet(capsys: pytest.CaptureFixture[str]) -> None:
    """With fewer epochs and a net that is twice as wide instead of ten times."""
    example = runpy.run_path(str(EXAMPLES / "wide_lenet.py"))
    settings = example["main"].__globals__
    settings.update(WIDTH=2, DENSITY=0.05, EPOCHS=3)
    example["main"]()
    ordinary, wide = capsys.readouterr().out.splitlines()
    assert ordinary.startswith("ordinary: 50,200 weights, test accuracy ")
    weights = 600 * 64 + 200 * 600 + 10 * 200
    assert f": {round(0.05 * weights):,} weights, test accuracy " in wide
    assert min(float(line.split()[-2]) for line in (ordinary, wide)) > 60
