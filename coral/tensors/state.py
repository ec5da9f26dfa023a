"""Nested states, such as an optimizer's, as readable JSON plus named tensors; no pickle either way.

What JSON has stands as it is; everything else is an object with one key that begins with ``$``::

    {"lr": 0.001, "betas": {"$tuple": [0.9, 0.999]}, "exp_avg": {"$tensor": ["torch", "state.0.exp_avg"]}}

Whatever comes back is equal in type and in every bit. What cannot be kept so is refused with its path.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn

from coral.errors import FormatError, UnsupportedValueError, UsageError
from coral.tensors.frameworks import Framework, find_framework, framework_named

MAX_DEPTH: Final = 200
"""Deepest nesting of a state."""

_MAX_NAME = 200
_SURELY_READ = 40
_PLAIN_INT_BITS = 1024
_FACTORIES: Final = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str, "bool": bool}
_METADATA = "_metadata"

Path = tuple[object, ...]
LoadTensor = Callable[[str, str], object]
"""From a tensor's name and its framework's name to the tensor."""


def encode_state(obj: object) -> tuple[str, dict[str, object]]:
    """A nested state as JSON text and the tensors it refers to, by name.

    Raises:
        UnsupportedValueError: a value that cannot be kept without loss, named by its path such as
            ``optimizer.param_groups[0].lr``; a cycle; nesting deeper than :data:`MAX_DEPTH`.
    """
    encoder = _Encoder()
    try:
        tree = encoder.encode(obj, ())
        text = json.dumps(tree, ensure_ascii=False, allow_nan=False)
        if encoder.deepest > _SURELY_READ:
            # Some containers take more of Python's stack to be read than to be written.
            _Decoder(lambda name, owner: encoder.tensors[name], flagged=False).decode(tree, 0)
    except RecursionError:
        raise UnsupportedValueError(
            f"a state is nested deeper than coral could read back, {MAX_DEPTH} at most"
        ) from None
    return text, encoder.tensors


def decode_state(text: str, tensor: LoadTensor) -> object:
    """The state that :func:`encode_state` was given.

    Args:
        text: its JSON.
        tensor: called once for each tensor, with its name and the name of its framework.

    Raises:
        FormatError: anything that :func:`encode_state` would not have written.
    """
    try:
        tree = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        return _Decoder(tensor).decode(tree, 0)
    except RecursionError:
        raise FormatError(f"a state is nested deeper than {MAX_DEPTH} levels") from None
    except FormatError:
        raise
    except ValueError as error:  # among others, a number of more digits than Python reads
        raise FormatError(f"a state is not JSON: {error}") from None


def show_path(path: Path) -> str:
    """A path as Python would write it: ``optimizer.param_groups[0].lr``."""
    text = ""
    for key in path:
        if isinstance(key, str) and key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text or "the state itself"


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, object] = {}
        self._names: dict[int, str] = {}
        self._open: set[int] = set()
        self._numbers: dict[str, int] = {}
        self.deepest = 0

    def encode(self, value: object, path: Path) -> object:
        kind = type(value)
        simple = _SCALARS.get(kind)
        if simple is not None:
            return simple(value)
        container = _CONTAINERS.get(kind)
        if container is None:
            return self._encode_foreign(value, path)
        if id(value) in self._open:
            raise UnsupportedValueError(f"{show_path(path)} contains itself; coral cannot keep a cycle")
        self.deepest = max(self.deepest, len(path))
        if len(path) >= MAX_DEPTH:
            raise UnsupportedValueError(f"{show_path(path[:5])}… is nested deeper than {MAX_DEPTH} levels")
        self._open.add(id(value))
        try:
            return container(self, value, path)
        finally:
            self._open.discard(id(value))

    def sequence(self, values: Iterable[object], path: Path) -> list[object]:
        result = []
        for index, value in enumerate(values):
            result.append(self.encode(value, (*path, index)))
        return result

    def mapping(self, value: Mapping[object, object], path: Path) -> object:
        """A JSON object where the keys allow it, else ``{"$dict": [[key, value], ...]}``."""
        plain = {}
        for key, item in value.items():
            if type(key) is not str or key.startswith("$") or not _is_unicode(key):
                return {"$dict": self.pairs(value, path)}
            plain[key] = self.encode(item, (*path, key))
        return plain

    def pairs(self, value: Mapping[object, object], path: Path) -> list[object]:
        result: list[object] = []
        for key, item in value.items():
            result.append([self._key(key, path), self.encode(item, (*path, key))])
        return result

    def _key(self, key: object, path: Path) -> object:
        if find_framework(key) is not None or not isinstance(key, _KEY_TYPES):
            _refuse(key, path, "as a key")
        return self.encode(key, (*path, key))

    def _encode_foreign(self, value: object, path: Path) -> object:
        owner = find_framework(value)
        if owner is None:
            _refuse(value, path)
        dtype = owner.dtype_name(value)
        if dtype is not None:
            return {f"${owner.name}.dtype": dtype}
        small = owner.encode(value)
        if small is not None:
            kind, payload = small
            return {f"${owner.name}.{kind}": payload}
        if not owner.accepts(value):
            _refuse(value, path)
        try:
            owner.source(show_path(path), value)
        except UnsupportedValueError as error:
            raise UnsupportedValueError(f"{show_path(path)}: {error.message}", hint=error.hint) from None
        problem = owner.not_exact(value)
        if problem is not None:
            raise UnsupportedValueError(
                f"{show_path(path)} {problem}",
                hint="a state comes back as it was: hand in a plain array or tensor of it",
            )
        return {"$tensor": [owner.name, self._tensor_name(value, path), *owner.flags(value)]}

    def _tensor_name(self, value: object, path: Path) -> str:
        known = self._names.get(id(value))
        if known is not None:
            return known
        dotted = ".".join(str(key) for key in path).encode("utf-8", "backslashreplace").decode()
        stem = name = dotted[:_MAX_NAME] or "state"
        while name in self.tensors or name == "__metadata__":
            # Counted on from the last of the same stem: thousands of them must not take millions of steps.
            self._numbers[stem] = self._numbers.get(stem, 1) + 1
            name = f"{stem}~{self._numbers[stem]}"
        self.tensors[name] = value
        self._names[id(value)] = name
        return name


def _refuse(value: object, path: Path, role: str = "") -> NoReturn:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UnsupportedValueError(
        f"{show_path(path)}: coral cannot keep a value of type {kind} {role}".rstrip(),
        hint="a state may hold dict, list, tuple, set, str, bytes, numbers, None, arrays, tensors and dtypes",
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode_str(value: object) -> object:
    assert isinstance(value, str)
    if _is_unicode(value):
        return value
    return {"$str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _encode_int(value: object) -> object:
    assert isinstance(value, int)
    return value if value.bit_length() <= _PLAIN_INT_BITS else {"$int": hex(value)}


def _encode_float(value: object) -> object:
    assert isinstance(value, float)
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    plain = repr(value)
    return {"$float": plain if struct.pack(">d", float(plain)) == bits else bits.hex()}


def _encode_bytes(value: object) -> object:
    assert isinstance(value, bytes)
    return {"$bytes": base64.b64encode(value).decode()}


def _encode_complex(value: object) -> object:
    assert isinstance(value, complex)
    return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}


def _encode_list(encoder: _Encoder, value: list[object], path: Path) -> object:
    return encoder.sequence(value, path)


def _encode_tuple(encoder: _Encoder, value: tuple[object, ...], path: Path) -> object:
    return {"$tuple": encoder.sequence(value, path)}


def _encode_set(encoder: _Encoder, value: set[object] | frozenset[object], path: Path) -> object:
    items = encoder.sequence(value, path)
    # A set has no order of its own; equal states must be equal texts.
    items.sort(key=lambda item: json.dumps(item, ensure_ascii=False))
    return {"$set" if isinstance(value, set) else "$frozenset": items}


def _encode_dict(encoder: _Encoder, value: dict[object, object], path: Path) -> object:
    return encoder.mapping(value, path)


def _encode_ordered(encoder: _Encoder, value: OrderedDict[object, object], path: Path) -> object:
    # torch hangs the versions of a state dict's modules on it as an attribute.
    extra = vars(value)
    if set(extra) - {_METADATA}:
        _refuse(value, path, "with attributes " + ", ".join(sorted(extra)))
    payload = [encoder.mapping(value, path)]
    if extra:
        payload.append(encoder.encode(extra[_METADATA], (*path, _METADATA)))
    return {"$OrderedDict": payload}


def _encode_default(encoder: _Encoder, value: defaultdict[object, object], path: Path) -> object:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if factory is not None and name is None:
        _refuse(value, path, f"with factory {factory!r}")
    return {"$defaultdict": [name, encoder.mapping(value, path)]}


def _encode_counter(encoder: _Encoder, value: Counter[object], path: Path) -> object:
    if vars(value):
        _refuse(value, path, "with attributes " + ", ".join(sorted(vars(value))))
    return {"$Counter": encoder.mapping(value, path)}


_SCALARS: Final[dict[type, Callable[[object], object]]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
    bytes: _encode_bytes,
    complex: _encode_complex,
}
_KEY_TYPES = (type(None), bool, str, int, float, bytes, complex, tuple, frozenset)
_CONTAINERS: Final[dict[type, Callable[..., object]]] = {
    list: _encode_list,
    tuple: _encode_tuple,
    set: _encode_set,
    frozenset: _encode_set,
    dict: _encode_dict,
    OrderedDict: _encode_ordered,
    defaultdict: _encode_default,
    Counter: _encode_counter,
}


def _refuse_constant(text: str) -> NoReturn:
    raise FormatError(f"a state holds the bare constant {text}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("a state holds an object with a repeated key")
    return result


class _Decoder:
    def __init__(self, tensor: LoadTensor, *, flagged: bool = True) -> None:
        self._load = tensor
        self._flagged = flagged
        self._loaded: dict[tuple[str, ...], object] = {}

    def decode(self, tree: object, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise FormatError(f"a state is nested deeper than {MAX_DEPTH} levels")
        if isinstance(tree, list):
            return self._items(tree, depth)
        if not isinstance(tree, dict):
            return tree
        tag = next(iter(tree), "")
        if tag.startswith("$"):
            return self._tagged(tag, tree, depth)
        plain = {}
        for key, item in tree.items():
            if key.startswith("$"):
                raise FormatError(f"a state holds the unescaped key {key[:80]!r}")
            plain[key] = self.decode(item, depth + 1)
        return plain

    def _items(self, payload: object, depth: int) -> list[object]:
        result = []
        for item in _list(payload):
            result.append(self.decode(item, depth + 1))
        return result

    def _tagged(self, tag: str, tree: dict[str, object], depth: int) -> object:
        if len(tree) != 1:
            raise FormatError(f"a state holds an object with {tag[:80]!r} and other keys")
        payload = tree[tag]
        try:
            if tag in _DECODE_SCALAR:
                return _DECODE_SCALAR[tag](payload)
            if tag == "$tensor":
                return self._tensor(payload)
            if "." in tag:
                return _decode_foreign(tag, payload)
            return self._container(tag, payload, depth)
        except FormatError:
            raise
        except (TypeError, ValueError, KeyError, binascii.Error) as error:
            raise FormatError(f"a state holds a malformed {tag[:80]!r}: {error}") from None

    def _container(self, tag: str, payload: object, depth: int) -> object:
        if tag in _DECODE_ITEMS:
            return _DECODE_ITEMS[tag](self._items(payload, depth))
        if tag == "$dict":
            return dict(self._pairs(payload, depth))
        if tag == "$Counter":
            return Counter(self._mapping(payload, depth))
        if tag == "$defaultdict":
            name, inner = _list(payload)
            factory = None if name is None else _FACTORIES[_str(name)]
            return defaultdict(factory, self._mapping(inner, depth))
        if tag == "$OrderedDict":
            inner, *metadata = _list(payload)
            ordered = OrderedDict(self._mapping(inner, depth))
            if metadata:
                (value,) = metadata
                vars(ordered)[_METADATA] = self.decode(value, depth + 1)
            return ordered
        raise FormatError(f"a state holds the unknown kind {tag[:80]!r}")

    def _pairs(self, payload: object, depth: int) -> list[tuple[object, object]]:
        pairs = []
        for pair in _list(payload):
            key, item = _list(pair)
            pairs.append((self.decode(key, depth + 1), self.decode(item, depth + 1)))
        return pairs

    def _mapping(self, payload: object, depth: int) -> dict[object, object]:
        value = self.decode(payload, depth)
        if type(value) is not dict:
            raise FormatError("a state holds a mapping that is none")
        return value

    def _tensor(self, payload: object) -> object:
        key = tuple(map(_str, _list(payload)))
        if key not in self._loaded:
            owner, name, *flags = key
            value = self._load(name, owner)
            self._loaded[key] = _framework(owner).flagged(value, tuple(flags)) if flags and self._flagged else value
        return self._loaded[key]


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise FormatError("a state holds something else where a list should be")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("a state holds something else where a text should be")
    return value


def _decode_foreign(tag: str, payload: object) -> object:
    owner, _, kind = tag[1:].partition(".")
    if kind == "dtype":
        return _framework(owner).parse_dtype(_str(payload))
    return _framework(owner).decode(kind, payload)


def _framework(name: str) -> Framework:
    try:
        return framework_named(name)
    except UsageError as error:
        raise FormatError(f"a state holds a value of the framework {name[:80]!r}, which is not here") from error


def _decode_float(payload: object) -> float:
    text = _str(payload)
    if text in ("nan", "inf", "-inf"):
        return float(text)
    (value,) = struct.unpack(">d", bytes.fromhex(text))
    assert isinstance(value, float)
    return value


def _decode_complex(payload: object) -> complex:
    real, imag = (_decode_float(_single(part)) if isinstance(part, dict) else part for part in _list(payload))
    if not isinstance(real, int | float) or not isinstance(imag, int | float):
        raise FormatError("a state holds a malformed '$complex'")
    return complex(real, imag)


def _single(tree: dict[str, object]) -> object:
    return tree["$float"]


def _decode_text(payload: object) -> str:
    return base64.b64decode(_str(payload), validate=True).decode("utf-8", "surrogatepass")


def _decode_int(payload: object) -> int:
    return int(_str(payload), 16)


def _decode_bytes(payload: object) -> bytes:
    return base64.b64decode(_str(payload), validate=True)


_DECODE_SCALAR: Final[dict[str, Callable[[object], object]]] = {
    "$str": _decode_text,
    "$int": _decode_int,
    "$float": _decode_float,
    "$bytes": _decode_bytes,
    "$complex": _decode_complex,
}
_DECODE_ITEMS: Final[dict[str, Callable[[list[object]], object]]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
}
