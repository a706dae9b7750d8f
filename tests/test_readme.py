"""The README's promises: its Python runs, its commands are understood, what it links to is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tombola
from tombola.lab.cli.commands import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOOP = """
    for _ in range(epochs):
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def users_names() -> dict[str, Any]:
    """What a user has before the README's examples begin."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 12, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
    return {"model": model, "loader": batches, "criterion": nn.CrossEntropyLoss(), "epochs": 10}


def test_it_begins_with_the_two_commands() -> None:
    assert [line.split()[:2] for line in blocks("sh")[0].splitlines()] == [["make", "run"], ["make", "test"]]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test"} <= set(targets)


def test_one_line_in_a_loop() -> None:
    names = users_names()
    exec(blocks("python")[0], names)
    weights = [p for p in names["model"].parameters() if p.dim() == 2]
    total = sum(weight.numel() for weight in weights)
    assert sum(int(torch.count_nonzero(weight)) for weight in weights) == round(0.1 * total)
    assert names["run"].density == round(0.1 * total) / total


def test_a_search_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, found = re.subn(r"^    \.\.\. .*\n", LOOP, blocks("python")[1], flags=re.MULTILINE)
    assert found == 1
    names = users_names() | {"tombola": tombola, "torch": torch}
    exec(text.replace("rewind_step=500", "rewind_step=5"), names)  # a round is 40 steps long here
    saved = tombola.Ticket.load(tmp_path / "ticket.safetensors")
    assert saved.masks.kept == names["ticket"].masks.kept == pytest.approx(0.8**12 * saved.masks.total, abs=12)
    for name, mask in saved.masks.items():
        assert not names["model"].get_parameter(name)[~mask].any()


def test_a_method_with_its_settings() -> None:
    names = users_names() | {"tombola": tombola, "torch": torch}
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    exec(blocks("python")[2], names)
    assert names["run"].masks.kept == round(0.1 * 600)


def test_a_really_sparse_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = users_names() | {"tombola": tombola, "torch": torch, "x": torch.randn(8, 12)}
    masks = tombola.Masks({"0.weight": torch.rand(40, 12) < 0.2, "2.weight": torch.rand(3, 40) < 0.5})
    names["ticket"] = SimpleNamespace(masks=masks)
    exec(blocks("python")[3], names)
    shown = capsys.readouterr().out
    assert "chosen" in shown
    assert "even density" in shown
    again = tombola.sparse.load(tmp_path / "net.safetensors", names["model"])
    assert torch.equal(again(names["x"]), names["fast"](names["x"]))


def test_a_network_that_was_never_dense() -> None:
    names = {"tombola": tombola, "torch": torch}
    exec(blocks("python")[4], names)
    assert names["run"].masks["0.weight"].sum() == round(0.05 * 784 * 4096)


def test_every_example_is_tried() -> None:
    assert len(blocks("python")) == 5


def test_its_commands_are_understood() -> None:
    commands = re.findall(r"^(?:torchrun .*-m )?tombola (.*?)(?:  +#.*)?$", "\n".join(blocks("sh")), re.MULTILINE)
    commands += re.findall(r"`tombola (\w+ [^`]*)`", README)
    assert len(commands) >= 7
    for command in commands:
        name, *arguments = shlex.split(command)
        if "--help" in arguments:
            continue
        context = cli.commands[name].make_context(name, arguments)
        assert context.params, command


def test_what_it_links_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    paths = re.findall(r"`((?:src|benchmarks|docs|tests)/[\w/.-]+)`", README)
    assert links
    assert paths
    assert [path for path in links + paths if not (ROOT / path).exists()] == []


def test_every_public_name_it_uses_exists() -> None:
    for name in set(re.findall(r"\btombola\.([A-Za-z_]\w*)", README)):
        assert hasattr(tombola, name) or importlib.util.find_spec(f"tombola.{name}"), name
