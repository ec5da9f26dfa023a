"""The ``coral`` command: the only place that prints, asks, and reads the environment or the home folder."""

from coral.cli.root import main

__all__ = ["main"]
