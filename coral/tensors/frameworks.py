"""Frameworks: whose values are tensors that coral can keep; numpy is always there, others come by entry points.

A framework is found by the entry point group ``coral.frameworks``, under the name of its own root module, so that
no framework is imported to recognise its values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from coral import plugins
from coral.errors import UnsupportedValueError, UsageError
from coral.tensors.numpy import NUMPY

if TYPE_CHECKING:
    from coral.format.tensors import TensorSource

GROUP = "coral.frameworks"
"""The entry point group under which frameworks are found."""


class Framework(Protocol):
    """What coral needs to know of a library of tensors."""

    @property
    def name(self) -> str:
        """The library's root module, such as ``torch``."""
        ...

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """What the library's own safetensors files say of themselves."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether the value is a tensor of this library."""
        ...

    def source(self, name: str, value: object) -> TensorSource:
        """A tensor as bytes. Raises UnsupportedValueError, naming ``name``, for what cannot be kept."""
        ...

    def weights(self, value: object) -> Mapping[str, object] | None:
        """A module's named tensors, sharing its memory; None for a value that is not a module."""
        ...

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
        """A fresh tensor on the CPU, and its bytes to be filled in.

        A packed type (F4, F6) that the library does not have comes as its bytes, unsigned.
        """
        ...

    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        """A strided view, in elements, of a tensor from :meth:`empty`. Raises FormatError when it leaves it."""
        ...

    def not_exact(self, value: object) -> str | None:
        """What of a tensor would not come back as it is, its type for one; None when all of it would."""
        ...

    def flags(self, value: object) -> tuple[str, ...]:
        """What a tensor is besides its bytes, such as ``parameter``."""
        ...

    def flagged(self, tensor: object, flags: tuple[str, ...]) -> object:
        """A tensor from :meth:`empty` with its :meth:`flags` back. Raises FormatError for an unknown flag."""
        ...

    def dtype_name(self, value: object) -> str | None:
        """The name of one of the library's dtype objects; None for any other value."""
        ...

    def parse_dtype(self, name: str) -> object:
        """The dtype object of a name. Raises FormatError."""
        ...

    def encode(self, value: object) -> tuple[str, object] | None:
        """A small value of the library that is no tensor, as a kind and JSON; None for any other value."""
        ...

    def decode(self, kind: str, payload: object) -> object:
        """Undo :meth:`encode`. Raises FormatError."""
        ...


def framework_of(value: object) -> Framework:
    """The framework that a value (a tensor, a module, a dtype) belongs to.

    Raises:
        UnsupportedValueError: no known framework has such values.
    """
    found = find_framework(value)
    if found is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UnsupportedValueError(
            f"a value of type {kind} is not a tensor of any known framework",
            hint="hand in numpy arrays, torch tensors, JAX arrays, or a mapping of names to them",
        )
    return found


def find_framework(value: object) -> Framework | None:
    """The framework that a value belongs to, or None."""
    known = _entry_points()
    for base in type(value).__mro__:
        root = base.__module__.partition(".")[0]
        if root in known:
            return framework_named(root)
    return NUMPY if NUMPY.accepts(value) or type(value).__module__.partition(".")[0] == "numpy" else None


def framework_named(name: str) -> Framework:
    """A framework by name. Raises UsageError for an unknown one, or one that is not installed."""
    if name == NUMPY.name:
        return NUMPY
    if name not in _entry_points():
        known = ", ".join(sorted({NUMPY.name, *_entry_points()}))
        raise UsageError(f"unknown framework {name!r}", hint=f"known frameworks: {known}")
    return _load(name)


@functools.cache
def _entry_points() -> Mapping[str, str]:
    return plugins.offered(GROUP)


@functools.cache
def _load(name: str) -> Framework:
    try:
        loaded: Framework = plugins.find(GROUP, name)
    except ImportError as error:
        raise UsageError(f"framework {name!r} cannot be loaded: {error}", hint=f"pip install {name}") from error
    return loaded
