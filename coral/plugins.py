"""What other packages offer by name: the only reader of entry points."""

from __future__ import annotations

from typing import Any


def offered(group: str) -> dict[str, str]:
    """What is offered in a group: where each is, by name; nothing is imported."""
    return {point.name: point.value for point in _points(group)}


def find(group: str, name: str) -> Any:
    """What is offered under a name, imported; None for nothing. Raises what its import raises."""
    return next((point.load() for point in _points(group) if point.name == name), None)


def _points(group: str) -> Any:
    from importlib.metadata import entry_points  # loads much, and most commands ask for nothing

    return entry_points(group=group)
