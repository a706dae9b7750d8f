"""What is in a ticket file: its layers, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tombola.lab.errors import LabError
from tombola.lab.report.terminal import plain_table
from tombola.lab.report.words import percent
from tombola.ticket import Ticket


def load(path: Path) -> Ticket:
    """The ticket in the file `path`.

    Raises:
        LabError: there is none, or it is damaged.
    """
    try:
        return Ticket.load(path)
    except FileNotFoundError:
        raise LabError(f"{path}: there is no such file; tickets are in the tickets folder of a run") from None
    except (ValueError, OSError) as error:
        raise LabError.about(path, error) from None


def description(ticket: Ticket, path: Path) -> RenderableType:
    """The ticket as a person wants to see it: a table of its layers, then its provenance."""
    kept, total = ticket.masks.kept, ticket.masks.total
    size = path.stat().st_size
    head = f"{path.name}: {kept:,} of {total:,} weights kept, density {percent(kept / total)}; {size:,} bytes"
    parts: list[RenderableType] = [Text(head, style="bold"), _layers(ticket)]
    dead = [name for name, count in ticket.masks.counts().items() if count == 0]
    if dead:
        parts += [Text(f"Nothing passes through an empty layer: {', '.join(dead)}.", style="yellow"), Text("")]
    others = [name for name in ticket.start if name not in ticket.masks]
    if others:
        parts += [Text(f"Start values without a mask: {', '.join(others)}"), Text("")]
    return Group(*parts, _provenance(ticket.provenance))


def _layers(ticket: Ticket) -> Table:
    table = plain_table(footer=True)
    masks = ticket.masks
    table.add_column("layer", footer="all")
    table.add_column("shape")
    table.add_column("weights", justify="right", footer=f"{masks.total:,}")
    table.add_column("kept", justify="right", footer=f"{masks.kept:,}")
    table.add_column("density", justify="right", footer=percent(masks.density))
    table.add_column("")
    for name, mask in masks.items():
        kept, size = int(mask.sum()), mask.numel()
        shape = "×".join(map(str, mask.shape))
        cells = [name, shape, f"{size:,}", f"{kept:,}", percent(kept / size) if size else "–", "" if kept else "empty"]
        table.add_row(*map(Text, cells), style="" if kept else "yellow")
    return table


def _provenance(provenance: Mapping[str, Any]) -> RenderableType:
    if not provenance:
        return Text("It does not say where it comes from.")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(provenance):
        table.add_row(Text(name), Text(str(value)))
    return Group(Text("Where it comes from", style="bold"), table)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name == "layers" and not prefix:  # the table has them
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else value
