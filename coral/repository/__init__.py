"""The door to a folder's history of weights, and the nouns behind it."""

from coral.repository.door import Repository

__all__ = ["Repository"]
