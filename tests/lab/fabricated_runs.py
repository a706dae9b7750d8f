"""Run folders written by hand in the schema of metrics.jsonl, so that reports can be tested without training."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

LAYERS = {"conv1.weight": 144, "conv2.weight": 4608, "fc1.weight": 8192, "fc2.weight": 640}
MASKABLE = sum(LAYERS.values())
EPOCHS = 20


def config(method: dict[str, Any], seed: int, *, data: str = "digits", model: str = "conv_digits") -> dict[str, Any]:
    return {"data": data, "model": model, "seed": seed, "epochs": EPOCHS, "batch_size": 64, "method": method}


def result(method: str, setting: str, round_: int, density: float, accuracy: float, **more: Any) -> dict[str, Any]:
    kept = {
        name: max(1, round(size * min(1.0, density * (1.6 if size < 1000 else 0.95)))) for name, size in LAYERS.items()
    }
    record = {
        "kind": "result",
        "method": method,
        "setting": setting,
        "round": round_,
        "control": None,
        "density": density,
        "kept": round(density * MASKABLE),
        "maskable": MASKABLE,
        "test_accuracy": accuracy,
        "test_loss": 1.0 - accuracy,
        "epochs_search": EPOCHS * round_,
        "epochs_total": EPOCHS * (round_ + 1),
        "steps_total": 22 * EPOCHS * (round_ + 1),
        "arithmetic": None,
        "soft_accuracy": None,
        "hard_accuracy": None,
        "undecided": None,
        "dead_layers": [],
        "ticket": f"tickets/round-{round_:02d}.safetensors",
        "layers": [{"name": name, "size": LAYERS[name], "kept": count} for name, count in kept.items()],
    }
    return record | more


def write(folder: Path, settings: dict[str, Any], records: list[dict[str, Any]], *, done: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    metrics = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(metrics)
    if done:
        digest = hashlib.sha256(metrics.encode()).hexdigest()
        (folder / "done.json").write_text(json.dumps({"metrics_sha256": digest}))
    return folder


def study(out: Path, *, seeds: tuple[int, ...] = (0, 1, 2), model: str = "conv_digits", dense: float = 0.972) -> Path:
    """A whole digits study as the engine would leave it, with plausible made-up numbers (the same on every call)."""
    draw = random.Random(f"{model}{seeds}")

    def accuracy(density: float, method: str) -> float:
        knee = {"cs": 0.015, "imp": 0.03, "shuffled": 0.16, "reinitialised": 0.1}[method]
        return round(dense + 0.003 - 0.9 / (1 + (density / knee) ** 1.7) * 0.4 + draw.gauss(0, 0.0025), 4)

    for seed in seeds:
        nothing = {"soft_accuracy": None, "ticket": None, "epochs_search": 0}
        plain = result("dense", "", 0, 1.0, round(dense + draw.gauss(0, 0.003), 4), **nothing, epochs_total=EPOCHS)
        write(out / f"dense-{model}-digits-s{seed}-aaaa", config({"kind": "dense"}, seed, model=model), [plain])
        longer = result("dense", "equal epochs", 0, 1.0, round(dense + 0.002 + draw.gauss(0, 0.003), 4), **nothing)
        long_config = config({"kind": "dense"}, seed, model=model) | {"epochs": 4 * EPOCHS}
        write(out / f"dense-{model}-digits-s{seed}-bbbb", long_config, [longer | {"epochs_total": 4 * EPOCHS}])

        for score in (-0.05, 0.0, 0.05):
            records = []
            for round_ in (1, 2, 3):
                density = 0.35 * math.exp(20 * score) * 0.33**round_ * math.exp(draw.gauss(0, 0.08))
                hard = accuracy(density, "cs") - 0.01
                more = {"soft_accuracy": hard + 0.001, "hard_accuracy": hard, "undecided": 0.004 * round_}
                records.append(result("cs", f"s0={score:g}", round_, density, accuracy(density, "cs"), **more))
                if round_ == 3:
                    records += [
                        result("cs", f"s0={score:g}", round_, density, accuracy(density, kind), control=kind, **more)
                        for kind in ("shuffled", "reinitialised")
                    ]
            method = {"kind": "cs", "initial_score": score, "density": None, "penalty": 1e-8}
            write(out / f"cs-{model}-digits-s{seed}-c{score:g}", config(method, seed, model=model), records)

        method = {"kind": "cs", "initial_score": 0.0, "density": 0.05, "penalty": 1e-8}
        kept = round(0.05 * MASKABLE)
        more = {"soft_accuracy": 0.968, "hard_accuracy": 0.967, "undecided": 0.001, "kept": kept}
        asked = [result("cs", "density=0.05", 1, kept / MASKABLE, accuracy(0.05, "cs"), **more)]
        asked += [
            asked[0] | {"control": kind, "test_accuracy": accuracy(0.05, kind)}
            for kind in ("shuffled", "reinitialised")
        ]
        write(out / f"cs-{model}-digits-s{seed}-dddd", config(method, seed, model=model), asked)

        records = []
        for round_ in range(1, 15):
            density = round(0.8**round_ * MASKABLE) / MASKABLE
            records.append(result("imp", "keep=0.8", round_, density, accuracy(density, "imp")))
        records += [
            records[-1] | {"control": kind, "test_accuracy": accuracy(0.8**14, kind)}
            for kind in ("shuffled", "reinitialised")
        ]
        if seed == 1:
            records[-3]["dead_layers"] = ["conv1.weight"]
            records.append({"kind": "warning", "text": "round 14: conv1.weight has no weight left"})
        write(
            out / f"imp-{model}-digits-s{seed}-eeee", config({"kind": "imp", "keep": 0.8}, seed, model=model), records
        )
    return out


def beside_published(
    out: Path, *, seeds: tuple[int, ...] = (0, 1, 2), original: bool | None = False, epochs: int = 30
) -> Path:
    """Networks of which something is published: WRN-22-2 on CIFAR-10."""
    for seed in seeds:
        known = [] if original is None else [{"kind": "data", "original": original}]
        found = {("dense", 1.0): 0.921, ("rigl", 0.1): 0.905, ("rigl", 0.05): 0.88, ("rigl", 0.3): 0.915}
        for (method, density), accuracy in {**found, ("static", 0.1): 0.889}.items():
            setting = "" if method == "dense" else f"density={density:g}"
            more = {"epochs_search": 0, "epochs_total": epochs, "arithmetic": epochs * density}
            record = result(method, setting, 0, density, accuracy + seed / 1000, **more)
            settings = config({"kind": method, "density": density}, seed, data="cifar10", model="wrn_22_2")
            write(out / f"{method}-wrn_22_2-cifar10-s{seed}-{density:g}", settings, [*known, record])
    return out


def trainings(out: Path, *, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Sparse networks, each trained in one go, beside dense ones."""
    reached = {"rigl": (0.968, 0.961), "static": (0.960, 0.931), "gmp": (0.973, 0.966)}
    for seed in seeds:
        for place, (setting, accuracy, arithmetic) in enumerate([("", 0.972, EPOCHS), ("2 epochs", 0.93, 2.0)]):
            more = {"ticket": None, "epochs_search": 0, "epochs_total": EPOCHS if not setting else 2}
            record = result("dense", setting, 0, 1.0, accuracy + seed / 1000, **more, arithmetic=arithmetic)
            method = {"kind": "dense", "times": 1.0 if not setting else 0.1}
            write(out / f"dense-conv_digits-digits-s{seed}-{place}", config(method, seed), [record])
        for name, accuracies in reached.items():
            for density, accuracy in zip((0.1, 0.05), accuracies, strict=True):
                more = {"ticket": "tickets/trained.safetensors", "epochs_search": 0, "epochs_total": EPOCHS}
                cost = EPOCHS * density * (1.2 if name == "rigl" else 5 if name == "gmp" else 1)
                setting = f"density={density:g}"
                record = result(name, setting, 0, density, accuracy + seed / 1000, **more, arithmetic=cost)
                method = {"kind": name, "density": density}
                write(out / f"{name}-conv_digits-digits-s{seed}-{density:g}", config(method, seed), [record])
    return out


