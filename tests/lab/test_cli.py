"""The command line as a person types it: help, searches, mistakes, Ctrl-C, tickets, reports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import study

import tombola
from tombola.lab import models
from tombola.lab.cli.commands import cli, typed
from tombola.lab.cli.main import run
from tombola.lab.cli.running import Runs, searches, trainings
from tombola.lab.config import RunConfig
from tombola.lab.methods import BUDGETS, Dense
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Drops
from tombola.lab.study import digits_study
from tombola.patterns import NM, Block, ConstantFanIn

SMALL = ["--model", "conv_digits", "--epochs", "1", "--batch-size", "256", "--jobs", "1"]


def lines_of(captured: str) -> list[str]:
    return captured.replace("\N{NO-BREAK SPACE}", " ").splitlines()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "tombola search --out runs/digits"),
        (["--help"], "inspect"),
        (["search", "-h"], "--initial-score X,..."),
        (["search", "--help"], "[default: lenet_300_100; for cifar10, cifar100 and folder resnet20; for text gru_lm]"),
        (["train", "--help"], "[default: 100; less where that would be fewer than 30 times in the recipe's epochs]"),
        (["inspect", "--help"], "TICKET"),
        (["report", "--help"], "DIR..."),
        (["--version"], f"tombola {tombola.__version__}"),
    ],
)
def test_help(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert " ".join(says.split()) in " ".join(said.out.split())
    assert said.err == ""


@pytest.mark.parametrize("command", ["search", "train"])
def test_help_names_every_model(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert set(models.MODELS) <= words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serach"], "No such command 'serach'"),
        (["search", "--desnity", "1"], "No such option"),
        (["search", "--density"], "'--density' requires an argument"),
        (["search", "--density", "1.5"], "--density: must be a number above 0 and at most 1, not '1.5'"),
        (["search", "--density", "0.1,0"], "--density: must be a number above 0 and at most 1, not '0'"),
        (["search", "--density", "x"], "--density: must be a number above 0 and at most 1, not 'x'"),
        (["search", "--initial-score", "nan"], "--initial-score: must be a finite number, not 'nan'"),
        (["search", "--seeds", "1,,2"], "--seeds: must be a whole number, 0 or more, not ''"),
        (["search", "--seeds", "-1"], "--seeds: must be a whole number, 0 or more, not '-1'"),
        (["search", "--rounds", "0"], "--rounds: must be a whole number, 1 or more, not '0'"),
        (["search", "--rounds", "2.5"], "--rounds: must be a whole number, 1 or more, not '2.5'"),
        (["search", "--lr", "inf"], "--lr: must be a number above 0, not 'inf'"),
        (["search", "--keep", "0"], "--keep: must be a number above 0 and at most 1, not '0'"),
        (["search", "--method", "cs,foo"], "--method: 'foo' is not one of 'cs', 'imp', 'iss', 'dense'"),
        (["search", "--optimizer", "lion"], "--optimizer: 'lion' is not one of 'sgd', 'adam', 'adamw'"),
        (["search", "--final-temperature", "0.5"], "--final-temperature: must be a number, 1 or more, not '0.5'"),
        (["search", "--data", "mnist"], "data 'mnist': there is digits, cifar10"),
        (["search", "--model", "vgg"], "model 'vgg': there is lenet_300_100, lenet_100_69, conv_digits"),
        (["search", "--model", "nowhere:net"], "there is no module 'nowhere'"),
        (["search", "--data", "mine:load"], "--model: is needed with data of your own"),
        (["search", "--data", "cifar10"], "--data-dir"),
        (["search", "--data", "cifar10", "--data-dir", "/nowhere"], "/nowhere"),
        (["search", "--device", "abacus"], "--device abacus: PyTorch cannot use it here"),
        (["search", "--method", "imp", "--density", "0.1"], "--density: is for --method cs, not imp"),
        (["search", "--method", "cs", "--keep", "0.5"], "--keep: is for --method imp, not cs"),
        (["search", "--method", "dense", "--rounds", "3"], "--rounds: is for --method cs or imp or iss, not dense"),
        (["search", "--rewind-epochs", "1", "--rewind-step", "5"], "--rewind-epochs: give it or --rewind-step"),
        (["search", "--epochs", "1", "--rewind-epochs", "1"], "--rewind-epochs: step 21 must come before the end"),
        (["search", "--batch-size", "100000"], "batch"),
        (["search", "extra"], "unexpected extra argument (extra)"),
        (["search", "--epochs", "x0"], "--epochs: must be a whole number, 1 or more, or x and a number, such as x5"),
        (["search", "--epochs", "-3"], "times the recipe's, not '-3'"),
        (["train", "--method", "imp"], "--method: 'imp' is not one of 'rigl', 'set'"),
        (["train", "--density", "0"], "--density: must be a number above 0 and at most 1, not '0'"),
        (["train", "--budget", "fair"], "--budget: 'fair' is not one of 'uniform', 'uniform-first-dense'"),
        (["train", "--every", "0"], "--every: must be a whole number, 1 or more, not '0'"),
        (["train", "--until", "1.5"], "--until: must be a number above 0 and at most 1, not '1.5'"),
        (["train", "--drop-fraction", "-0.1"], "--drop-fraction: must be a number from 0 to 1, not '-0.1'"),
        (["train", "--pattern", "stripes"], "--pattern: must be N:M such as 2:4, a block such as 4x4, fan-in or"),
        (["train", "--pattern", "4:2"], "--pattern: an N:M pattern needs 1 ≤ N < M, not 4:2"),
        (["train", "--pattern", "fan-in:2"], "--pattern: ablate is a share of the fan-in, from 0 to 1, not 2.0"),
        (["train", "--pattern", "3x5"], "pattern: 'fc1.weight' does not fit"),
        (["train", "--pattern", "4x4"], "(here: --unmasked NAME,...)"),
        (["train", "--pattern", "2:4", "--density", "0.1"], "2:4 keeps 0.5 of every layer"),
        (
            ["train", "--pattern", "fan-in", "--method", "gmp"],
            "--method gmp: a pattern needs a budget",
        ),
        (
            ["train", "--method", "static", "--every", "5"],
            "--every: is for --method set or rigl or snfs or gmp",
        ),
        (["train", "--method", "cs", "--budget", "erk"], "--budget: is for --method static or snip or set or rigl"),
        (["train", "--method", "dense", "--density", "0.1"], "--density: is for sparse methods, not dense"),
        (["train", "--method", "dense", "--small-dense"], "--small-dense: is for sparse methods, not dense"),
        (["train", "--method", "rigl,gmp", "--pattern", "fan-in"], "--method gmp: a pattern needs a budget"),
        (["train", "--method", "rigl,cs", "--pattern", "fan-in"], "--pattern: is not for cs, which ranks"),
        (["train", "--method", "static", "--pattern", "fan-in:0.3"], "--pattern fan-in:0.3: is not for static"),
        (["train", "--sparse", "--method", "rigl,gmp"], "--sparse: is not for --method gmp, which needs weights, grad"),
        (["train", "--sparse", "--method", "snip"], "but for static, set, rigl, granet without a pattern"),
        (["train", "--sparse", "--method", "snfs"], "--sparse: is not for --method snfs"),
        (["train", "--sparse", "--method", "cs"], "--sparse: is not for --method cs"),
        (["train", "--sparse", "--method", "dense"], "--sparse: is for sparse methods, not dense"),
        (["train", "--sparse", "--pattern", "fan-in"], "--sparse: is not for --method rigl, which has the pattern fan"),
        (["train", "--sparse", "--precision", "bf16"], "--precision: is not for --sparse, whose layers have kernels"),
        (["train", "--sparse", "--compile"], "--compile: is not for --sparse"),
        (["search", "--precision", "fp8"], "--precision: 'fp8' is not one of 'fp32', 'bf16'"),
        (["train", "--sparse", "--device", "meta"], "--sparse: sparse layers compute on the CPU, not on meta; leave"),
        (["search", "--sparse"], "No such option"),
        (["train", "--unmasked", "fc1.weight,fc2.weight,fc3.weight"], "model 'lenet_300_100': nothing to mask"),
        (["train", "--unmasked", "fc9.weight"], "unmasked: lenet_300_100 has no parameter 'fc9.weight'; it has fc1"),
        (["train", "--width", "0"], "--width: must be a number above 0, not '0'"),
        (["inspect"], "Missing argument 'TICKET'"),
        (["report"], "Missing argument 'DIR...'"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("tombola")
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_search_report_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs with a space"
    arguments = ["search", *SMALL, "--density", "0.2", "--seeds", "0,1", "--out", str(out)]
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert f"Report:  {out / 'report.html'}" in said.out
    row = next(line for line in lines_of(said.out) if "CS density = 0.2" in line)
    assert "20 %" in row
    assert "100 % of " in said.err
    assert (
        f"tombola search {' '.join(SMALL)} --density 0.2 --seeds 0,1 --out '{out}'"
        in (out / "commands.txt").read_text()
    )
    assert "&#39;" in (out / "report.html").read_text()  # the same command, at the foot of the page
    metrics = {path: path.read_bytes() for path in out.glob("*/metrics.jsonl")}
    assert len(metrics) == 4  # cs and dense, two seeds

    assert run([*arguments, "--quiet"]) == 0  # finished already: only the report is made again
    said = capsys.readouterr()
    assert said.err == ""
    assert {path: path.read_bytes() for path in out.glob("*/metrics.jsonl")} == metrics

    (ticket, *_) = sorted(out.glob("cs-*/tickets/*.safetensors"))
    assert run(["inspect", str(ticket)]) == 0
    shown = capsys.readouterr().out
    found = tombola.Ticket.load(ticket)
    for name, count in found.masks.counts().items():
        (line,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert f"{count:,}" in line.split()
    assert "round" in shown
    assert "versions.tombola" in shown

    assert run(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert f"Numbers: {tmp_path / 'page.csv'}" in capsys.readouterr().out
    assert (tmp_path / "page.html").is_file()


@pytest.mark.usefixtures("without_workers")
def test_every_method_of_a_users_own_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_own_things.py").write_text(
        """
