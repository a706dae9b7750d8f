"""The folder that runs go to. It is made, but not the one around it: that may be a share which is not mounted."""

from __future__ import annotations

from pathlib import Path

from tombola.lab.errors import LabError

RUNS = Path("runs")
"""Where runs go by default, in the current folder: the one folder that is made for others to lie in."""


def made(out: Path) -> None:
    """Make the folder of runs ``out`` if it is not there.

    Raises:
        LabError: the folder around it is not there either, or it cannot be made.
    """
    around = out.parent
    if not (out.exists() or around.is_dir() or around.absolute() == RUNS.absolute()):
        raise LabError(
            f"{out}: there is no folder {around} for it; make that one or, if it is a share, mount it; or choose "
            "another with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{out}: cannot make this folder: {error.strerror}; choose another with --out") from error
