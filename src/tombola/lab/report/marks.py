"""What the parts of a figure stand for, so that a page can hide those of a method and tell what is pointed at."""

from __future__ import annotations

from matplotlib.artist import Artist


class Marks:
    """By the gid that a part has in the SVG: its method (none: it is always shown), and its words."""

    def __init__(self) -> None:
        self.methods: dict[str, str] = {}
        self.tips: dict[str, str] = {}

    def add(self, *artists: Artist, method: str, tip: str = "") -> None:
        """Let `artists` be of `method`, and say `tip` when one of them is pointed at."""
        for artist in artists:
            gid = f"p{len(self.methods)}"
            artist.set_gid(gid)
            self.methods[gid], self.tips[gid] = method, tip
