"""What the lab says to a person whose settings, files or data are at fault."""

from __future__ import annotations

from pathlib import Path


class LabError(ValueError):
    """A mistake that the person at the keyboard can mend; the message is one line that says what, where and how."""

    @classmethod
    def about(cls, path: Path, error: Exception) -> LabError:
        """What is wrong with the file ``path``, which is named once."""
        return cls(str(error) if str(path) in str(error) else f"{path}: {error}")
