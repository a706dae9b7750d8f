"""Runs under torchrun: real ranks over gloo end with the numbers and masks of one process, whatever happens to them."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import ASKED, CS, DENSE, ELSEWHERE, EVERY_METHOD, IMP_, ISS
from test_nothing_lost import until
from torch import nn
from torch.nn import functional as F

from tombola import Masks, Ticket
from tombola.lab.config import RunConfig
from tombola.lab.data import Data, Part
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.looking import read_metrics
from tombola.lab.settings import Adam
from tombola.methods.rigl import RigL

pytest.importorskip("lightning", reason="needs Lightning Fabric: pip install 'tombola[lightning]'")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo: several ranks cannot be tried here",
)

OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tombola.lab import models
from tombola.lab.data import Loaders

def load32(examples=600):
    x = torch.randn(examples + 200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :10].argmax(1)
    return x[:examples], y[:examples], x[examples:], y[examples:]

def load(examples=600):
    \"\"\"In double precision rounding cannot grow to anything while nets train.\"\"\"
    x, y, test_x, test_y = load32(examples)
    return x.double(), y, test_x.double(), test_y

def odd():
    \"\"\"Of 193 examples in batches of 64 the last batch has one.\"\"\"
    x, y, test_x, test_y = load(193)
    train = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    return Loaders(train, DataLoader(TensorDataset(test_x, test_y), batch_size=150), 10, (1, 8, 8), "odd")

def normed():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=None), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    ).double()

def dropped():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)).double()

def residual():
    return models.build("resnet20", input_shape=(1, 8, 8), classes=10, seed=torch.initial_seed(), width=0.25).double()
"""
HERE = Path(__file__).parent
PLAIN = replace(DENSE, data="own_ranks:load32", batch_size=101)  # which two ranks cannot share equally
NORMED = replace(PLAIN, data="own_ranks:load", model="own_ranks:normed")
SEARCH = replace(
    CS, data="own_ranks:load32", batch_size=101, epochs=3, controls=("shuffled", "reinitialised"), control_rounds=(2,)
)
FAST = {
    "cs": SEARCH,
    "rigl": replace(NORMED, method=RigL(density=0.3, every=4), clip=1.0, label_smoothing=0.1),
    "dense, normed": replace(NORMED, data="own_ranks:odd", batch_size=64, optimizer=Adam(lr=0.01)),
    "dense, dropout": replace(NORMED, model="own_ranks:dropped"),
    "fails": replace(PLAIN, model="own_ranks:nothing"),
    "dense": replace(PLAIN, precision="bf16", channels_last=True),
}
SLOW = {
    "asked": replace(ASKED, data="own_ranks:load", model="own_ranks:normed", epochs=4),
    "imp": replace(IMP_, batch_size=101),
    "iss": ISS,
    "transfer": EVERY_METHOD["cs, transfer"],
    "imp, transfer": replace(IMP_, data=ELSEWHERE.data, batch_size=80, rounds=2),
    "resnet20": replace(NORMED, model="own_ranks:residual", epochs=3, augment=True),
    "rigl, lottery on": EVERY_METHOD["rigl, lottery on"],
    "gmp": EVERY_METHOD["gmp"],
    "snip, fan-in": EVERY_METHOD["snip, fan-in"],
    "compiled": replace(DENSE, compile=True),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the data sets and models in it."""
    folder, before = tmp_path_factory.mktemp("own"), Path.cwd()
    (folder / "own_ranks.py").write_text(OWN)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("own_ranks", None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def launched(*command: str, ranks: int = 2, more: Sequence[str] = ("--standalone",)) -> Iterator[subprocess.Popen[str]]:
    """torchrun as a process of its own group; its ranks are in groups of their own, and end with it."""
    line = [sys.executable, "-m", "torch.distributed.run", *more, "--nproc-per-node", str(ranks), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def done(*command: str, ranks: int = 2, more: Sequence[str] = ("--standalone",)) -> tuple[int, str, str]:
    """Status, standard output and standard error of torchrun."""
    with launched(*command, ranks=ranks, more=more) as process:
        out, err = process.communicate(timeout=500)
        return process.returncode, out, err


def trained(configs: Sequence[RunConfig], folder: Path, *, ranks: int = 2) -> list[str]:
    """What rank 0 was told of the runs, which are in ``folder`` then."""
    folder.mkdir(exist_ok=True)
    (folder / "configs.json").write_text(json.dumps([config.to_json() for config in configs]))
    status, out, err = done(str(HERE / "torchrun_job.py"), str(folder), ranks=ranks)
    assert (status, out) == (0, ""), err
    told = [json.loads((folder / f"events-{rank}.json").read_text()) for rank in range(ranks)]
    assert all(each == told[0][-1:] or not each for each in told[1:])  # but for what went wrong in the end
    return list(told[0])


def check(config: RunConfig, folder: Path, *, ranks: int = 2) -> None:
    """That the run is as one process has it, and the tickets of all ranks are."""
    alone, together = execute(config, folder / "alone"), folder / "together" / config.folder_name
    records = [read_metrics(path / "metrics.jsonl") for path in (together, alone)]
    close(*records)
    assert json.loads((together / "times.json").read_text())["device"] == f"{ranks} × cpu"
    for path in sorted((alone / "tickets").iterdir()):
        expected = Ticket.load(path)
        for found in [together / "tickets" / path.name, *folder.glob(f"rank-*/{config.folder_name} {path.name}")]:
            ticket = Ticket.load(found)
            assert Masks(ticket.masks) == Masks(expected.masks), found
            for name, start in expected.start.items():
                torch.testing.assert_close(ticket.start[name], start, rtol=1e-3, atol=1e-4)
        first, *others = (each.read_bytes() for each in folder.glob(f"rank-*/{config.folder_name} {path.name}"))
        assert len(others) == ranks - 1
        assert all(other == first for other in others)


def close(found: Any, expected: Any, *, key: str = "") -> None:
    """The same structure; whole numbers and texts are equal, others nearly."""
    assert type(found) is type(expected), key
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), key
        for name in found:
            close(found[name], expected[name], key=f"{key}.{name}")
    elif isinstance(found, list) and key.endswith("scores"):  # a histogram: some may lie at an edge
        assert sum(found) == sum(expected)
        assert sum(abs(one - other) for one, other in zip(found, expected, strict=True)) <= 2 + sum(found) // 500
    elif isinstance(found, list):
        assert len(found) == len(expected), key
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, key=f"{key}[{place}]")
    elif isinstance(found, float):
        few = 2e-3 if key.endswith("undecided") else 1e-5  # of many scores some may lie at the edge
        assert math.isclose(found, expected, rel_tol=1e-4, abs_tol=few), (key, found, expected)
    else:
        assert found == expected, key


@pytest.mark.usefixtures("own")
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """A run that fails on all ranks does not take the others with it; that of dropout says that it draws otherwise."""
    told = trained(list(FAST.values()), tmp_path / "two")
    assert told[-1].startswith(f"1 of {len(FAST)} runs failed; the first is {FAST['fails'].folder_name}: ")
    assert told[:-1].count("done") == len(FAST) - 1
    for name in ("cs", "rigl", "dense, normed", "dense"):
        check(FAST[name], tmp_path / "two")
    records = read_metrics(tmp_path / "two" / "together" / FAST["dense, dropout"].folder_name / "metrics.jsonl")
    assert [record["text"] for record in records if record["kind"] == "warning"] == [
        "torchrun: dropout draws other numbers on 2 ranks than in one process"
    ]


TRAIN = ["train", "--method", "rigl", "--data", "own_ranks:load32", "--model", "conv_digits", "--batch-size", "100"]
TRAIN += ["--epochs", "2", "--no-dense"]


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_only_rank_0_prints(tmp_path: Path) -> None:
    status, out, err = done("-m", "tombola", *TRAIN, "--out", str(tmp_path))
    assert status == 0, err
    assert out.count("Report: ") == 1
    assert err.count("100 % of 2 epochs") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "commands.txt", "report.html", "results.csv",
    ]  # fmt: skip
    assert "on 2 × cpu" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "commands.txt").read_text().startswith("tombola train --method rigl")


# ---- without processes


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int = 0) -> None:
    here = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "none"}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--jobs", "2"], "--jobs: torchrun's ranks train one run after another; leave it out"),
        (["--on", "ray"], "--on: torchrun's ranks are where to compute; leave one of the two out"),
        (["--sparse"], "--sparse: sparse layers are trained by one process; leave it or torchrun out"),
        (["--device", "cuda:1"], "--device cuda:1: with torchrun give cpu or cuda; it says which GPU"),
    ],
)
def test_what_does_not_go_together(
    more: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tombola.lab.cli.main import run

    as_rank(monkeypatch)
    assert run(["train", "--method", "rigl", *more, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr() == ("", f"tombola train: {says}\n")
    assert not (tmp_path / "out").exists()


def test_without_fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tombola.lab.cli.main import run

    as_rank(monkeypatch)
    for name in ("lightning_fabric", "lightning", "lightning.fabric"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert run(["train", "--method", "rigl", "--quiet", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tombola: torchrun: to train on 2 ranks Lightning Fabric has to be installed (")
    assert said.endswith("): pip install 'tombola[lightning]'\n")


@pytest.mark.parametrize("examples", [1, 2, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_make_up_the_whole(examples: int, count: int) -> None:
    parts = [Part(index=index, count=count) for index in range(count)]
    assert [place for part in parts for place in range(examples)[part.of(examples)]] == list(range(examples))
    sizes = [part.size(examples) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(turn for part in parts for turn in part.turns(range(examples))) == list(range(examples))


def test_parts_of_augmented_batches() -> None:
    """However many parts, together they are the very batches of one process."""
    x, y = torch.randn(50, 3, 12, 12), torch.randint(5, (50,))
    data = Data(x, y, x, y, 5, "noise", cutout=4)
    whole = list(data.epoch(3, batch_size=11, augment=True))
    parts = [list(data.epoch(3, batch_size=11, augment=True, part=Part(index=index, count=3))) for index in range(3)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        for both, each in zip(batch, zip(*pieces, strict=True), strict=True):
            assert torch.equal(both, torch.cat(each))


# ---- longer


def of_four_norms(rank: int, ranks: int, folder: Path) -> dict[str, torch.Tensor]:
    """Outputs, gradients and running statistics of a norm that has seen this rank's part, weighed as in the lab."""
    from tombola.lab.runs.norms import WholeBatches

    norm, x = nn.BatchNorm2d(3).double(), batch()
    mine = x[Part(index=rank, count=ranks).of(len(x))].clone().requires_grad_()
    with WholeBatches():
        output = norm(mine)
    (F.elu(output).sum() * (1 + rank)).backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert mine.grad is not None
    sums = torch.stack([norm.weight.grad, norm.bias.grad])
    torch.distributed.all_reduce(sums)
    statistics = torch.stack([*norm.buffers()][:2])
    return {"output": output.detach(), "dx": mine.grad, "sums": sums, "statistics": statistics}


def batch() -> torch.Tensor:
    return torch.randn(11, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 100


@pytest.mark.slow
def test_norms_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    from together import spawn

    found = [rank["norms"] for rank in spawn(4, tmp_path / "four", {"norms": of_four_norms})]
    norm, x = nn.BatchNorm2d(3).double(), batch().requires_grad_()
    weights = torch.cat([torch.full((Part(index=r, count=4).size(11),), 1.0 + r) for r in range(4)])
    output = norm(x)
    (F.elu(output) * weights.view(-1, 1, 1, 1)).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert x.grad is not None
    exactly = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([rank["output"] for rank in found]), output.detach(), **exactly)
    torch.testing.assert_close(torch.cat([rank["dx"] for rank in found]), x.grad, **exactly)
    for rank in found:
        torch.testing.assert_close(rank["sums"], torch.stack([norm.weight.grad, norm.bias.grad]), **exactly)
        torch.testing.assert_close(rank["statistics"], torch.stack([*norm.buffers()][:2]), **exactly)


@pytest.fixture(scope="module")
def slow(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have made the slow runs."""
    folder = tmp_path_factory.mktemp("slow") / "two"
    trained(list(SLOW.values()), folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SLOW)
def test_two_ranks_are_one_process_with_every_method(name: str, slow: Path) -> None:
    check(SLOW[name], slow)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("own")
def test_four_ranks(tmp_path: Path) -> None:
    """Some of which have no part of the last batch."""
    names = ("cs", "rigl", "dense, normed")
    trained([FAST[name] for name in names], tmp_path / "four", ranks=4)
    for name in names:
        check(FAST[name], tmp_path / "four", ranks=4)


LONG = ["search", "--method", "cs", "--data", "own_ranks:load", "--model", "own_ranks:normed", "--rounds", "2"]
LONG += ["--epochs", "30", "--batch-size", "100", "--no-dense", "--no-controls", "--quiet"]


def checkpoint_in(out: Path) -> bool:
    return any(out.glob("*/checkpoint-*.pt"))


def config_of(out: Path) -> RunConfig:
    (path,) = out.glob("*/config.json")
    return RunConfig.read(path)


@pytest.fixture(scope="module")
def undisturbed(own: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of LONG in one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    line = [sys.executable, "-m", "tombola", *LONG, "--jobs", "1", "--out", str(out)]
    subprocess.run(line, check=True, capture_output=True)
    return read_metrics(out / config_of(out).folder_name / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed(lost: int, undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    """Torchrun ends the other one; one process goes on, and is stopped, and two ranks go on from there."""
    with launched("-m", "tombola", *LONG, "--out", str(tmp_path)) as process:
        assert until(lambda: checkpoint_in(tmp_path), process)
        ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        begun = time.monotonic()
        os.kill(sorted(map(int, ranks.split()))[lost], signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == 1
        assert time.monotonic() - begun < 60
    config = config_of(tmp_path)
    epochs = 0

    def stop() -> bool:
        nonlocal epochs
        epochs += 1
        return epochs == 20

    from tombola.lab.runs.events import Stopped

    with pytest.raises(Stopped):
        execute(config, tmp_path, stop=stop)
    status, out, err = done("-m", "tombola", *LONG, "--out", str(tmp_path))
    assert (status, out.count("Report: ")) == (0, 1), err
    close(read_metrics(tmp_path / config.folder_name / "metrics.jsonl"), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c(undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    with launched("-m", "tombola", *LONG, "--out", str(tmp_path)) as process:
        assert until(lambda: checkpoint_in(tmp_path), process)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert out == ""
        assert err.count("Stopped; nothing is lost.") == 1
    config = config_of(tmp_path)
    execute(config, tmp_path)
    close(read_metrics(tmp_path / config.folder_name / "metrics.jsonl"), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines(undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two agents, the second of which neither sees nor makes a folder for the runs."""
    there = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "--node-rank")
    outs = tmp_path / "one", tmp_path / "two"
    with (
        launched("-m", "tombola", *LONG, "--out", str(outs[0]), ranks=1, more=(*there, "0")) as one,
        launched("-m", "tombola", *LONG, "--out", str(outs[1]), ranks=1, more=(*there, "1")) as two,
    ):
        said = one.communicate(timeout=500), two.communicate(timeout=100)
    assert (one.returncode, two.returncode) == (0, 0), said
    assert said[0][0].count("Report: ") == 1
    assert said[1][0] == ""
    assert not outs[1].exists()
    close(read_metrics(outs[0] / config_of(outs[0]).folder_name / "metrics.jsonl"), undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    begun = time.monotonic()
    status, out, err = done("-m", "tombola", *TRAIN, "--out", str(tmp_path / "file" / "out"))
    assert (status, out) == (1, "")
    assert err.count("choose another with --out") == 1
    assert time.monotonic() - begun < 150  # the limits of PyTorch are half an hour


MOODY = """
import os
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        self.called = getattr(self, "called", 0) + self.training
        if os.environ["RANK"] == "1" and self.called > {calls}:
            raise ValueError("not today")
        return super().forward(x)

def net():
    return Net(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.mark.slow
@pytest.mark.parametrize("calls", [-1, 4])
def test_what_is_wrong_on_one_rank_alone(calls: int, own: Path, tmp_path: Path) -> None:
    """When runs are checked, and amid the training: it says so, and the other does not wait for it for ever."""
    (own / "own_moody.py").write_text(MOODY.format(calls=calls))
    command = [*TRAIN, "--out", str(tmp_path), "--quiet"]
    command[command.index("conv_digits")] = "own_moody:net"
    begun = time.monotonic()
    status, out, err = done("-m", "tombola", *command)
    assert (status, out) == (1, "")
    (line,) = [line for line in err.splitlines() if "not today" in line]
    assert line.startswith(f"rank 1 on {socket.gethostname()}: tombola")
    assert time.monotonic() - begun < 150  # the limits of PyTorch are half an hour
