"""The command line: `tombola search`, `train`, `reproduce`, `inspect`, `report`, `export` and `bench`."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import click

from tombola.lab.cli.commands import cli
from tombola.lab.errors import LabError
from tombola.lab.launched import Launched, launched

STOPPED = 130
"""What a shell expects of a program that Ctrl-C has stopped."""
SHARED = ("search", "train", "reproduce")
"""Commands that processes which torchrun has started do together; any other is for the first of them."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status: 0, 1 for files and runs at fault, 2 for what was typed, 130."""
    if not arguments:
        arguments = ["--help"]
    try:
        with cli.make_context("tombola", list(arguments)) as context:
            context.meta["arguments"] = list(arguments)
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "tombola"
        return _fail(where, _message(error), error.exit_code)
    except LabError as error:
        return _fail("tombola", str(error), 1)
    except KeyboardInterrupt:
        return 0 if _follows() else _fail("tombola", "stopped", STOPPED)
    return 0


def _message(error: click.ClickException) -> str:
    """What is wrong, beginning with the option's or argument's name where there is one."""
    if isinstance(error, click.BadParameter) and error.message and error.param is not None:
        param = error.param
        name = max(param.opts, key=len) if isinstance(param, click.Option) else param.metavar or str(param.name).upper()
        return f"{name}: {error.message}"
    return error.format_message()


def _fail(who: str, message: str, status: int) -> int:
    if (here := _follows()) is not None:
        time.sleep(here.patience)
        who = f"rank {here.rank} on {socket.gethostname()}: {who}"
    click.echo(f"{who}: {' '.join(message.split())}", err=True)
    return status


def _follows() -> Launched | None:
    """Which process this is, of those that torchrun has started, if it is not the first."""
    here = launched()
    return here if here is not None and here.rank else None


def main() -> None:
    """The entry point `tombola`."""
    if _follows():
        if sys.argv[1:2] and sys.argv[1] not in SHARED:
            sys.exit(0)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without s₀ or ± shows ? and does not fail
    status = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved and said; Python, as it ends, would die of Ctrl-C
    sys.exit(status)


if __name__ == "__main__":
    main()