import torch
from torch import nn

def net(classes):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, classes))

def load():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return x[:64], y[:64], x[64:], y[64:]
"""
    )
    monkeypatch.chdir(tmp_path)
    own = ["--data", "my_own_things:load", "--model", "my_own_things:net", "--batch-size", "16", "--epochs", "2"]
    settings = ["--method", "cs,imp,iss", "--rounds", "2", "--initial-score", "-0.1,0.2", "--lr", "0.05"]
    assert run(["search", *own, *settings, "--quiet"]) == 0
    shown = lines_of(capsys.readouterr().out)
    for name in ("Dense", "CS s₀ = −0.1", "CS s₀ = 0.2", "IMP keep = 0.8", "ISS s₀ = −0.1", "ISS s₀ = 0.2"):
        assert any(line.startswith(name) for line in shown), name
    assert len(list((tmp_path / "runs").glob("*/done.json"))) == 6


@pytest.mark.usefixtures("without_workers")
def test_a_run_that_fails_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", *SMALL, "--lr", "1e30", "--method", "dense", "--out", str(tmp_path), "--quiet"]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "1 of 1 runs failed" in line
    assert "Traceback" not in line


@pytest.mark.usefixtures("without_workers")
def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    arguments = ["search", *SMALL, "--method", "imp", "--rounds", "25", "--no-controls", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tombola.lab.cli.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob("imp-*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    *_, hint, again = said.splitlines()
    assert hint == "Stopped; nothing is lost. To continue where it stopped:"
    assert again == f"  tombola {' '.join(arguments)}"
    assert not list(tmp_path.glob("imp-*/done.json"))
    assert run([*arguments, "--quiet"]) == 0
    assert list(tmp_path.glob("imp-*/done.json"))


def test_ctrl_c_after_the_end_changes_nothing() -> None:
    """While Python takes itself down, when its own handlers of signals are gone: the status is that of the command."""
    code = """
