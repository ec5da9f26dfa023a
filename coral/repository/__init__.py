"""The door to a folder's history of weights."""

from coral.repository.door import CommitDetails, Repository, Status

__all__ = ["CommitDetails", "Repository", "Status"]
