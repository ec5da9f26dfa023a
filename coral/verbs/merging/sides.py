"""The rules that take one side's version, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coral.verbs.merging.merge import Read, Side, Versions


@dataclass(frozen=True, slots=True)
class OneSide:
    """What one side made of it."""

    name: Side
    help: str
    why_not: str = ""

    @property
    def frame(self) -> Side:
        """That side's rest of the file, too."""
        return self.name

    def settle(self, versions: Versions, read: Read) -> Side:
        """That side's."""
        return self.name


OURS: Final = OneSide("ours", "Take our version of them.")
THEIRS: Final = OneSide("theirs", "Take their version of them.")
