"""A config is plain data: every setting is written, read back strictly, and part of the hash that names the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import ASKED, CS, DENSE, EVERY_METHOD, IMP_, ISS
from hypothesis import given
from hypothesis import strategies as st

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Text
from tombola.lab.methods import BUDGETS, Dense
from tombola.lab.runs.store import RunFolder
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Cosine, Drops, WarmUp
from tombola.lab.transfer import Transfer
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snip import SNIP
from tombola.methods.stochastic import StochasticSparsification
from tombola.patterns import ConstantFanIn

LAYERWISE = replace(IMP_, method=IMP(keep={"conv1.weight": 0.85, "fc1.weight": 0.8}), optimizer=AdamW())
STEPPED = replace(CS, schedule=Drops(epochs=(1, 2)), score_optimizer=Adam(), retrain=(1, 2))
RIGL = EVERY_METHOD["rigl"]
READ = replace(DENSE, data="folder/flowers", inputs=Images(size=64, cutout=8, skip_damaged=True))
ALL = {**EVERY_METHOD, "layerwise": LAYERWISE, "stepped": STEPPED, "images": READ}
LATER = replace(
    ALL["images"], label_smoothing=0.1, clip=10.0, examples=500, schedule=WarmUp(epochs=2, then=Cosine()),
    precision="bf16", channels_last=True, compile=True, micro_batch=64,
)  # fmt: skip
ALL["later"] = LATER
ALL["grey"] = replace(READ, inputs=Images(channels=1))
ALL["text"] = replace(DENSE, data="text/poems", model="mine:net", inputs=Text(unit="characters", length=64))


BEFORE = {  # what came later, and what every run was before
    "inputs": None,
    "sparse": False,
    "label_smoothing": 0.0,
    "clip": None,
    "examples": None,
    "lottery": "no",
    "transfer": None,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "micro_batch": None,
}


def plain(config: RunConfig) -> dict[str, Any]:
    return json.loads(config.to_json())


def brief(config: RunConfig) -> dict[str, Any]:
    """As the first versions wrote it."""
    found = {key: value for key, value in plain(config).items() if key not in BEFORE or value != BEFORE[key]}
    if isinstance(config.inputs, Images) and config.inputs.channels == 3:
        del found["inputs"]["channels"]
    return found


# ---- writing


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_written_and_read_again_it_is_the_same(config: RunConfig, tmp_path: Path) -> None:
    assert RunConfig.from_json(config.to_json()) == config
    (tmp_path / "config.json").write_text(config.to_json())
    assert RunConfig.read(tmp_path / "config.json") == config


def written(value: Any) -> Any:
    """An independent rendering of a config: every field of every dataclass, but the optimiser that is a function."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kinds = {
            Dense: "dense", ContinuousSparsification: "cs", IMP: "imp", StochasticSparsification: "iss", RigL: "rigl",
            GraNet: "granet", Images: "images", Text: "text",
            SET: "set", SNIP: "snip", GradualMagnitude: "gmp", ConstantFanIn: "constant fan-in",
            SGD: "sgd", Adam: "adam", AdamW: "adamw", Constant: "constant", Cosine: "cosine", Drops: "drops",
            WarmUp: "warm-up",
        }  # fmt: skip
        fields = {f.name: written(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if type(value) in (ContinuousSparsification, StochasticSparsification):
            assert fields.pop("score_optimizer") is None
        return fields if type(value) in (RunConfig, Transfer) else {"kind": kinds[type(value)], **fields}
    if isinstance(value, tuple):
        return [written(entry) for entry in value]
    if callable(value):
        return next(name for name, budget in BUDGETS.items() if budget is value)
    return dict(value) if isinstance(value, Mapping) else value


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_the_file_has_every_setting(config: RunConfig) -> None:
    assert plain(config) == written(config)


def test_a_function_is_no_data() -> None:
    config = replace(CS, method=ContinuousSparsification(score_optimizer=torch.optim.SGD))
    with pytest.raises(LabError, match="score_optimizer of ContinuousSparsification is a function"):
        config.to_json()


def test_a_whole_number_in_a_float_field_is_the_same_run() -> None:
    one, other = replace(DENSE, optimizer=SGD(lr=1)), replace(DENSE, optimizer=SGD(lr=1.0))
    assert one.to_json() == other.to_json()
    assert one.folder_name == other.folder_name


# ---- the hash


def test_the_hash_of_a_known_config() -> None:
    # Should this ever fail, every run folder out there gets another name: a setting was added, renamed or removed, or
    # a default has changed. If that is meant, pin the new hash.
    assert DENSE.folder_name == "dense-conv_digits-digits-s0-910562813007"


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.001
        case str():
            return value + "x"
        case None:
            return 0.125
        case list():
            return [*value, value[-1] if value else "conv1.weight"]
    raise AssertionError(value)


def variants(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of ``tree`` with one leaf changed."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", tree | {key: other}) for inner, other in variants(value))
        else:
            yield key, tree | {key: changed(value)}


CHOICES: dict[str, Any] = {
    "method.penalty_on": "mean",
    "method.anneal": "constant",
    "method.scale": "initial",
    "method.round_rule": "code",
    "method.scope": "layer",
    "method.budget": "erdos-renyi",
    "method.pattern": {"kind": "n:m", "n": 2, "m": 4},
    "retrain": [1],
    "controls": ["shuffled"],
    "control_rounds": [1],
    "schedule.epochs": [1, 3],
    "rewind_step": 7,
    "precision": "fp32",
    "score_optimizer": plain(STEPPED)["score_optimizer"],
}


HASHED = {"cs": ASKED, "stepped": STEPPED, "imp": IMP_, "map": LAYERWISE, "iss": ISS}
HASHED["later"] = replace(LATER, inputs=None, schedule=Cosine())
HASHED |= {name: EVERY_METHOD[name] for name in ("rigl", "set, uniform", "snip, fan-in", "gmp", "cs, pruning")}


@pytest.mark.parametrize("config", HASHED.values(), ids=HASHED)
def test_every_setting_counts_in_the_hash(config: RunConfig) -> None:
    seen = {config.content_hash: "nothing"}
    tried = 0
    for key, tree in variants(brief(config)):
        if key.endswith("kind"):
            continue
        if key in CHOICES:
            inner = tree
            *path, last = key.split(".")
            for step in path:
                inner[step] = dict(inner[step])
                inner = inner[step]
            inner[last] = "epoch" if key == "method.anneal" and config.method_name == "cs" else CHOICES[key]
        soft = isinstance(config.method, ContinuousSparsification | StochasticSparsification)
        if key == "score_optimizer" and not soft:
            continue  # there are no scores
        if key in ("rounds", "rewind_step") and not config.searches:
            continue  # there are no rounds
        if key == "method.pattern" and config.method_name == "gmp":
            continue  # global budgets have none
        if key == "method.harden_at" and config.searches:
            continue  # then there is no search
        if not config.controls and key in ("controls", "control_rounds"):
            continue  # given together or not at all
        other = RunConfig.from_json(json.dumps(tree))
        assert other.content_hash not in seen, f"{key} has the hash of {seen.get(other.content_hash)}"
        seen[other.content_hash] = key
        tried += 1
    assert tried >= len(dataclasses.fields(RunConfig)) - 11


def test_a_setting_that_came_later_leaves_older_runs_their_names() -> None:
    said = plain(RIGL)
    assert said["sparse"] is False
    assert "sparse" not in brief(RIGL)
    sparse = replace(RIGL, sparse=True)
    assert brief(sparse) == {**brief(RIGL), "sparse": True}
    assert sparse.content_hash != RIGL.content_hash
    with pytest.raises(LabError, match="sparse is null, but must be true or false"):
        RunConfig.from_json(json.dumps({**said, "sparse": None}))


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_what_older_versions_wrote_is_the_same_run(config: RunConfig, tmp_path: Path) -> None:
    old = json.dumps(brief(config))
    read = RunConfig.from_json(old)
    assert (read, read.content_hash) == (config, config.content_hash)
    canonical = json.dumps(brief(config), sort_keys=True, separators=(",", ":"))
    assert config.content_hash == hashlib.sha256(canonical.encode()).hexdigest()[:12]
    (tmp_path / config.folder_name).mkdir()
    (tmp_path / config.folder_name / "config.json").write_text(old)
    with RunFolder(tmp_path, config) as folder:
        assert not folder.finished
    assert (tmp_path / config.folder_name / "config.json").read_text() == old


def test_images_of_older_runs_are_coloured() -> None:
    assert "channels" not in brief(READ)["inputs"]
    assert READ.content_hash == "4895b7f7f480"
    said = plain(READ)
    assert said["inputs"]["channels"] == 3
    assert RunConfig.from_json(json.dumps(said)) == READ
    assert ALL["grey"].content_hash != replace(READ, inputs=Images()).content_hash
    with pytest.raises(LabError, match=r"inputs.channels is 2, but must be 1 or 3"):
        RunConfig.from_json(json.dumps({**said, "inputs": {**said["inputs"], "channels": 2}}))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (DENSE, "dense, which needs weights, gradients or scores of the dense layers' size"),
        (IMP_, "imp, which needs"),
        (EVERY_METHOD["gmp"], "gmp, which needs"),
        (replace(RIGL, method=SET(density=0.2, pattern=ConstantFanIn())), "set, which has the pattern fan-in"),
        (replace(RIGL, method=RigL(density=0.2, average=2)), "rigl, which adds up dense gradients"),
    ],
    ids=["dense", "imp", "gmp", "pattern", "average"],
)
def test_what_cannot_be_trained_in_sparse_layers(config: RunConfig, why: str) -> None:
    with pytest.raises(ValueError, match=f"sparse must be false for {why}"):
        replace(config, sparse=True)