def epoch(phase: str, round_: int, number: int, accuracy: float, **more: Any) -> dict[str, Any]:
    record = {
        "kind": "epoch", "phase": phase, "round": round_, "label": None, "epoch": number, "steps": 22 * number,
        "train_loss": 1.0 / number, "test_loss": 1.1 / number, "test_accuracy": accuracy, "hard_test_accuracy": None,
        "hard_test_loss": None, "density": 1.0, "temperature": None, "undecided": None, "lr": 0.1,
    }  # fmt: skip
    return record | more


def moved(dropped: int, grown: int) -> dict[str, Any]:
    """Of 1,000 connections in two layers, after they moved."""
    first = {"kept": 600 + grown - dropped, "dropped": dropped, "grown": grown}
    return {"conv1.weight": {"kept": 400, "dropped": 0, "grown": 0}, "conv2.weight": first}


def followed(out: Path, *, seeds: tuple[int, ...] = (0, 1), epochs: int = 4) -> Path:
    """Runs of every kind that tell what happened while they trained: accuracies rise by a tenth an epoch."""
    for seed in seeds:

        def rising(phase: str, round_: int, first: float, seed: int = seed, **more: Any) -> list[dict[str, Any]]:
            return [epoch(phase, round_, n, first + 0.1 * n + 0.02 * seed, **more) for n in range(1, epochs + 1)]

        once = {"ticket": None, "epochs_search": 0, "epochs_total": epochs, "arithmetic": 4.0}
        for method, density, accuracy in (("dense", 1.0, 0.84), ("rigl", 0.1, 0.7), ("gmp", 0.1, 0.75)):
            records = rising("train", 0, accuracy - 0.4)
            if method == "rigl":
                records = [record | {"moved": moved(300 // n, 300 // n)} for n, record in enumerate(records, 1)]
            if method == "gmp":
                records = [record | {"moved": moved(100, 0)} for record in records]
            setting = "" if method == "dense" else "density=0.1"
            records.append(result(method, setting, 0, density, accuracy + 0.02 * seed, **once))
            write(out / f"{method}-s{seed}", config({"kind": method, "density": density}, seed), records)
        for score in (-0.05, 0.05):
            records = []
            for round_ in (1, 2):
                records += rising("search", round_, 0.3, hard_test_accuracy=0.25 + 0.1 * round_ + 0.02 * seed)
                records[-1]["scores"] = [100, *[0] * 12, *[10 * round_] * 16, *[0] * 12, 900 - 160 * round_]
                records[-1]["undecided"] = 0.16 * round_
            for round_ in (1, 2):
                records += rising("retrain", round_, 0.5 - 0.05 * round_)
                records.append(result("cs", f"s0={score:g}", round_, 0.2 / round_, 0.9 - 0.05 * round_ + 0.02 * seed))
            records += rising("control", 2, 0.0, label="shuffled")
            write(out / f"cs{score}-s{seed}", config({"kind": "cs", "initial_score": score}, seed), records)
        records = [record for round_ in (1, 2) for record in rising("search", round_, 0.3 + 0.1 * round_)]
        records += [result("imp", "keep=0.5", 1, 0.5, 0.91), *rising("retrain", 2, 0.4)]
        records.append(result("imp", "keep=0.5", 2, 0.25, 0.8))
        write(out / f"imp-s{seed}", config({"kind": "imp", "keep": 0.5}, seed), records)
    return out