import os, signal, sys
from tombola.lab.cli import main

class Last:
    def __init__(self):
        self.stop = lambda kill=os.kill, here=os.getpid(), how=signal.SIGINT: kill(here, how)
    def __del__(self):
        self.stop()

sys.last_of_all = Last()
main.run = lambda arguments: int(arguments[0])
main.main()
"""
    for status in (0, 1):
        done = subprocess.run([sys.executable, "-c", code, str(status)], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("content", [b"", b"not a ticket", b"\x80\x04\x95pickle", b"\xff" * 64])
def test_inspect_a_file_that_is_no_ticket(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert run(["inspect", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert run(["inspect", str(tmp_path / "nothing")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_report_of_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "a", seeds=(0, 1))
    study(tmp_path / "b", seeds=(2,))
    assert run(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "seeds 0, 1 and 2" in shown
    assert f"Report:  {tmp_path / 'a' / 'report.html'}" in shown
    assert run(["report", str(tmp_path / "c")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tombola: {tmp_path / 'c'}: no such folder")


def search_of(*arguments: str) -> Runs:
    with cli.commands["search"].make_context("search", list(arguments)) as context:
        return Runs.from_options(context.params, lambda: searches(context.params, given=typed(context)))


@pytest.mark.parametrize("here", [[], ["--out", "x", "--jobs", "1", "--threads", "2", "--device", "cpu", "--quiet"]])
def test_without_options_it_is_the_digits_study(here: list[str]) -> None:
    assert search_of(*here).configs == digits_study()
    assert search_of("--seeds", "4,7", *here).configs == digits_study((4, 7))


def test_options_become_configs() -> None:
    search = search_of(
        "--method", "cs,imp", "--density", "0.1,0.05", "--seeds", "3,1", "--model", "conv6", "--rounds", "2"
    )
    assert [(run.setting, run.seed) for run in search.configs] == [
        (setting, seed) for setting in ("", "density=0.1", "density=0.05", "keep=0.8") for seed in (3, 1)
    ]
    dense, asked, imp = search.configs[0], search.configs[2], search.configs[6]
    assert (dense.epochs, dense.batch_size, dense.optimizer) == (40, 60, Adam(lr=3e-4))  # the papers' for Conv-6
    assert isinstance(asked.method, tombola.ContinuousSparsification)
    assert (asked.method.density, asked.rounds, asked.controls) == (0.1, 2, ("shuffled", "reinitialised"))
    assert (imp.rounds, imp.control_rounds) == (2, (2,))


def test_every_setting_can_be_typed() -> None:
    typed_in = """--no-dense --no-controls --method cs --data digits --model resnet20 --rounds 4 --initial-score -0.2
        --penalty 1e-6 --final-temperature 100 --epochs 10 --batch-size 32 --lr 0.05 --optimizer sgd
        --weight-decay 0.001 --rewind-epochs 1.5"""
    (run,) = search_of(*typed_in.split()).configs
    assert run.method == tombola.ContinuousSparsification(initial_score=-0.2, penalty=1e-6, final_temperature=100.0)
    assert run.optimizer == SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.001)  # momentum is the recipe's
    assert run.schedule == Drops(epochs=(6, 8))  # 56 and 71 of the paper's 85 epochs, shortened alike
    assert (run.rounds, run.epochs, run.batch_size, run.rewind_step) == (4, 10, 32, 63)
    assert run.controls == ()
    assert run.unmasked == ("stage2.0.shortcut.weight", "stage3.0.shortcut.weight", "fc.weight")
    (short,) = search_of("--no-dense", "--method", "imp", "--model", "resnet20", "--epochs", "1").configs
    assert short.rewind_step == 0  # 2 of the paper's 85 epochs, shortened alike
    typed_in = "--no-dense --method iss --optimizer adamw --schedule constant --rewind-step 3"
    (iss,) = search_of(*typed_in.split()).configs
    assert (iss.optimizer, iss.schedule, iss.rewind_step, iss.rounds) == (AdamW(), Constant(), 3, 5)


def training_of(*arguments: str) -> list[RunConfig]:
    with cli.commands["train"].make_context("train", list(arguments)) as context:
        return trainings(context.params)


def test_training_by_default() -> None:
    dense, rigl = training_of()
    assert (dense.method, dense.model, dense.setting) == (Dense(), "lenet_300_100", "")
    # 15 epochs of 21 steps: moves come every 10 steps, so that there are some
    assert rigl.method == tombola.RigL(density=0.1, every=10)
    (prolonged,) = training_of("--no-dense", "--epochs", "x5")
    assert prolonged.method == rigl.method  # a longer training moves more often, not more rarely
    (short,) = training_of("--no-dense", "--epochs", "3")
    assert short.method == tombola.RigL(density=0.1, every=2)
    (long,) = training_of("--no-dense", "--model", "resnet20")
    assert long.method == tombola.RigL(density=0.1, every=28)  # 85 epochs of 10 steps
    assert long.unmasked == ("stage2.0.shortcut.weight", "stage3.0.shortcut.weight", "fc.weight")


def test_every_setting_of_a_training_can_be_typed() -> None:
    typed_in = """--no-dense --method rigl,gmp,granet,snip,cs --density 0.2,0.05 --budget erdos-renyi --every 7
        --until 0.6 --drop-fraction 0.5 --anneal linear --harden-at 0.7 --seeds 4,2 --epochs x2
        --lr 0.3 --schedule step --unmasked fc3.weight,fc1.bias"""
    runs = training_of(*typed_in.split())
    assert [run.seed for run in runs] == [4, 2] * 10
    rigl, _, gmp, _, granet, _, snip, _, cs, _ = (run.method for run in runs[::2])
    moving = {"every": 7, "until": 0.6, "drop_fraction": 0.5, "anneal": "linear"}
    er = tombola.erdos_renyi
    assert rigl == tombola.RigL(density=0.2, budget=er, **moving)
    assert gmp == tombola.GradualMagnitude(density=0.2, budget=er, every=7, begin=0.2, until=0.6)
    assert granet == tombola.GraNet(density=0.2, budget=er, prune_until=0.4, **moving)
    assert snip == tombola.SNIP(density=0.2, budget=er)
    assert cs == tombola.ContinuousSparsification(density=0.2, harden_at=0.7)
    assert {run.epochs for run in runs} == {30}
    assert {run.unmasked for run in runs} == {("fc3.weight", "fc1.bias")}
    assert {run.schedule for run in runs} == {Drops(epochs=(15, 22))}
    assert [run.score_optimizer is not None for run in runs[::4]] == [False] * 4 + [True]


def test_how_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is typed in it follows from network, data and device; and it is written down in any case."""
    (tmp_path / "own_small.py").write_text(
        """
import torch

def load():
    return torch.zeros(40, 3, 8, 8), torch.arange(40) % 2, torch.zeros(4, 3, 8, 8), torch.arange(4) % 2
"""
    )
    monkeypatch.chdir(tmp_path)

    def found(*arguments: str) -> list[tuple[str, bool, bool]]:
        return [(run.precision, run.channels_last, run.compile) for run in training_of(*arguments)]

    colour = ["--data", "own_small:load", "--batch-size", "4"]  # ten steps in an epoch
    conv, flat = [*colour, "--model", "conv_digits"], [*colour, "--model", "lenet_300_100"]
    plain, last = ("fp32", False, False), ("fp32", True, False)
    assert found() == found("--model", "conv_digits") == found(*flat) == [plain, plain]
    assert found(*conv) == found(*conv, "--device", "cuda", "--epochs", "499") == [last, last]
    assert found(*conv, "--device", "cuda", "--epochs", "500") == [("fp32", True, True)] * 2
    assert found(*flat, "--device", "cuda", "--epochs", "500") == [plain, plain]
    assert found(*conv, "--device", "meta") == [plain, plain]
    assert found(*conv, "--sparse") == [last, plain]
    assert found("--precision", "bf16", "--compile", "--channels-last") == [("bf16", True, True)] * 2
    assert found(*conv, "--no-channels-last", "--device", "cuda", "--epochs", "500", "--no-compile") == [plain, plain]
    (search,) = search_of("--precision", "bf16", "--no-dense", "--model", "conv_digits", "--compile").configs
    assert (search.precision, search.compile) == ("bf16", True)


