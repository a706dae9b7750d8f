"""Texts as data: tokens, examples, splits, bits per character; and what can be wrong with them."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop import same
from torch import nn

from tombola.lab.cli.main import run
from tombola.lab.config import RunConfig
from tombola.lab.data import Data, Tokens, load
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Text
from tombola.lab.methods import Dense
from tombola.lab.models import build
from tombola.lab.report.page import write_report
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics
from tombola.lab.runs.train import cross_entropy, fit, measure
from tombola.lab.seeds import derive
from tombola.lab.settings import SGD
from tombola.methods.continuous import ContinuousSparsification

SENTENCE = "Der Übermut tut selten gut, sagte der Hase — und lief.\n"


def tokens(folder: Path, *, text: str = SENTENCE * 40, unit: str = "bytes", length: int = 16) -> Tokens:
    (folder / "fable.txt").write_bytes(text.encode())
    data = load("text/fable.txt", data_dir=folder, inputs=Text(unit=unit, length=length))  # type: ignore[arg-type]
    assert isinstance(data, Tokens)
    return data


def test_bytes_and_characters(tmp_path: Path) -> None:
    by_bytes, by_characters = (tokens(tmp_path, unit=unit) for unit in ("bytes", "characters"))
    whole = torch.cat([by_bytes.train, by_bytes.valid_tokens, by_bytes.test_tokens])
    assert bytes(whole.tolist()) == (SENTENCE * 40).encode()
    assert (by_bytes.classes, by_bytes.input_shape, by_bytes.vocabulary) == (256, (16,), None)
    vocabulary = by_characters.vocabulary
    assert vocabulary == "".join(sorted(set(SENTENCE)))
    assert by_characters.classes == len(vocabulary)
    parts = (by_characters.train, by_characters.valid_tokens, by_characters.test_tokens)
    assert "".join(vocabulary[token] for token in torch.cat(parts)) == SENTENCE * 40
    total = len(SENTENCE) * 40
    assert [len(part) for part in parts] == [
        round(0.9 * total), round(0.95 * total) - round(0.9 * total), total - round(0.95 * total),
    ]  # fmt: skip


def test_three_files(tmp_path: Path) -> None:
    (tmp_path / "fables").mkdir()
    for part, text in (("train", "abcd" * 20), ("valid", "bcda" * 9), ("test", "äabc" * 10)):
        (tmp_path / "fables" / f"{part}.txt").write_text(text, encoding="utf-8")
    data = load("text/fables", data_dir=tmp_path, inputs=Text(unit="characters", length=8))
    assert isinstance(data, Tokens)
    assert (data.classes, data.vocabulary) == (5, "abcdä")
    assert [len(part) for part in (data.train, data.valid_tokens, data.test_tokens)] == [80, 36, 40]
    assert data.test_tokens[:4].tolist() == [4, 0, 1, 2]
    (tmp_path / "fables" / "valid.txt").unlink()
    with pytest.raises(LabError, match=r"fables/valid.txt: cannot be read: No such file"):
        load("text/fables", data_dir=tmp_path)


def test_an_epoch_is_its_seed_and_labels_come_next(tmp_path: Path) -> None:
    data = tokens(tmp_path, text="".join(map(chr, range(33, 127))) * 10, length=7)
    assert data.steps(4) == (len(data.train) - 7) // 7 // 4
    epochs = [list(data.epoch(seed, batch_size=4, augment=False)) for seed in (1, 1, 2)]
    assert same(epochs[0], epochs[1])
    assert not same(epochs[0], epochs[2])
    for epoch in epochs:
        assert len(epoch) == data.steps(4)
        for x, y in epoch:
            assert (x.shape, y.shape, x.dtype, y.dtype) == ((4, 7), (4, 7), torch.int64, torch.int64)
            assert torch.equal(x[:, 1:], y[:, :-1])
            assert torch.equal(y, (x - 33 + 1) % 94 + 33)  # each character is followed by the next one
    firsts = {int(x[0, 0] - epoch[0][0][0, 0]) % 7 for epoch in epochs for x, _ in epoch[1:2]}
    assert len(firsts) <= 7
    x, y = (torch.cat(part) for part in zip(*data.test(), strict=True))
    assert torch.equal(x.flatten(), data.test_tokens[: x.numel()].long())
    assert torch.equal(y.flatten(), data.test_tokens[1 : x.numel() + 1].long())
    assert len(data.test_tokens) - 1 - x.numel() < 7
    assert torch.equal(next(data.valid())[0][0], data.valid_tokens[:7].long())
    with pytest.raises(LabError, match=r"augment: text/fable.txt is a text, not images"):
        next(data.epoch(0, batch_size=4, augment=True))


def test_every_token_is_trained_on_wherever_an_epoch_begins(tmp_path: Path) -> None:
    data = tokens(tmp_path, text="".join(map(chr, range(33, 127))) * 10, length=16)
    starts = set()
    for seed in range(60):
        x, _ = next(data.epoch(seed, batch_size=data.steps(1), augment=False))
        starts.add(int(x[0, 0] - 33) % 2)
        assert len(x) == data.steps(1)
    assert starts == {0, 1}


@pytest.mark.parametrize(
    ("content", "inputs", "says"),
    [
        (b"", Text(), "fable.txt: is empty; put the text there"),
        (b"short", Text(length=4), "the text is too short, part 'train' has 4 tokens and needs 8 for examples of 4"),
        (
            b"a" * 100,
            Text(length=5),
            "part 'valid' has 5 tokens and needs 6 .*; give a longer text, or less",
        ),
        (b"good \xff\xfe bad" * 99, Text(unit="characters"), "fable.txt: is no UTF-8 .*; read it as bytes"),
    ],
)
def test_texts_that_are_wrong(content: bytes, inputs: Text, says: str, tmp_path: Path) -> None:
    (tmp_path / "fable.txt").write_bytes(content)
    with pytest.raises(LabError, match=says):
        load("text/fable.txt", data_dir=tmp_path, inputs=inputs)


def test_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no_such.txt: there is no such file or folder; --data-dir must name it"):
        load("text/no_such.txt", data_dir=tmp_path)
    tokens(tmp_path)
    with pytest.raises(LabError, match="is read as Text, not as Images"):
        load("text/fable.txt", data_dir=tmp_path, inputs=Images())


# ---- loss and measure


def test_loss_over_tokens() -> None:
    output, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    by_hand = -output.log_softmax(2).gather(2, labels[..., None]).mean()
    assert torch.allclose(cross_entropy(output, labels), by_hand)
    flat = nn.functional.cross_entropy(output[:, 0], labels[:, 0])
    assert torch.equal(cross_entropy(output[:, 0], labels[:, 0]), flat)


class Bigram(nn.Module):
    """The next token from the last one."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(classes, 12), nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(x))  # type: ignore[no-any-return]


