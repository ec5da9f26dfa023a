"""Which remote a command means, and what to say when there is none."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from coral.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from coral.repository import Repository


def remote_for(repo: Repository, name: str | None = None, *, like: str | None = None) -> str:
    """The name of the remote that is meant, see :meth:`coral.repository.remotes.Remotes.choose`."""
    try:
        return repo.remotes.choose(name, like=like).name
    except NotFoundError as error:
        with contextlib.suppress(FormatError):
            if any(name in (None, offered.name) for offered in repo.remotes.offered()):
                hint = "'coral remote adopt' takes those that .coralconfig offers; 'coral remote -v' shows them"
                raise NotFoundError(error.message, hint=hint) from None
        raise
