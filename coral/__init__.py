"""Coral: git for the weights of neural networks.

::

    import coral

    repo = coral.Repository("my-model", init=True)
    repo.save(model, optimizer, message="epoch 3", step=3, metrics={"val_loss": 0.41})
    repo.load_into(model, "HEAD~1")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from coral.errors import (
        ConflictError,
        CoralError,
        CorruptionError,
        FormatError,
        NotFoundError,
        StorageError,
        UsageError,
        VersionError,
    )
    from coral.history import Commit
    from coral.integrations.torch import model_to_weights
    from coral.repository import Repository
    from coral.verbs.pending import PendingCommit

# Imported at first use: importing coral loads no framework, and the command line only what it needs.
_HOMES = {
    "Commit": "coral.history",
    "ConflictError": "coral.errors",
    "CoralError": "coral.errors",
    "CorruptionError": "coral.errors",
    "FormatError": "coral.errors",
    "NotFoundError": "coral.errors",
    "PendingCommit": "coral.verbs.pending",
    "Repository": "coral.repository",
    "StorageError": "coral.errors",
    "UsageError": "coral.errors",
    "VersionError": "coral.errors",
    "model_to_weights": "coral.integrations.torch",
}

__all__ = [
    "Commit",
    "ConflictError",
    "CoralError",
    "CorruptionError",
    "FormatError",
    "NotFoundError",
    "PendingCommit",
    "Repository",
    "StorageError",
    "UsageError",
    "VersionError",
    "__version__",
    "model_to_weights",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'coral' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