def test_patterns_can_be_typed() -> None:
    def method(*arguments: str) -> Any:
        (run,) = training_of("--no-dense", "--every", "100", *arguments)
        return run.method

    assert method("--pattern", "2:4") == tombola.RigL(density=0.5, budget=tombola.uniform, pattern=NM(2, 4))
    odd = ("--unmasked", "fc3.weight")  # has ten outputs
    assert method("--pattern", "4x2", *odd).pattern == method("--pattern", "4×2", *odd).pattern == Block(4, 2)
    assert method("--pattern", "fan-in").pattern == ConstantFanIn()
    assert method("--pattern", "fan-in:.3").pattern == ConstantFanIn(ablate=0.3)
    first = ("--budget", "uniform-first-dense", "--model", "conv_digits")
    assert method(*first).budget is BUDGETS["uniform-first-dense"]


def test_dense_baselines() -> None:
    runs = training_of("--method", "static,set,rigl", "--density", "0.4", "--equal-arithmetic", "--small-dense")
    dense, static, _, rigl, *fair, narrow = runs
    assert [run.total_epochs for run in (dense, static, rigl)] == [15] * 3
    # static and SET cost 0.4 of dense, RigL a little more; there are no parts of an epoch
    assert [(run.total_epochs, run.setting) for run in fair] == [(6, "6 epochs")]
    net = models.lenet_300_100(image_size=8)
    full, biases = sum(p.numel() for p in net.parameters()), 410
    size = sum(p.numel() for p in models.lenet_300_100(image_size=8, width=narrow.width).parameters())
    assert size == pytest.approx(0.4 * (full - biases) + biases, rel=0.01)


