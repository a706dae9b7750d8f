"""Every example runs; those for a library of others as they are, and these are short."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
slow = pytest.mark.slow
NEEDS = {
    "huggingface_trainer": ("transformers", "accelerate"),
    "gpt2_continuous_sparsification": ("transformers", "accelerate"),
    "accelerate_loop": ("accelerate",),
    "lightning_trainer": ("lightning",),
    "compiled_loop": (),
    "ray_train": ("ray", "pyarrow"),
}
SLOW = ("compiled_loop", "ray_train")  # which compile, or start a cluster


@pytest.mark.filterwarnings("ignore")  # of libraries of others
@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if name in SLOW else name for name in NEEDS])
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
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


@pytest.mark.parametrize("name", NEEDS)
def test_it_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


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