@pytest.mark.parametrize("setting", [{"precision": "bf16"}, {"channels_last": True}, {"compile": True}], ids=str)
def test_sparse_layers_compute_in_their_own_way(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="precision must be fp32, channels_last and compile false for sparse layers"):
        replace(RIGL, sparse=True, **setting)
    assert replace(RIGL, **setting).setting == "density=0.2" + (" bf16" if "precision" in setting else "")


def test_batches_in_parts() -> None:
    parts = replace(RIGL, micro_batch=48)
    assert plain(parts) == {**plain(RIGL), "micro_batch": 48}
    assert (parts.computed_batch, RIGL.computed_batch, replace(RIGL, micro_batch=500).computed_batch) == (48, 128, 128)
    with pytest.raises(ValueError, match="micro_batch must be 1 or more, not 0"):
        replace(RIGL, micro_batch=0)


def test_older_runs_keep_their_folders() -> None:
    assert DENSE.content_hash == "910562813007"
    assert STEPPED.content_hash == "76bc13c31e97"
    assert RIGL.content_hash == "a21549b1ff9a"


def test_the_kind_counts_in_the_hash() -> None:
    assert replace(DENSE, schedule=Constant()).content_hash != replace(DENSE, schedule=Cosine()).content_hash
    same = {"lr": 0.1, "weight_decay": 0.0}
    assert replace(DENSE, optimizer=Adam(**same)).content_hash != replace(DENSE, optimizer=AdamW(**same)).content_hash