def test_granet_begins_no_sparser_than_it_ends() -> None:
    runs = training_of("--no-dense", "--method", "granet", "--density", "0.1,0.6", "--model", "conv_digits")
    assert [run.method.initial_density for run in runs] == [0.5, 0.6]  # type: ignore[union-attr]
    # the budget shapes the beginning, where a dense first layer has room, and not the end
    (run,) = training_of("--no-dense", "--method", "granet", "--budget", "uniform-first-dense")
    assert run.method.density == 0.1  # type: ignore[union-attr]


@pytest.mark.usefixtures("without_workers")
def test_a_net_whose_layers_nobody_can_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_functional.py").write_text(
        """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a = nn.Linear(64, classes)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.a.weight, self.a.bias)
"""
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--model", "my_functional:Net", "--density", "0.5", "--epochs", "1", "--jobs", "1", "-q"]
    assert run(arguments) == 0
    row = next(line for line in lines_of(capsys.readouterr().out) if line.startswith("RigL"))
    assert row.split()[-1] == "1"  # the epochs: of the arithmetic nothing is known
    assert run([*arguments, "--equal-arithmetic"]) == 2
    assert "--equal-arithmetic: my_functional:Net uses a masked weight" in capsys.readouterr().err
    assert run([*arguments, "--small-dense"]) == 2
    assert "takes no argument width" in capsys.readouterr().err


