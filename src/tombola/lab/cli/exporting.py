"""Exporting a ticket and timing what came of it, as commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from tombola.lab.cli.inspection import load
from tombola.lab.errors import LabError
from tombola.lab.export import export_dense, export_semi_structured, export_sparse, speeds, throughput
from tombola.lab.forms import FORMS
from tombola.lab.report.terminal import plain_table, stdout
from tombola.lab.report.words import percent
from tombola.sparse.convert import Converted

SPARSE, SEMI_STRUCTURED = "sparse", "2:4"


def export(
    path: Path, to: str, output: Path | None, *, batch: int, threads: int | None, bf16: bool, model: str | None
) -> None:
    """Write the network of the ticket at `path` in the form `to`, print what was done and say where it is.

    Raises:
        LabError: there is no such ticket, its model cannot be had or not in this form, or the file cannot be written.
    """
    ticket = load(path)
    output = path.with_name(f"{path.stem}{_suffix(to)}") if output is None else output
    if not output.parent.is_dir():
        raise LabError(f"{output}: there is no folder {output.parent}; choose another with --output")
    console = stdout()
    if not ticket.provenance.get("trained"):
        note = "These are start weights, not trained ones: good for timing, not for use."
        console.print(Text(note, style="yellow"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        if to == SPARSE:
            fast = export_sparse(ticket, output, batch=batch, bf16=bf16, own=model)
            _print_converted(console, fast, batch, bf16=bf16)
        elif to == SEMI_STRUCTURED:
            _print_semi_structured(console, export_semi_structured(ticket, output, bf16=bf16, own=model))
        elif checked := export_dense(ticket, output, form=to, own=model):
            console.print(Text(checked))
    except LabError as error:
        raise LabError.about(path, error) from error
    finally:
        torch.set_num_threads(before)
    size = output.stat().st_size
    name = "Sparse network" if to == SPARSE else "Network"
    console.print(Text.assemble(f"\n{name}: ", (str(output), "bold"), f" ({size:,} bytes)"), soft_wrap=True)
    if to in FORMS:
        console.print(Text(f"To read it: {FORMS[to].read.replace('FILE', repr(str(output)))}"), soft_wrap=True)


def _suffix(to: str) -> str:
    return FORMS[to].suffix if to in FORMS else {SPARSE: ".sparse", SEMI_STRUCTURED: ".2to4"}[to] + ".safetensors"


def _print_converted(console: Console, fast: Converted, batch: int, *, bf16: bool) -> None:
    table = plain_table()
    names = (
        "layer",
        "density",
        "dense ms",
        *(["bf16 ms"] if bf16 else []),
        "sparse ms",
        "chosen",
        "bytes before",
        "after",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("layer", "chosen") else "right", no_wrap=name != "layer")
    for row in fast.rows:
        times = (row.dense_ms, *([row.bf16_ms] if bf16 else []), row.sparse_ms)
        cells = [row.layer, percent(row.density), *("–" if ms is None else f"{ms:.3f}" for ms in times), row.chosen]
        table.add_row(*map(Text, cells), f"{row.bytes_before:,}", f"{row.bytes_after:,}")
    console.print(table)
    assert fast.dense_ms is not None
    assert fast.chosen_ms is not None
    before, after = (sum(getattr(row, key) for row in fast.rows) for key in ("bytes_before", "bytes_after"))
    console.print(
        Text(
            f"The whole, in batches of {batch}: {fast.dense_ms:.3f} ms dense, {fast.chosen_ms:.3f} ms now; layers "
            f"{before:,} bytes before, {after:,} now."
        )
    )


def _print_semi_structured(console: Console, reasons: Mapping[str, str | None]) -> None:
    table = plain_table()
    table.add_column("weight")
    table.add_column("in the file")
    for name, reason in reasons.items():
        table.add_row(Text(name), Text("2:4" if reason is None else f"dense: {reason}"))
    console.print(table)
    console.print(
        Text("tombola.sparse.semi_structured.load reads it; on a GPU its weights are semi-structured tensors.")
    )


def print_speeds(
    path: Path, batches: tuple[int, ...], *, threads: int | None, turns: int, bf16: bool, model: str | None
) -> None:
    """Print latency and throughput of the network at `path` and of its dense twin in other engines.

    Raises:
        LabError: there is no such network.
    """
    threads = threads or os.cpu_count() or 1
    console = stdout()
    for batch in batches:
        with console.status("getting ready") as status:
            found = speeds(path, batch, threads=threads, turns=turns, bf16=bf16, tell=status.update, own=model)
        table = plain_table(title=f"Batches of {batch}, {threads} threads, median of {turns} turns")
        for name in ("engine", "ms", "examples a second", "times tombola's time", "difference"):
            table.add_column(name, justify="left" if name == "engine" else "right")
        for speed in found:
            if speed.missing:
                table.add_row(Text(speed.engine), Text(speed.missing, style="dim"), "", "", "", style="dim")
                continue
            numbers = (f"{speed.milliseconds:.3f}", f"{throughput(batch, speed):,.0f}", f"{speed.ratio:.2f}")
            table.add_row(Text(speed.engine), *numbers, f"{speed.difference:.1e}")
        console.print(table)
        console.print()
