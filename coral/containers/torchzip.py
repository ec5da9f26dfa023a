"""Files of torch.save: each storage is one record, named after the one tensor that covers it exactly.

Views, ties and everything else follow from the pickle, which stays in the skeleton and is never executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from coral.containers import zips
from coral.containers.file import Parsed, TensorView
from coral.containers.pickled import PICKLE_LIMIT, RefusedError, Storage, Tensor, find_tensors
from coral.containers.source import FileRange, FileSource
from coral.containers.zips import Member, NotThisError, Skeleton, Span
from coral.errors import FormatError
from coral.format.dtypes import BITS, item_bytes
from coral.format.manifest import Manifest

_PICKLE = "data.pkl"
_STORAGES = "data/"
_BYTE_ORDER = "byteorder"

Named = Sequence[tuple[str, Tensor]]


def parse(data: FileRange, members: Sequence[Member]) -> Parsed:
    """Take a torch archive apart.

    Raises:
        NotThisError: not such an archive, big-endian, or with anything in its pickle that is not data.
    """
    by_name = _strip_folder(members)
    pickle, order = by_name.get(_PICKLE), by_name.get(_BYTE_ORDER)
    # Both lengths come from the file: no more is read than could be meant.
    if pickle is None or pickle.stop - pickle.start > PICKLE_LIMIT:
        raise NotThisError("no pickle, or one that is too large")
    if order is not None and data.read(order.start, min(order.stop, order.start + 8)) != b"little":
        raise NotThisError("a big-endian archive")
    named = _read_pickle(data.read(pickle.start, pickle.stop))
    storages = {name.removeprefix(_STORAGES): member for name, member in by_name.items() if name.startswith(_STORAGES)}
    sources = _name_storages(data, storages, named)
    spans = [Span(sources[key].name, member.start, 0, member) for key, member in storages.items()]
    skeleton = zips.make_skeleton(data, spans, members=members, pickle=(pickle.start, pickle.stop))
    return Parsed("torch", skeleton, (), list(sources.values()))


def views(manifest: Manifest, skeleton: bytes) -> Mapping[str, TensorView]:
    """Every tensor of the pickle, as a view of the record that holds its storage. Raises FormatError."""
    parts = Skeleton.from_bytes(skeleton, zips.lengths(manifest))
    try:
        named = _read_pickle(parts.read_literal(*parts.pickle))
        covering = _covering(named)
    except NotThisError as error:
        raise FormatError(f"a torch skeleton's pickle is not understood: {error}") from None
    found = {}
    for name, tensor in named:
        record_name = covering.get(tensor.storage.key, (_STORAGES + tensor.storage.key, tensor))[0]
        if record_name not in manifest or manifest[record_name].nbytes != tensor.storage.nbytes:
            raise FormatError(f"a torch skeleton's tensor {name!r} has no record")
        record = manifest[record_name]
        shape = _logical_shape(tensor)
        whole = record.shape == shape and _covers(tensor)
        stride, offset = (None, 0) if whole else (tensor.stride, tensor.offset)
        found[name] = TensorView(name, record_name, tensor.dtype, shape, stride, offset)
    return found


def _strip_folder(members: Sequence[Member]) -> dict[str, Member]:
    """Members by their name within the archive's one folder."""
    folder = members[0].name.partition("/")[0] + "/" if members else ""
    if len({member.name for member in members}) != len(members):
        raise NotThisError("a member stands twice")
    return {member.name.removeprefix(folder): member for member in members if member.name.startswith(folder) and folder}


def _read_pickle(pickle: bytes) -> Named:
    """The pickle's tensors, by names that are all different."""
    named: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    try:
        for path, tensor in find_tensors(pickle):
            path.encode()
            name = path
            while name in named:
                # Counted on from the last of the same path: a million of them must not take a million squared steps.
                numbers[path] = numbers.get(path, 1) + 1
                name = f"{path}~{numbers[path]}"
            named[name] = tensor
    except (RefusedError, UnicodeEncodeError) as error:
        raise NotThisError(str(error)) from None
    _check_consistent(list(named.items()))
    return list(named.items())


def _check_consistent(named: Named) -> None:
    dtypes: dict[str, str] = {}
    storages: dict[str, Storage] = {}
    for name, tensor in named:
        key, size = tensor.storage.key, item_bytes(tensor.dtype)
        if storages.setdefault(key, tensor.storage) != tensor.storage or dtypes.setdefault(key, tensor.dtype) != (
            tensor.dtype
        ):
            raise NotThisError(f"the storage of {name!r} has two types")
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
        outside = tensor.offset * size > tensor.storage.nbytes or (
            0 not in tensor.shape and (last + 1) * size > tensor.storage.nbytes
        )
        if outside or (BITS[tensor.dtype] < 8 and not (_covers(tensor) and tensor.shape)):
            raise NotThisError(f"{name!r} leaves its storage")


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
    """For each storage key the first tensor that covers it, and its name."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in named:
        if _covers(tensor):
            found.setdefault(tensor.storage.key, (name, tensor))
    return found


def _name_storages(data: FileRange, storages: Mapping[str, Member], named: Named) -> dict[str, FileSource]:
    covering = _covering(named)
    known = {tensor.storage.key: tensor for _, tensor in named}
    if not set(known) <= set(storages):
        raise NotThisError("a storage is missing, or compressed")
    sources = {}
    for key, member in storages.items():
        content = data.part(member.start, member.stop)
        if key in known and known[key].storage.nbytes != len(content):
            raise NotThisError("a storage is not as long as the pickle says")
        if key in covering:
            name, tensor = covering[key]
            sources[key] = FileSource(name, tensor.dtype, _logical_shape(tensor), content)
        else:
            dtype = known[key].dtype if key in known else "U8"
            if len(content) % item_bytes(dtype):
                raise NotThisError("a storage that is no whole number of elements")
            sources[key] = FileSource(_STORAGES + key, dtype, (len(content) // item_bytes(dtype),), content)
    if len({source.name for source in sources.values()}) != len(sources):
        raise NotThisError("two storages would have one name")
    return sources