@pytest.mark.usefixtures("without_workers")
def test_train_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sparse"
    arguments = ["train", "--method", "rigl,static", "--density", "0.2,0.1", "--seeds", "0,1", *SMALL]
    assert run([*arguments, "--small-dense", "--out", str(out)]) == 0
    said = capsys.readouterr()
    lines = lines_of(said.out)
    for name in ("Dense ", "Dense width =", "RigL density = 0.2", "RigL density = 0.1", "Static density = 0.1"):
        assert any(line.startswith(name) for line in lines), name
    assert "arithmetic" in said.out
    assert "round" not in said.out
    (layer,) = [line for line in lines if line.startswith("conv2.weight")]
    assert layer.split()[1] == "4,608"
    assert layer.count("%") == 4
    page = (out / "report.html").read_text()
    assert "Sparse training of conv_digits on digits" in page
    assert "Winning tickets" not in page
    assert (out / "results.csv").read_text().count("\n") == 1 + 1 + 2 + 4
    (trained, *_) = sorted(out.glob("rigl-*/tickets/trained.safetensors"))
    assert run(["inspect", str(trained)]) == 0
    assert "RigL" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.glob("*/metrics.jsonl")}
    assert run([*arguments, "--small-dense", "--out", str(out), "--quiet"]) == 0  # there is nothing left to do
    assert {path: path.read_bytes() for path in out.glob("*/metrics.jsonl")} == before


def test_the_compiler_is_not_loaded_by_an_import() -> None:
    """It takes longer than all the rest together."""
    code = "import sys, tombola.lab.cli.main; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_terminal_without_the_signs(tmp_path: Path) -> None:
    study(tmp_path, seeds=(0, 1))
    command = [sys.executable, "-m", "tombola.lab.cli.main", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=120)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"CS s??=?" in done.stdout
