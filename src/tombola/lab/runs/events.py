"""What a run says while it is at work, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]
OnEvent: TypeAlias = Callable[[str, Event], None]
"""Told the name of the run's folder, and the event."""


class Stopped(Exception):
    """The run was asked to stop; it has saved where it stands."""
