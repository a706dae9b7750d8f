"""The papers' experiments, each with its settings, its departures from the paper, and fair baselines. One file each."""

from __future__ import annotations

from tombola.lab.errors import LabError
from tombola.lab.recipes import (
    cs_conv6,
    cs_imagenet,
    cs_neurips_pruning,
    cs_neurips_tickets,
    cs_readme,
    cs_resnet20,
    cs_supermask,
    relaxation,
    rigl_cifar10,
    rigl_gru,
    rigl_imagenet,
    rigl_lenet,
    rigl_lottery,
    transfer,
)
from tombola.lab.recipes.base import SCALES, Recipe, Scale

__all__ = ["RECIPES", "SCALES", "Recipe", "Scale", "find"]

RECIPES: tuple[Recipe, ...] = (
    relaxation.RECIPE,
    cs_supermask.RECIPE,
    cs_conv6.RECIPE,
    cs_resnet20.RECIPE,
    cs_readme.RECIPE,
    cs_neurips_tickets.RECIPE,
    cs_neurips_pruning.RECIPE,
    cs_imagenet.RECIPE,
    rigl_cifar10.RECIPE,
    rigl_lenet.RECIPE,
    rigl_imagenet.RESNET50_RECIPE,
    rigl_imagenet.MOBILENET_RECIPE,
    rigl_gru.RECIPE,
    rigl_lottery.RECIPE,
    transfer.RECIPE,
)


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        LabError: there is none.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise LabError(f"NAME: there is no experiment {name!r}; there is {', '.join(recipe.name for recipe in RECIPES)}")
