"""The history: commits, branches and tags, kept in an ordinary git repository through libgit2."""

from coral.history.commit import Commit
from coral.history.history import History
from coral.history.refs import Head, ReflogEntry

__all__ = ["Commit", "Head", "History", "ReflogEntry"]
