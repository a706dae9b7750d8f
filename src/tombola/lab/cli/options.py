"""The options of `tombola search`, `tombola train` and `tombola reproduce`: names, defaults, help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from tombola.lab.cli.values import ClusterType, EpochsType, Listing, Number, PatternType
from tombola.lab.places import RUNS

F = TypeVar("F", bound=Callable[..., Any])

_number = Number(float, "a finite number", lambda x: True)
_positive = Number(float, "a number above 0", lambda x: x > 0)
_not_negative = Number(float, "a number, 0 or more", lambda x: x >= 0)
_share = Number(float, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
COUNT = Number(int, "a whole number, 1 or more", lambda x: x >= 1)
_from_0 = Number(int, "a whole number, 0 or more", lambda x: 0 <= x < 2**63)
_RECIPE = "the recipe's"


_BATCH_SIZE = click.option("--batch-size", type=COUNT, metavar="N", show_default=_RECIPE, help="Examples in a step.")
_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the data lie: the folder cifar-10-batches-py or cifar-100-python or the one around it, the image "
    "folder, the text.",
)
_DATA = [
    click.option(
        "--data",
        metavar="NAME",
        show_default="digits",
        help="digits, cifar10, cifar100; folder: images in train/CLASS and test/CLASS or val/CLASS; text: a file, or "
        "train.txt, valid.txt and test.txt in a folder; or your own module:function, which returns two DataLoaders as "
        "tombola.lab.data.Loaders, or the tensors (train_x, train_y, test_x, test_y).",
    ),
    click.option(
        "--model",
        metavar="NAME",
        show_default="lenet_300_100; for cifar10, cifar100 and folder resnet20; for text gru_lm",
        help="lenet_300_100, lenet_100_69, conv_digits, conv2, conv4, conv6, resnet20, wrn_16_4, wrn_22_2, wrn_28_10, "
        "wrn_40_2, vgg16, vgg19, resnet18_cifar, resnet18, resnet50, mobilenet_v1, gru_lm (texts), or your own "
        "module:function, called with those of input_shape, classes, in_channels, image_size and width that it names.",
    ),
    click.option(
        "--width",
        type=_positive,
        metavar="X",
        show_default="1",
        help="Times the model's numbers of channels.",
    ),
    click.option(
        "--unmasked",
        type=Listing(click.STRING),
        metavar="NAME,...",
        show_default="the papers' choice",
        help="Parameters that stay dense, such as conv1.weight.",
    ),
    click.option("--seeds", type=Listing(_from_0), metavar="N,...", show_default="0", help="A run for each."),
]
_INPUTS = [
    click.option(
        "--image-size",
        type=COUNT,
        metavar="N",
        show_default="as they are",
        help="Height and width that images of a folder are cropped to; they are read anew in each epoch then.",
    ),
    click.option(
        "--channels",
        type=click.Choice(["1", "3"]),
        show_default="1 if all of them are grey, else 3",
        help="Read images of a folder in grey (1) or in colour (3).",
    ),
    click.option(
        "--augment/--no-augment",
        default=None,
        show_default="the recipe's; with --image-size yes",
        help="Flip and crop training images at random.",
    ),
    click.option("--cutout", type=COUNT, metavar="N", help="Blank a square of this side out of each training image."),
    click.option("--skip-damaged", is_flag=True, help="Leave damaged images of a folder out, and say how many."),
    click.option(
        "--unit", type=click.Choice(["bytes", "characters"]), show_default="bytes", help="What a text is made of."
    ),
    click.option(
        "--length", type=COUNT, metavar="N", show_default="128", help="Bytes or characters in one example of a text."
    ),
]
_RECIPES = [
    click.option(
        "--epochs",
        type=EpochsType(),
        metavar="N|xM",
        show_default=_RECIPE,
        help="Of each training; x5: five times the recipe's.",
    ),
    _BATCH_SIZE,
    click.option("--lr", type=_positive, metavar="X", show_default=_RECIPE, help="Learning rate."),
    click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw"]),
        show_default=_RECIPE,
        help="Of the weights, and of the scores too.",
    ),
    click.option("--weight-decay", type=_not_negative, metavar="X", show_default=_RECIPE, help="Of the weights."),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine", "step"]),
        show_default=_RECIPE,
        help="Of the learning rate, over the whole training; step: a tenth after 1/2 and after 3/4 of it.",
    ),
]


def _computed(last: str, parts: str) -> list[Any]:
    """Options for how networks compute; ``last`` and ``parts`` say when, by default, the channels of images are
    innermost and how much of a batch is computed at a time."""
    return [
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16"]),
            show_default="fp32",
            help="Of the arithmetic; bf16 by autocast, weights stay float32.",
        ),
        click.option(
            "--channels-last/--no-channels-last",
            default=None,
            show_default=last,
            help="Keep the channels of images innermost in memory.",
        ),
        click.option(
            "--compile/--no-compile",
            default=None,
            show_default="on CUDA, for convolutions and at least 5,000 steps, without --together",
            help="Train by code that torch.compile makes, on CUDA in CUDA graphs; if it cannot, the run says why.",
        ),
        click.option(
            "--micro-batch",
            type=COUNT,
            metavar="N",
            show_default=parts,
            help="Compute each step in parts of at most N examples and add their gradients up, for batches that do not "
            "fit into memory. Batch norm sees the parts.",
        ),
    ]


_COMPUTED = _computed("for convolutions over images of several channels", "the whole batch")
_DENSE = click.option("--dense/--no-dense", default=True, show_default=True, help="Train the dense net too.")
_WHERE = [
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=RUNS,
        metavar="DIR",
        show_default=True,
        help="Folder for the runs and the report. It is made, but not the one around it, other than runs.",
    ),
    _DATA_DIR,
    click.option(
        "--jobs",
        type=COUNT,
        metavar="N",
        show_default="one per CPU; on a GPU 1; on Ray as many as there is room for",
        help="Processes at once. They share the runs out, and of a search the rounds, retrainings and controls.",
    ),
    click.option(
        "--together",
        type=COUNT,
        metavar="K",
        default=1,
        show_default=True,
        help="Runs that each job trains at once, as one stacked model: runs with data, model, batch size and precision "
        "in common, where that is measured to be faster (see tombola bench parallel).",
    ),
    click.option("--threads", type=COUNT, metavar="N", default=1, show_default=True, help="PyTorch's, in each job."),
    click.option(
        "--workers",
        type=COUNT,
        metavar="N",
        show_default="one per CPU, shared by the jobs",
        help="Processes of each job that read images from their files in each epoch.",
    ),
    click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    click.option(
        "--track",
        type=Listing(click.Choice(["tensorboard", "wandb", "trackio"])),
        metavar="NAME,...",
        help="Show the metrics of each epoch there too: event files in DIR/tensorboard, offline runs in DIR/wandb, "
        "trackio's own folder. Nothing is sent.",
    ),
    click.option(
        "--on",
        type=ClusterType(),
        metavar="ray|ray://HOST:PORT",
        show_default="this machine",
        help="Compute on a Ray cluster: that of RAY_ADDRESS or of this machine, or one that is started here; or by "
        "Ray's client on the one at HOST. Needs pip install 'tombola[ray]'.",
    ),
    click.option(
        "--cpus-per-task",
        type=_positive,
        metavar="X",
        show_default="as --threads",
        help="Set aside by Ray for each job.",
    ),
    click.option(
        "--gpus-per-task",
        type=_not_negative,
        metavar="X",
        show_default="1 with --device cuda, else 0",
        help="The same; 0.25: four tasks share a GPU.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress, only the results."),
]
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
        type=Listing(_from_0),
        metavar="N,...",
        show_default="0,1,2; at smoke scale 0",
        help="A run for each.",
    ),
    *_computed("on CUDA, for convolutions over images of several channels", "256 on ImageNet, else the whole batch"),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        show_default="runs/NAME-SCALE",
        help="Folder for the runs and the report. It is made, but not the one around it, other than runs.",
    ),
    *_WHERE[1:],
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
    *_DATA,
    *_INPUTS,
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
        type=Listing(_share),
        metavar="X,...",
        help="Share of the weights to keep, asked of cs. A search for each.",
    ),
    click.option(
        "--initial-score",
        "initial_scores",
        type=Listing(_number),
        metavar="X,...",
        show_default="cs 0; iss 1",
        help="s₀ of cs and iss: lower is sparser. A search for each.",
    ),
    click.option("--penalty", type=_not_negative, metavar="X", show_default="1e-8", help="λ of cs and iss."),
    click.option(
        "--final-temperature",
        type=Number(float, "a number, 1 or more", lambda x: x >= 1),
        metavar="X",
        show_default="200",
        help="β of cs at its last step.",
    ),
    click.option(
        "--keep",
        type=_share,
        metavar="X",
        show_default="0.8",
        help="Share of the surviving weights that a round of imp keeps.",
    ),
    *_RECIPES,
    *_COMPUTED,
    click.option(
        "--rewind-epochs",
        type=_not_negative,
        metavar="X",
        show_default=_RECIPE,
        help="Where in round 1 the tickets' start weights are taken; 0 is the initial weights.",
    ),
    click.option("--rewind-step", type=_from_0, metavar="N", help="The same in optimiser steps."),
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
    _DENSE,
    *_WHERE[:2],
    click.option(
        "--transfer-dir",
        type=click.Path(path_type=Path),
        metavar="PATH",
        show_default="that of --data-dir",
        help="Where the data of --transfer-to lie.",
    ),
    *_WHERE[2:],
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
        type=Listing(_share),
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
        type=_share,
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
        type=_share,
        metavar="X",
        show_default="0.8",
        help="Share of the steps after which the mask of cs is hard.",
    ),
    *_DATA,
    *_INPUTS,
    *_RECIPES,
    *_COMPUTED,
    _DENSE,
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
    *_WHERE,
]


_NETWORK = [*_DATA[:3], _DATA_DIR, _BATCH_SIZE, *_COMPUTED[:2]]


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
