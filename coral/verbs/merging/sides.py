"""The rules that take one side's version, whatever it is."""

from __future__ import annotations

from coral.verbs.merging.merge import Read, Side, Versions


class Ours:
    """What we made of it."""

    name = "ours"
    help = "Take our version of them."
    why_not = ""
    frame: Side = "ours"

    def settle(self, versions: Versions, read: Read) -> Side:
        """Ours."""
        return "ours"


class Theirs:
    """What they made of it."""

    name = "theirs"
    help = "Take their version of them."
    why_not = ""
    frame: Side = "theirs"

    def settle(self, versions: Versions, read: Read) -> Side:
        """Theirs."""
        return "theirs"
