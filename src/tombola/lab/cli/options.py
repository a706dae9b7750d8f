"""The options of `tombola search`, `tombola train` and `tombola reproduce`: names, defaults, help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from tombola.lab.cli.shared import (
    BATCH_SIZE,
    BY_RECIPE,
    COMPUTED,
    DATA,
    DATA_DIR,
    DENSE,
    INPUTS,
    RECIPES,
    WHERE,
    computed,
)
from tombola.lab.cli.values import COUNT, FROM_0, NOT_NEGATIVE, NUMBER, SHARE, EpochsType, Listing, Number, PatternType

F = TypeVar("F", bound=Callable[..., Any])

_REPRODUCE = [
    click.option(
        "--scale",
        type=click.Choice(["smoke", "cpu", "full"]),
        default="full",
        show_default=True,
        help="full: as published; cpu: smaller nets on less data for fewer epochs, minutes to an hour on two cores; "
        "smoke: seconds, to see that it runs.",
    ),
    click.option(
        "--seeds",
        type=Listing(FROM_0),
        metavar="N,...",
        show_default="0,1,2; at smoke scale 0",
        help="A run for each.",
    ),
    *computed("on CUDA, for convolutions over images of several channels", "256 on ImageNet, else the whole batch"),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        show_default="runs/NAME-SCALE",
        help="Folder for the runs and the report. It is made, but not the one around it, other than runs.",
    ),
    *WHERE[1:],
]
_SEARCH = [
    click.option(
        "--method",
        "methods",
        type=Listing(click.Choice(["cs", "imp", "iss", "dense"])),
        show_default="cs",
        help="Continuous Sparsification, Iterative Magnitude Pruning, Iterative Stochastic Sparsification; or dense "
        "training alone.",
    ),
    *DATA,
    *INPUTS,
    click.option(
        "--rounds",
        type=COUNT,
        metavar="N",
        show_default="cs 3, with --density 1; imp 12; iss 5",
        help="Rounds of the search.",
    ),
    click.option(
        "--density",
        "densities",
        type=Listing(SHARE),
        metavar="X,...",
        help="Share of the weights to keep, asked of cs. A search for each.",
    ),
    click.option(
        "--initial-score",
        "initial_scores",
        type=Listing(NUMBER),
        metavar="X,...",
        show_default="cs 0; iss 1",
        help="s₀ of cs and iss: lower is sparser. A search for each.",
    ),
    click.option("--penalty", type=NOT_NEGATIVE, metavar="X", show_default="1e-8", help="λ of cs and iss."),
    click.option(
        "--final-temperature",
        type=Number(float, "a number, 1 or more", lambda x: x >= 1),
        metavar="X",
        show_default="200",
        help="β of cs at its last step.",
    ),
    click.option(
        "--keep",
        type=SHARE,
        metavar="X",
        show_default="0.8",
        help="Share of the surviving weights that a round of imp keeps.",
    ),
    *RECIPES,
    *COMPUTED,
    click.option(
        "--rewind-epochs",
        type=NOT_NEGATIVE,
        metavar="X",
        show_default=BY_RECIPE,
        help="Where in round 1 the tickets' start weights are taken; 0 is the initial weights.",
    ),
    click.option("--rewind-step", type=FROM_0, metavar="N", help="The same in optimiser steps."),
    click.option(
        "--transfer-to",
        metavar="NAME",
        help="Train each ticket, and its controls, on these data too, and search there as well: what --data takes. "
        "Layers of another shape there, the classifier mostly, begin fresh and stay dense.",
    ),
    click.option(
        "--transfer-epochs",
        type=EpochsType(),
        metavar="N|xM",
        show_default="those of --epochs",
        help="Of each training on the data of --transfer-to.",
    ),
    click.option(
        "--controls/--no-controls",
        default=True,
        show_default=True,
        help="Train the last ticket shuffled and re-initialised too.",
    ),
    DENSE,
    *WHERE[:2],
    click.option(
        "--transfer-dir",
        type=click.Path(path_type=Path),
        metavar="PATH",
        show_default="that of --data-dir",
        help="Where the data of --transfer-to lie.",
    ),
    *WHERE[2:],
]
_TRAIN = [
    click.option(
        "--method",
        "methods",
        type=Listing(click.Choice(["rigl", "set", "snfs", "static", "snip", "gmp", "granet", "cs", "dense"])),
        show_default="rigl",
        help="RigL, SET, SNFS, a static random mask, SNIP, gradual magnitude pruning, GraNet, Continuous "
        "Sparsification as pruning; or dense training alone.",
    ),
    click.option(
        "--density",
        "densities",
        type=Listing(SHARE),
        metavar="X,...",
        show_default="0.1; with --pattern N:M N/M",
        help="Share of the weights to keep. A run for each.",
    ),
    click.option(
        "--budget",
        type=click.Choice(["uniform", "uniform-first-dense", "erdos-renyi", "erk", "global"]),
        show_default="erk; for gmp global; with --pattern N:M uniform",
        help="How the kept weights are shared out among the layers.",
    ),
    click.option(
        "--pattern",
        type=PatternType(),
        metavar="PATTERN",
        help="What masks must fit: N:M such as 2:4; blocks such as 4x4; fan-in: as many weights for each output; "
        "fan-in:0.3: and rigl, set and snfs give up outputs with few salient weights (SRigL).",
    ),
    click.option(
        "--every",
        type=COUNT,
        metavar="N",
        show_default="100; less where that would be fewer than 30 times in the recipe's epochs",
        help="Steps from one change of the masks to the next.",
    ),
    click.option(
        "--until",
        type=SHARE,
        metavar="X",
        show_default="0.75",
        help="Share of the steps after which the masks stay as they are.",
    ),
    click.option(
        "--drop-fraction",
        type=Number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1),
        metavar="X",
        show_default="0.3",
        help="Share of a layer's connections that the first move drops.",
    ),
    click.option(
        "--anneal",
        type=click.Choice(["cosine", "constant", "linear", "inverse_power"]),
        show_default="cosine",
        help="How the drop fraction falls.",
    ),
    click.option(
        "--harden-at",
        type=SHARE,
        metavar="X",
        show_default="0.8",
        help="Share of the steps after which the mask of cs is hard.",
    ),
    *DATA,
    *INPUTS,
    *RECIPES,
    *COMPUTED,
    DENSE,
    click.option(
        "--equal-arithmetic",
        is_flag=True,
        help="Train the dense net also for as many epochs as the arithmetic of each sparse training pays for.",
    ),
    click.option(
        "--sparse",
        is_flag=True,
        help="Train in sparse layers, whose memory and arithmetic follow the non-zeros: rigl, set, static and granet, "
        "on the CPU. Dense nets stay dense.",
    ),
    click.option("--small-dense", is_flag=True, help="Train also a dense net so narrow that it has as few parameters."),
    *WHERE,
]


_NETWORK = [*DATA[:3], DATA_DIR, BATCH_SIZE, *COMPUTED[:2]]


def search_options(function: F) -> F:
    """Give `function` all options of `tombola search`."""
    return _with(_SEARCH, function)


def train_options(function: F) -> F:
    """Give `function` all options of `tombola train`."""
    return _with(_TRAIN, function)


def reproduce_options(function: F) -> F:
    """Give `function` all options of `tombola reproduce`."""
    return _with(_REPRODUCE, function)


def network_options(function: F) -> F:
    """Give `function` the options that say which network is trained on what, and in which batches."""
    return _with(_NETWORK, function)


def _with(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
