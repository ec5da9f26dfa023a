"""What torch's files have in common: tensors by name, and storages, each of which is one record.

A storage is named after the one tensor that covers it exactly; else by itself, and numbered where a tensor has that
name. Views, ties and everything else follow from the pickle, which stays in the skeleton and is never executed. A
tensor that cannot be shown, such as one of a type that coral lacks, has no name; its storage is a record all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from coral.containers.file import NotThisError, TensorView, numbered
from coral.containers.pickled import Described, RefusedError, Storage, Tensor, describe
from coral.containers.source import FileRange, FileSource
from coral.containers.zips import Skeleton, lengths
from coral.errors import FormatError
from coral.format.dtypes import BITS, item_bytes
from coral.format.manifest import Manifest

STORAGES: Final = "data/"
"""What the names of storages begin with that no one tensor covers."""

CONSTANTS: Final = "constants/"
"""As :data:`STORAGES`, of the constants of TorchScript, which have a pickle of their own."""

_CONSTANT = "constants."
_LETTERS = 80

Named = Sequence[tuple[str, Tensor]]


class Contents(NamedTuple):
    """What the pickles of a file describe.

    Attributes:
        tensors: those that can be shown, by names that are all different.
        storages: by the keys that the pickles give, the constants' last.
        nbytes: how long the first pickle is.
    """

    tensors: Named
    storages: Sequence[tuple[str, Storage]]
    nbytes: int


def read_pickles(pickle: bytes, constants: bytes = b"") -> Contents:
    """The tensors and storages that a file's pickle describes, and that of TorchScript's constants, if there is one.

    Raises:
        NotThisError: a pickle is malformed, or too large.
    """
    try:
        own = describe(pickle, STORAGES)
        found = [describe(constants, CONSTANTS)] if constants else []
    except RefusedError as error:
        raise NotThisError(str(error)) from None
    return contents_of(own, *found)


def contents_of(own: Described, *constants: Described) -> Contents:
    """What a file's pickle describes, with that of TorchScript's constants."""
    paths = own.tensors + [(_CONSTANT + path, tensor) for more in constants for path, tensor in more.tensors]
    storages = [pair for each in (own, *constants) for pair in each.storages.items()]
    return Contents([*_shown(numbered(paths))], storages, own.nbytes)


def _shown(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Those that are what they seem: of a name that is text, and whole elements of a storage of their type."""
    dtypes: dict[str, str] = {}
    for name, tensor in named:
        try:
            name.encode()
        except UnicodeEncodeError:
            continue
        if _lies_within(tensor) and dtypes.setdefault(tensor.storage.name, tensor.dtype) == tensor.dtype:
            yield name, tensor


def _lies_within(tensor: Tensor) -> bool:
    if BITS[tensor.dtype] < 8:
        return bool(tensor.shape) and _covers(tensor)
    size, last = item_bytes(tensor.dtype), tensor.offset - 1
    if 0 not in tensor.shape:
        last += 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    return (last + 1) * size <= tensor.storage.nbytes


def _covers(tensor: Tensor) -> bool:
    """Whether a tensor is its whole storage, in order."""
    step = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if length > 1 and stride != step:
            return False
        step *= length
    return tensor.offset == 0 and math.prod(tensor.shape) * item_bytes(tensor.dtype) == tensor.storage.nbytes


def _logical_shape(tensor: Tensor) -> tuple[int, ...]:
    # torch counts pairs of four-bit elements, safetensors elements.
    return (*tensor.shape[:-1], tensor.shape[-1] * 2) if tensor.dtype == "F4" else tensor.shape


def _covering(named: Named) -> dict[str, tuple[str, Tensor]]:
    """For each storage the first tensor that covers it, and its name."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in named:
        if _covers(tensor):
            found.setdefault(tensor.storage.name, (name, tensor))
    return found


def name_storages(storages: Mapping[str, FileRange], contents: Contents) -> dict[str, FileSource]:
    """The records that a file's storages are, both by the storages' names.

    Raises:
        NotThisError: a storage is missing, or not as long as the pickle says.
    """
    covering = _covering(contents.tensors)
    names = _record_names(contents, storages)
    elements = {storage.name: storage.kind.element for _, storage in contents.storages}
    for name, tensor in contents.tensors:
        _check_there(name, tensor, storages)
        elements[tensor.storage.name] = tensor.dtype
    sources = {}
    for key, content in storages.items():
        if key in covering:
            _, tensor = covering[key]
            sources[key] = FileSource(names[key], tensor.dtype, _logical_shape(tensor), content)
        else:
            sources[key] = _plain(names[key], elements.get(key, "U8"), content)
    return sources


def _record_names(contents: Contents, storages: Iterable[str] = ()) -> dict[str, str]:
    """What the records of storages are called, by the storages' own names; all are different.

    Args:
        storages: those of the file. The pickle may not know of some, and their names are given last, so that the others
            follow from the pickle alone.
    """
    covering = _covering(contents.tensors)
    plain = dict.fromkeys([*(storage.name for _, storage in contents.storages), *storages])
    wanted = [(name, key) for key, (name, _) in covering.items()]
    return {key: name for name, key in numbered([*wanted, *((key, key) for key in plain if key not in covering)])}


def _check_there(name: str, tensor: Tensor, storages: Mapping[str, FileRange]) -> None:
    content = storages.get(tensor.storage.name)
    if content is None:
        raise NotThisError(f"the storage of {name[:_LETTERS]!r} is missing in it, or compressed")
    if len(content) != tensor.storage.nbytes:
        raise NotThisError(f"the storage of {name[:_LETTERS]!r} has {len(content)} bytes, not {tensor.storage.nbytes}")


def _plain(name: str, dtype: str, content: FileRange) -> FileSource:
    if len(content) % item_bytes(dtype):
        dtype = "U8"
    return FileSource(name, dtype, (len(content) // item_bytes(dtype),), content)


def views(manifest: Manifest, skeleton: bytes) -> Mapping[str, TensorView]:
    """Every tensor that can be shown, as a view of the record that holds its storage. Raises FormatError."""
    parts = Skeleton.from_bytes(skeleton, lengths(manifest))
    try:
        contents = read_pickles(parts.read_literal(*parts.pickle), parts.read_literal(*parts.constants))
    except NotThisError as error:
        raise FormatError(f"a torch skeleton is not understood: {error}") from None
    names = _record_names(contents)
    found = {}
    for name, tensor in contents.tensors:
        storage = tensor.storage
        record_name = names[storage.name]
        if record_name not in manifest or manifest[record_name].nbytes != storage.nbytes:
            raise FormatError(f"a torch skeleton's tensor {name!r} has no record")
        shape = _logical_shape(tensor)
        whole = manifest[record_name].shape == shape and _covers(tensor)
        stride, offset = (None, 0) if whole else (tensor.stride, tensor.offset)
        found[name] = TensorView(name, record_name, tensor.dtype, shape, stride, offset)
    return found
