"""The error tree: what a handler may rely on."""

from __future__ import annotations

import errno
import inspect
import pickle

import pytest

from coral import errors
from coral.errors import CoralError, StorageError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, CoralError)]
GROUPS = [value for value in CLASSES if CoralError in value.__bases__]


@pytest.mark.parametrize("kind", CLASSES)
def test_message_and_hint(kind: type[CoralError]) -> None:
    """Every error says what was wrong, and its hint what to do; str() shows both, whatever builtin it resembles."""
    error = kind("no such thing", hint="look elsewhere")
    assert (error.message, error.hint) == ("no such thing", "look elsewhere")
    assert str(error) == "no such thing\nhint: look elsewhere"
    assert str(kind("bare")) == "bare"


@pytest.mark.parametrize("kind", CLASSES)
def test_crosses_processes(kind: type[CoralError]) -> None:
    """An error raised in a worker process arrives whole."""
    error = pickle.loads(pickle.dumps(kind("gone", hint="retry")))
    assert type(error) is kind
    assert (error.message, error.hint) == ("gone", "retry")


def test_exit_codes_tell_groups_apart() -> None:
    """Each group of errors has its own exit code, which its members share."""
    codes = [group.exit_code for group in GROUPS]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    for kind in CLASSES:
        group = next((group for group in GROUPS if issubclass(kind, group)), CoralError)
        assert kind.exit_code == group.exit_code


def test_each_doubles_as_the_builtin_it_resembles() -> None:
    """Code that knows nothing of coral can catch its errors by the builtin they resemble."""
    doubles = {
        errors.UsageError: ValueError,
        errors.UnsupportedValueError: TypeError,
        errors.NotFoundError: KeyError,
        errors.ConflictError: RuntimeError,
        errors.CorruptionError: ValueError,
        errors.FormatError: ValueError,
        errors.VersionError: RuntimeError,
        errors.StorageError: OSError,
    }
    for kind, builtin in doubles.items():
        assert issubclass(kind, builtin)


def test_the_docstring_draws_the_tree() -> None:
    """Every error stands in the module's picture of the tree."""
    for kind in CLASSES:
        assert kind.__name__ in (errors.__doc__ or "")


def test_storage_error_keeps_errno() -> None:
    """A StorageError carries the operating system's number, as the OSError that it is."""
    assert StorageError("full", errno=errno.ENOSPC).errno == errno.ENOSPC
    assert StorageError("odd").errno is None