def test_measure_counts_tokens(tmp_path: Path) -> None:
    data = tokens(tmp_path, unit="characters")
    model = Bigram(data.classes)
    found = measure(model, [(x[:3], y[:3]) for x, y in data.test()] + [(x[:1], y[:1]) for x, y in data.test()])
    x, y = next(data.test())
    with torch.no_grad():
        outputs = model(torch.cat([x[:3], x[:1]])).log_softmax(2)
    labels = torch.cat([y[:3], y[:1]])
    assert found.loss == pytest.approx(-float(outputs.gather(2, labels[..., None]).mean()), rel=1e-5)
    assert found.accuracy == pytest.approx(float((outputs.argmax(2) == labels).float().mean()), rel=1e-6)


def learns(data: Tokens) -> tuple[float, float]:
    """Bits per character before and after a little training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bigram(data.classes)
    before = measure(model, data.test()).loss
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    fit(model, optimizer, lambda epoch: data.epoch(epoch, batch_size=8, augment=False), epochs=4)
    return before / math.log(2), measure(model, data.test()).loss / math.log(2)


def test_a_model_learns(tmp_path: Path) -> None:
    before, after = learns(tokens(tmp_path, unit="characters", text=SENTENCE * 60))
    assert before > 4
    assert after < 2


def test_shakespeare() -> None:
    folder = os.environ.get("TOMBOLA_DATA")
    if folder is None or not (Path(folder) / "tinyshakespeare.txt").is_file():
        pytest.skip("set TOMBOLA_DATA to a folder that holds tinyshakespeare.txt")
    data = load("text/tinyshakespeare.txt", data_dir=Path(folder), inputs=Text(unit="characters", length=256))
    assert isinstance(data, Tokens)
    assert (data.classes, len(data.train)) == (65, 1_003_855)
    before, after = learns(data)
    assert before > 5.8
    assert 3.0 < after < 3.8  # pairs of letters tell no more


# ---- a run


def test_the_validation_part_is_measured_beside_the_test_part(tmp_path: Path) -> None:
    """By the network as it is measured on the test part: of a supermask, under the hard mask."""
    data = tokens(tmp_path, text="".join(chr(97 + n * n // 7 % 26) for n in range(2400)), length=16)
    sgd = SGD(lr=0.3)
    dense = RunConfig(
        data="text/fable.txt", model="gru_lm", width=0.05, method=Dense(), epochs=2, batch_size=16, optimizer=sgd,
        inputs=Text(length=16),
    )  # fmt: skip
    (record, *_) = read_metrics(execute(dense, tmp_path, How(data_dir=tmp_path)) / "metrics.jsonl")[-1:]
    model = build("gru_lm", input_shape=(16,), classes=256, seed=derive(0, "initial weights"), width=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for number in range(2):
        for x, y in data.epoch(derive(0, "train", 0, "", number), batch_size=16, augment=False):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()
    for key, part in (("test_loss", data.test_tokens), ("valid_loss", data.valid_tokens)):
        whole = (len(part) - 1) // 16
        x, y = (part[s : s + 16 * whole].view(whole, 16).long() for s in (0, 1))
        with torch.no_grad():
            by_hand = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        assert record[key] == pytest.approx(float(by_hand), rel=1e-5)
    assert record["valid_loss"] != record["test_loss"]
    soft = ContinuousSparsification(train_weights=False, initial_score=0.0)
    mask = replace(dense, method=soft, score_optimizer=SGD(lr=20.0), retrain=())
    assert mask.supermask
    *_, last, found = read_metrics(execute(mask, tmp_path, How(data_dir=tmp_path)) / "metrics.jsonl")
    assert found["valid_loss"] == last["hard_valid_loss"] != last["valid_loss"]
    write_report([tmp_path], tmp_path / "page.html")
    with (tmp_path / "page.csv").open(newline="") as file:
        assert {float(row["valid_loss"]) for row in csv.DictReader(file)} == {
            record["valid_loss"], found["valid_loss"]
        }  # fmt: skip


# ---- from the command line


@pytest.mark.usefixtures("without_workers")
def test_a_text_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens(tmp_path)
    (tmp_path / "own_bigram.py").write_text(
        """
from torch import nn

def net(classes): return nn.Sequential(nn.Embedding(classes, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, classes))
def wrong(classes): return nn.Sequential(nn.Embedding(classes, 16), nn.Linear(16, classes), nn.Flatten())
"""
    )
    monkeypatch.chdir(tmp_path)
    text = ["--data", "text", "--data-dir", "fable.txt", "--length", "16", "--batch-size", "8", "--jobs", "1"]
    common = [*text, "--epochs", "2", "--out", "runs"]
    assert run(["train", *common, "--model", "own_bigram:wrong"]) == 2
    assert "not logits of shape (2, 16, 256) (examples, tokens, classes)" in capsys.readouterr().err
    assert run(["train", *common, "--model", "own_bigram:net", "--density", "0.5", "--unit", "characters"]) == 0
    said = capsys.readouterr()
    assert "bits per character" in said.out
    assert "validation" in said.out
    assert "validation: bits on the part of a text that is for choosing among settings" in " ".join(said.out.split())
    assert "perplexity" in said.out
    assert "bits per character  RigL" in said.err.replace("\N{NO-BREAK SPACE}", " ")
    assert not isinstance(load("digits"), Tokens)
    assert isinstance(load("digits"), Data)
