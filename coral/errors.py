"""Every error that coral raises on purpose, grouped by what a handler would do about it.

::

    CoralError                       anything below; has .message, .hint and .exit_code
    ├── UsageError        ValueError   the call makes no sense: mend the call           exit 2
    │   ├── InvalidNameError             a branch, tag, part or tensor name git or coral forbids
    │   └── UnsupportedValueError  TypeError   a value that coral cannot keep without loss
    ├── NotFoundError     KeyError     a name that does not exist: mend the name        exit 3
    │   ├── RepositoryNotFoundError
    │   ├── RefNotFoundError
    │   ├── PartNotFoundError            no such file or state in the commit
    │   ├── TensorNotFoundError
    │   └── ExperimentNotFoundError
    ├── ConflictError     RuntimeError   the world changed or disagrees: decide, then retry   exit 4
    │   ├── AlreadyExistsError
    │   ├── OverwriteError               would overwrite bytes that no commit holds
    │   ├── NothingToCommitError
    │   └── LockedError                  another process holds the lock for too long
    ├── CorruptionError   ValueError   stored bytes are not what was stored: run fsck   exit 5
    ├── FormatError       ValueError   an input file is malformed; nothing was stored   exit 6
    ├── VersionError      RuntimeError   written by a newer coral: upgrade              exit 7
    ├── StorageError      OSError      the disk refused: free space, mend permissions   exit 8
    │   └── UnreadableError              a file that was to be taken in cannot be read
    ├── SignatureError                 not signed by a key that is trusted: do not use  exit 10
    └── GitCommandError                the user's own git failed, or is not there       exit 1

Third-party exceptions are translated in the one file that imports that library.
"""

from __future__ import annotations


class CoralError(Exception):
    """Base of coral's errors.

    Args:
        message: what was wrong, with which thing.
        hint: what to do next, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(CoralError, ValueError):
    """The call makes no sense as it stands."""

    exit_code = 2


class InvalidNameError(UsageError):
    """A name that git or coral forbids."""


class UnsupportedValueError(UsageError, TypeError):
    """A value that coral cannot keep without loss."""


class NotFoundError(CoralError, KeyError):
    """A name that does not exist."""

    exit_code = 3


class RepositoryNotFoundError(NotFoundError):
    """A folder that holds no coral repository."""


class RefNotFoundError(NotFoundError):
    """A branch, tag, hash or expression that names no commit."""


class PartNotFoundError(NotFoundError):
    """A file or state that the commit does not hold."""


class TensorNotFoundError(NotFoundError):
    """A tensor that the commit does not hold."""


class ExperimentNotFoundError(NotFoundError):
    """An experiment id or name that is not recorded."""


class ConflictError(CoralError, RuntimeError):
    """The world changed, or disagrees; retrying after a decision may work."""

    exit_code = 4


class AlreadyExistsError(ConflictError):
    """A name that is taken."""


class OverwriteError(ConflictError):
    """The call would overwrite bytes that no commit holds."""


class NothingToCommitError(ConflictError):
    """The commit would be equal to its parent."""


class LockedError(ConflictError):
    """Another process held a lock for longer than we were willing to wait."""


class CorruptionError(CoralError, ValueError):
    """Stored bytes are not the bytes that were stored; they are never returned."""

    exit_code = 5


class FormatError(CoralError, ValueError):
    """An input file is malformed."""

    exit_code = 6


class VersionError(CoralError, RuntimeError):
    """Written by a newer coral than this one."""

    exit_code = 7


class StorageError(CoralError, OSError):
    """The file system refused; what was committed before is intact.

    ``errno`` is the operating system's error number, or None.
    """

    exit_code = 8

    def __init__(self, message: str, *, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class UnreadableError(StorageError):
    """A file that was to be taken in cannot be read; the store is not concerned."""


class SignatureError(CoralError):
    """A commit is not signed, not by a key that the user trusts, or not the commit that was signed."""

    exit_code = 10


class GitCommandError(CoralError):
    """A command of the user's own git failed, or there is no git."""
