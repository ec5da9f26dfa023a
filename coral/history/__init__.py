"""The history: commits, branches and tags, kept in an ordinary git repository through libgit2."""

from coral.history.commit import Commit
from coral.history.history import History
from coral.history.operations import Move, Operation
from coral.history.reachable import Reachable
from coral.history.refs import Change, Head, ReflogEntry

__all__ = ["Change", "Commit", "Head", "History", "Move", "Operation", "Reachable", "ReflogEntry"]