def test_folder_names_hold_no_surprises() -> None:
    name = replace(DENSE, data="../../etc:load me", model="a" * 300, seed=3).folder_name
    assert name.startswith("dense-" + "a" * 40 + "-......etc.load.me-s3-")
    assert len(name) < 120


# ---- reading


def broken(**changes: Any) -> str:
    return json.dumps(plain(ASKED) | changes)


CS_METHOD, SGD_ = plain(ASKED)["method"], plain(ASKED)["optimizer"]

MISTAKES: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["not valid JSON"]),
    "cut": (ASKED.to_json()[:200], ["not valid JSON"]),
    "deep": ("[" * 100_000, ["not valid JSON"]),
    "long number": (broken().replace('"seed": 0', '"seed": ' + "9" * 5000), ["JSON"]),
    "a list": ("[]", ["the content is a list, but must be an object"]),
    "null": ("null", ["the content is null"]),
    "unknown": (broken(epoch=3), ["unknown key 'epoch'", "epochs"]),
    "unknown inside": (broken(optimizer=SGD_ | {"Lr": 1}), ["unknown key 'optimizer.Lr'", "momentum"]),
    "missing": (json.dumps({k: v for k, v in plain(CS).items() if k != "seed"}), ["'seed' is missing"]),
    "missing inside": (broken(optimizer={"kind": "sgd"}), ["'optimizer.lr' is missing"]),
    "twice": ('{"data": "digits", "data": "cifar10"}', ["the key 'data' is there twice"]),
    "NaN": (broken().replace("0.1", "NaN"), ["NaN is no JSON value"]),
    "infinity": (broken().replace("0.1", "-Infinity"), ["-Infinity is no JSON value"]),
    "too large": (broken().replace("0.1", "1e999"), ["optimizer.lr", "a finite number"]),
    "long whole number": (broken(optimizer=SGD_ | {"lr": 10**400}), ["optimizer.lr", "a finite number"]),
    "text for a number": (broken(epochs="3"), ['epochs is "3", but must be a whole number']),
    "true for a number": (broken(epochs=True), ["epochs is true, but must be a whole number"]),
    "number for true": (broken(augment=1), ["augment is 1, but must be true or false"]),
    "fraction": (broken(seed=1.0), ["seed is 1.0, but must be a whole number"]),
    "null where none may be": (broken(data=None), ["data is null, but must be a text"]),
    "no kind": (broken(method={}), ['method.kind is null, but must be "dense" or "cs" or "imp" or "iss" or "static"']),
    "wrong kind": (broken(optimizer={"kind": "lion"}), ['optimizer.kind is "lion"', '"sgd" or "adam" or "adamw"']),
    "kind of another union": (broken(schedule=SGD_), ['schedule.kind is "sgd"', '"constant"']),
    "wrong choice": (broken(method=CS_METHOD | {"scale": "both"}), ['method.scale is "both"', '"none" or "initial"']),
    "wrong in a union": (broken(retrain="some"), ['retrain is "some"', '"all" or a list']),
    "wrong in a list": (broken(retrain=[1, "x"]), ['retrain[1] is "x", but must be a whole number']),
    "wrong in a map": (
        json.dumps(plain(LAYERWISE) | {"method": plain(LAYERWISE)["method"] | {"keep": {"a": None}}}),
        ["method.keep.a is null, but must be a number"],
    ),
    "out of range inside": (broken(optimizer=SGD_ | {"lr": -1}), ["optimizer: lr must be above 0, not -1"]),
    "no epochs": (broken(epochs=0), ["epochs must be 1 or more, not 0"]),
    "no rounds": (broken(rounds=-1), ["rounds must be 1 or more, not -1"]),
    "no batch": (broken(batch_size=0), ["batch_size must be 1 or more, not 0"]),
    "never measured": (broken(evaluate_every=0), ["evaluate_every must be 1 or more"]),
    "negative seed": (broken(seed=-1), ["seed must be a whole number from 0", "-1"]),
    "large seed": (broken(seed=2**63), ["seed must be a whole number from 0"]),
    "negative rewinding": (broken(rewind_step=-1), ["rewind_step must be 0 or more"]),
    "round that is not": (broken(retrain=[1, 3]), ["retrain must be rounds from 1 to 2, not 3"]),
    "control of no round": (broken(control_rounds=[0]), ["control_rounds must be rounds from 1 to 2, not 0"]),
    "controls alone": (broken(control_rounds=[]), ["controls and control_rounds must be given together"]),
    "rounds of a training": (broken(method=plain(RIGL)["method"], score_optimizer=None), ["rigl makes no search"]),
    "controls of a training": (
        json.dumps(plain(RIGL) | {"controls": ["shuffled"], "control_rounds": [1]}),
        ["controls must be left alone: rigl finds no ticket"],
    ),
    "wrong budget": (
        json.dumps(plain(RIGL) | {"method": plain(RIGL)["method"] | {"budget": "fair"}}),
        ['method.budget is "fair", but must be "uniform" or "uniform-first-dense" or "erdos-renyi" or "erk" or "glob'],
    ),
    "wrong pattern": (
        json.dumps(plain(RIGL) | {"method": plain(RIGL)["method"] | {"pattern": {"kind": "n:m", "n": 4, "m": 2}}}),
        ["method.pattern: an N:M pattern needs 1 ≤ N < M"],
    ),
    "pattern of no kind": (
        json.dumps(plain(RIGL) | {"method": plain(RIGL)["method"] | {"pattern": {"kind": "stripes"}}}),
        ['method.pattern.kind is "stripes", but must be "n:m" or "block" or "constant fan-in"'],
    ),
    "no width": (broken(width=0), ["width must be above 0, not 0"]),
    "rounds of dense": (broken(method=plain(DENSE)["method"]), ["must be left alone: dense makes no search"]),
    "density": (broken(method=CS_METHOD | {"density": 0}), ["method: density must be", "above 0 and at most 1, not 0"]),
    "scores of IMP": (broken(method=plain(IMP_)["method"]), ["score_optimizer must be null"]),
    "lottery of cs": (broken(lottery="fixed"), ["lottery must be no for cs"]),
    "no examples": (broken(examples=0), ["examples must be 1 or more, not 0"]),
    "all smooth": (broken(label_smoothing=1), ["label_smoothing must be 0 or more and below 1, not 1"]),
    "clipped away": (broken(clip=0), ["clip must be above 0, not 0"]),
    "times": (json.dumps(plain(DENSE) | {"method": {"kind": "dense", "times": 0}}), ["times must be above 0, not 0"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(text: str, parts: list[str]) -> None:
    with pytest.raises(LabError) as caught:
        RunConfig.from_json(text, where="somewhere/config.json")
    message = str(caught.value)
    assert message.startswith("somewhere/config.json: ")
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 500


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\x80\x04\x95", b"\x00" * 9, ASKED.to_json().encode()[:-30]])
def test_files_that_are_no_config(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(LabError, match=str(path)):
        RunConfig.read(path)
    with pytest.raises(LabError, match="cannot be read"):
        RunConfig.read(tmp_path)
    with pytest.raises(LabError, match="cannot be read"):
        RunConfig.read(tmp_path / "nothing")


def test_settings_out_of_range() -> None:
    for make, says in [
        (lambda: SGD(momentum=1.0), "momentum must be 0 or more and below 1"),
        (lambda: SGD(nesterov=True, momentum=0.0), "nesterov must be false"),
        (lambda: SGD(lr=float("nan")), "lr must be above 0"),
        (lambda: SGD(weight_decay=-1e-9), "weight_decay must be 0 or more"),
        (lambda: Adam(beta1=1.0), "beta1 must be 0 or more and below 1"),
        (lambda: AdamW(beta2=-0.1), "beta2 must be 0 or more and below 1"),
        (lambda: Adam(eps=0.0), "eps must be above 0"),
        (lambda: Drops(epochs=()), "epochs must be rising"),
        (lambda: Drops(epochs=(3, 3)), "epochs must be rising"),
        (lambda: Drops(epochs=(0, 3)), "epochs must be rising"),
        (lambda: Drops(epochs=(1,), by=1.0), "by must be between 0 and 1"),
        (lambda: Cosine(floor=1.5), "floor must be between 0 and 1"),
        (lambda: WarmUp(epochs=0, then=Cosine()), "epochs must be 1 or more, not 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            make()


# ---- fuzz

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=4)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    return tree | {path[0]: put(tree[path[0]], path[1:], value)} if path else value


def read_or_refuse(text: str) -> None:
    """Reading gives a config that is written as it was read, or a LabError; nothing else."""
    try:
        config = RunConfig.from_json(text)
    except LabError:
        return
    assert RunConfig.from_json(config.to_json()) == config
    assert len(config.content_hash) == 12
    assert config.folder_name.isascii()
    assert config.title


@given(st.data())
def test_fuzz_of_one_value(data: st.DataObject) -> None:
    tree = plain(data.draw(st.sampled_from(list(ALL.values()))))
    path = data.draw(st.sampled_from(list(places(tree))))
    read_or_refuse(json.dumps(put(tree, path, data.draw(JSON))))


@given(st.text() | JSON.map(json.dumps))
def test_fuzz_of_all(text: str) -> None:
    read_or_refuse(text)


@given(st.data())
def test_fuzz_of_the_bytes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([config.to_json() for config in ALL.values()]))
    where = data.draw(st.integers(0, len(text) - 1))
    read_or_refuse(text[:where] + data.draw(st.characters()) + text[where + data.draw(st.integers(0, 2)) :])


# ---- what follows from it


def test_what_is_trained() -> None:
    assert DENSE.total_epochs == 2
    assert EVERY_METHOD["dense, longer"].total_epochs == 4
    assert (CS.retrained(), CS.total_epochs) == ((1, 2), 8)  # two rounds, two retrainings
    assert (ASKED.retrained(), ASKED.total_epochs) == ((1, 2), 12)  # and two controls
    assert (IMP_.retrained(), IMP_.total_epochs) == ((3,), 8)  # the next round retrains the tickets before
    assert (EVERY_METHOD["imp-c"].retrained(), EVERY_METHOD["imp-c"].total_epochs) == ((1,), 6)
    assert replace(IMP_, retrain=(1,)).retrained() == ()
    both: Any = {"controls": ("shuffled", "reinitialised"), "control_rounds": (1,)}
    assert replace(EVERY_METHOD["rigl, lottery"], **both).total_epochs == 8  # twice, and two controls of the second
    supermask = replace(CS, method=ContinuousSparsification(train_weights=False), rounds=1, retrain=(), **both)
    assert supermask.total_epochs == 2  # its controls are only looked at


def test_what_a_person_calls_it() -> None:
    assert [config.setting for config in ALL.values()] == [
        "", "equal epochs", "s0=-0.02", "density=0.5,0.2", "keep=0.5", "keep=0.5", "s0=1", "1 epoch", "width=0.5",
        "density=0.2", "density=0.2 sparse", "density=0.2 sparse",
        "density=0.2 lottery=fixed", "density=0.2 lottery=moving", "density=0.25", "density=0.3 fan-in", "density=0.1",
        "density=0.5,0.2", "keep=0.5", "density=0.2", "keep by layer", "s0=-0.02", "", "bf16", "", "",
    ]  # fmt: skip
    assert ASKED.title == "cs density=0.5,0.2 · conv_digits · digits · seed 0"
    assert DENSE.title == "dense · conv_digits · digits · seed 0"


def test_the_scores_optimiser_is_built_into_the_method() -> None:
    method = CS.search_method
    assert isinstance(method, ContinuousSparsification)
    assert method.score_optimizer is not None
    made = method.score_optimizer([{"params": [torch.zeros(2, requires_grad=True)]}])
    assert isinstance(made, torch.optim.SGD)
    assert (made.defaults["lr"], made.defaults["momentum"]) == (1.0, 0.9)
    assert IMP_.search_method == IMP_.method
