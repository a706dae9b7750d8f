"""The options that several commands have: what is trained, how it is computed, where the runs go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tombola.lab.cli.values import COUNT, FROM_0, NOT_NEGATIVE, POSITIVE, ClusterType, EpochsType, Listing
from tombola.lab.places import RUNS

BY_RECIPE = "the recipe's"
BATCH_SIZE = click.option("--batch-size", type=COUNT, metavar="N", show_default=BY_RECIPE, help="Examples in a step.")
DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the data lie: the folder cifar-10-batches-py or cifar-100-python or the one around it, the image "
    "folder, the text.",
)
DATA = [
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
        type=POSITIVE,
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
    click.option("--seeds", type=Listing(FROM_0), metavar="N,...", show_default="0", help="A run for each."),
]
INPUTS = [
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
RECIPES = [
    click.option(
        "--epochs",
        type=EpochsType(),
        metavar="N|xM",
        show_default=BY_RECIPE,
        help="Of each training; x5: five times the recipe's.",
    ),
    BATCH_SIZE,
    click.option("--lr", type=POSITIVE, metavar="X", show_default=BY_RECIPE, help="Learning rate."),
    click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw"]),
        show_default=BY_RECIPE,
        help="Of the weights, and of the scores too.",
    ),
    click.option("--weight-decay", type=NOT_NEGATIVE, metavar="X", show_default=BY_RECIPE, help="Of the weights."),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine", "step"]),
        show_default=BY_RECIPE,
        help="Of the learning rate, over the whole training; step: a tenth after 1/2 and after 3/4 of it.",
    ),
]


def computed(last: str, parts: str) -> list[Any]:
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


COMPUTED = computed("for convolutions over images of several channels", "the whole batch")
DENSE = click.option("--dense/--no-dense", default=True, show_default=True, help="Train the dense net too.")
WHERE = [
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=RUNS,
        metavar="DIR",
        show_default=True,
        help="Folder for the runs and the report. It is made, but not the one around it, other than runs.",
    ),
    DATA_DIR,
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
        type=POSITIVE,
        metavar="X",
        show_default="as --threads",
        help="Set aside by Ray for each job.",
    ),
    click.option(
        "--gpus-per-task",
        type=NOT_NEGATIVE,
        metavar="X",
        show_default="1 with --device cuda, else 0",
        help="The same; 0.25: four tasks share a GPU.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress, only the results."),
]
