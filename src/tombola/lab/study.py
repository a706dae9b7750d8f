"""The study of ``make run``: winning tickets in two small networks, found in several ways, on handwritten digits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.methods import Dense, Method
from tombola.lab.settings import SGD, Cosine
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP

MODELS = ("lenet_300_100", "conv_digits")
INITIAL_SCORES = (-0.2, -0.1, -0.05)
DENSITY = 0.05
ROUNDS = 2  # of Continuous Sparsification
IMP_ROUNDS, KEEP = 12, 0.7  # density 0.7^12 = 0.014 at the end

# Few steps make a round here, 315 instead of the papers' 30,000: scores that learn as fast as the weights would still
# be undecided at its end, so theirs is a larger rate.
BASE = RunConfig(
    data="digits",
    model="lenet_300_100",
    method=Dense(),
    epochs=15,
    batch_size=64,
    optimizer=SGD(lr=0.1, momentum=0.9),
    schedule=Cosine(),
    evaluate_every=5,
)
SCORE_OPTIMIZER = SGD(lr=1.0, momentum=0.9)


def digits_study(seeds: Iterable[int] = (0, 1, 2)) -> list[RunConfig]:
    """All runs of the study: for each model and seed dense training, Continuous Sparsification with several s₀ and with
    a density asked for, and IMP; controls for the asked-for density, and for the ticket of IMP nearest to it."""
    nearest = min(range(1, IMP_ROUNDS + 1), key=lambda round_: abs(KEEP**round_ - DENSITY))
    return [run for model in MODELS for seed in seeds for run in _runs(replace(BASE, model=model, seed=seed), nearest)]


def _runs(base: RunConfig, nearest: int) -> list[RunConfig]:
    def cs(method: Method, rounds: int) -> RunConfig:
        return replace(base, method=method, rounds=rounds, score_optimizer=SCORE_OPTIMIZER)

    def controlled(run: RunConfig, round_: int) -> RunConfig:
        return replace(run, controls=("shuffled", "reinitialised"), control_rounds=(round_,))

    return [
        base,
        replace(base, method=Dense(times=ROUNDS + 1)),  # as many epochs as the second ticket has cost with retraining
        *(cs(ContinuousSparsification(initial_score=s0), ROUNDS) for s0 in INITIAL_SCORES),
        controlled(cs(ContinuousSparsification(density=DENSITY), 1), 1),
        controlled(replace(base, method=IMP(keep=KEEP), rounds=IMP_ROUNDS), nearest),
    ]
