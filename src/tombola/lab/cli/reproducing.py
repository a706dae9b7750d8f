"""What `tombola reproduce` does: the list of the papers' experiments, and one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.text import Text

from tombola.lab.cli.computing import Computing
from tombola.lab.cli.running import Runs
from tombola.lab.config import RunConfig
from tombola.lab.data import load
from tombola.lab.errors import LabError
from tombola.lab.launched import launched
from tombola.lab.places import RUNS
from tombola.lab.recipes import RECIPES, SCALES, Recipe, Scale, find
from tombola.lab.report.experiments import Experiment, reduced, remember
from tombola.lab.report.terminal import plain_table, stdout


def print_experiments() -> None:
    """Print a table of all experiments: name, place in the paper, data, model, methods, and epochs at each scale."""
    table = plain_table(title="The papers' experiments, and the epochs that all of their runs train")
    for name in ("name", "paper", "data and model", "methods", *SCALES):
        table.add_column(name, justify="right" if name in SCALES else "left", no_wrap=name in ("name", *SCALES))
    for recipe in RECIPES:
        epochs = [f"{recipe.epochs(scale):,}" if recipe.configs else "–" for scale in SCALES]
        what = f"{recipe.model} on {recipe.data}" if recipe.configs else "nothing is trained"
        table.add_row(*map(Text, (recipe.name, recipe.title, what, recipe.methods, *epochs)))
    console = stdout()
    console.print(table)
    console.print(
        Text(
            "\nfull: as published, with every round, retraining, control, dense net and seed. smoke and cpu: reduced.\n"
            "tombola reproduce NAME --scale smoke|cpu|full",
            style="dim",
        )
    )


def reproduction(options: Mapping[str, Any], command: str) -> None:
    """Run the experiment that the options ask for, and write its report.

    Raises:
        click.UsageError: no such experiment, or its data are missing.
        LabError: a run failed, or its folder is damaged or in use.
    """
    try:
        recipe, scale = find(options["name"]), options["scale"]
    except LabError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    out = options["out"] or RUNS / f"{recipe.name}-{scale}"
    console = stdout()
    if recipe.draw is not None:
        if (here := launched()) is not None and here.rank:
            return
        written = recipe.draw(out)
        console.print(Text(f"{recipe.title}. {recipe.text('full')}"))
        console.print(Text("\n".join(f"Written: {path}" for path in written)), soft_wrap=True)
        return
    runs = Runs.from_options({**options, "out": out}, lambda: _checked(recipe, scale, options))
    if said := reduced(scale):
        console.print(Text(f"{recipe.title}: {said}, not as published.", style="bold yellow"))
    names = tuple(config.folder_name for config in runs.configs)
    about = Experiment(name=recipe.name, title=recipe.title, about=recipe.text(scale), scale=scale, runs=names)
    if runs.leads:
        remember(out, about)
    runs.run(command)


def _checked(recipe: Recipe, scale: Scale, options: Mapping[str, Any]) -> list[RunConfig]:
    """The runs, once it is sure that their data are there."""
    found = recipe.runs(scale, seeds=options["seeds"] or (), data_dir=options["data_dir"])
    targets = [config.target for config in found if config.transfer is not None]
    there = {
        (data, inputs): load(data, data_dir=options["data_dir"], inputs=inputs, tell=lambda text: None)
        for data, inputs in dict.fromkeys((config.data, config.inputs) for config in (*found, *targets))
    }
    asked = Computing.of_recipes(options)
    asked.check()
    return [asked.of(config, there[config.data, config.inputs]) for config in found]
