"""`tombola bench parallel`: whether training several networks as one pays on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.text import Text

from tombola.lab.cli.recipes import Training
from tombola.lab.cli.running import check_usable
from tombola.lab.report.terminal import plain_table, stdout
from tombola.lab.runs.weighing import WORTH, weigh_networks


def print_gains(training: Training, members: Sequence[int], *, threads: int, turns: int) -> None:
    """Print what a step of so many networks takes, one after the other and computed as one.

    Raises:
        LabError: settings that do not go together, no such device, or the data are missing.
    """
    check_usable(training.device)
    device = torch.device(training.device)
    config, make = training.base()
    make = replace(make, data=make.data.to(device), device=device)
    title = f"{config.model} on {config.data}, batches of {config.batch_size}, {config.precision}, {device}"
    title += f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else ""
    table = plain_table()
    for name in ("members", "one by one, ms", "as one, ms", "×", "trained"):
        table.add_column(name, justify="left" if name == "trained" else "right")
    console, before = stdout(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in members:
            with console.status(f"{count} members"):
                found = weigh_networks(make, count, turns=turns)
            if found.problem:
                table.add_row(str(count), "", "", "", Text(f"one by one: {found.problem}"))
                continue
            numbers = (f"{found.alone:.2f}", f"{found.together:.2f}", f"{found.gain:.2f}")
            table.add_row(str(count), *numbers, "as one" if found.pays else "one by one")
    finally:
        torch.set_num_threads(before)
    console.print(Text(f"A training step of several networks: {title}", style="bold"), soft_wrap=True)
    console.print(table)
    console.print(Text(f"×: how many times as long they take one by one; above {WORTH} --together trains them as one."))
