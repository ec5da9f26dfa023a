"""What users log and set, turned into plain Python values without importing the library it came from."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import sys
from collections import UserString
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from types import SimpleNamespace
from typing import Any, SupportsFloat, SupportsIndex, TypeGuard

from coral import threads
from coral.errors import UnsupportedValueError, UsageError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value as the files keep it; NaN and infinities are the strings of :data:`SPECIAL` under :func:`tagged`."""

MAX_STEP = 2**63 - 1
LAST_MS = 253_402_300_799_000
"""The end of the year 9999, in milliseconds since 1970; the first time is 0."""
MAX_NAME = 1000
MAX_ITEMS = 100_000
"""How many items one parameter may have."""
MAX_BYTES = 32 * 1024**2
"""How many bytes of JSON the parameters of one call may have: a journal's line holds them, twice over."""
_MAX_ALL_ITEMS = 1_000_000
_MAX_DEPTH = 50
_MAX_LENGTH = 10_000
_MAX_BITS = 1024
_MAX_TEXT = 1024**2
_MAX_KEY = 10_000
_NO_END = 2**40
_CHARACTERS_PER_ITEM = 256
_QUALNAME: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_NO_LISTS = (bytes, bytearray, memoryview, range, UserString)
_SCALARS = (str, *_NO_LISTS)
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def metric_name(name: object) -> str:
    """A metric's name, as it is. Raises UsageError for what is none."""
    if not issubclass(type(name), str) or not 0 < len(name) <= MAX_NAME:  # type: ignore[arg-type]
        raise UsageError(f"{_brief(name)} is not a metric's name", hint=f"a string of 1 to {MAX_NAME} characters")
    return name  # type: ignore[return-value]


def number(name: str, value: object) -> float:
    """A metric's value as a float: Python and numpy numbers, bools, and one-element arrays and tensors.

    Raises:
        UnsupportedValueError: anything else, whatever it raises when it is asked; the message names the metric.
    """
    if issubclass(type(value), (str, bytes, bytearray)):
        told = f"metric {_brief(name)}: {_brief(value)} is a string, not a number"
        raise UnsupportedValueError(told, hint="convert it yourself")
    try:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if isinstance(plain, (SupportsFloat, SupportsIndex)) and not isinstance(plain, str):
            return float(plain)
    except BaseException as error:
        _pass_interrupt(error)
        told = f"metric {_brief(name)}: {class_name(value)} is not one number ({_brief(error, str)})"
        raise UnsupportedValueError(told) from error
    raise UnsupportedValueError(f"metric {_brief(name)}: {class_name(value)} is not a number")


def whole(step: object) -> int | None:
    """A step as an int, or None. Raises UsageError for what is not a whole number of 64 bits."""
    if step is None:
        return None
    try:
        item = getattr(step, "item", None)
        result = operator.index(item() if callable(item) else step)  # type: ignore[arg-type]
    except BaseException as error:
        _pass_interrupt(error)
        raise UsageError(f"step {_brief(step)} is not a whole number") from None
    if not -MAX_STEP <= result <= MAX_STEP:
        raise UsageError("the step does not fit into 64 bits")
    return result


def _brief(value: object, tell: Callable[[object], str] = repr) -> str:
    """A value in a message."""
    return _told(value, tell)[:MAX_NAME]


def tagged(value: float) -> float | str:
    """A float as JSON can hold it: NaN and infinities by name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def untagged(value: object) -> float:
    """Undo :func:`tagged`. Raises ValueError."""
    if isinstance(value, str):
        try:
            return _SPECIAL[value]
        except KeyError:
            raise ValueError(f"{value!r} is not a number") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(str(error)) from None
    raise ValueError(f"{value!r} is not a number")


def plain(value: object) -> Json:
    """A parameter as JSON: scalars as they are; what has names (mappings, dataclasses, namespaces, named tuples) as
    objects; lists, tuples, sets, arrays and the like as lists.

    One-element arrays are numbers. NaN and infinities become ``{"type": "float", "value": "NaN"}``. Anything else is
    kept as ``{"type": <class>, "repr": <repr>}``; what raises when it is asked for, such as a value that a
    configuration lacks, as the error. So no parameter is refused, and none pretends to be a string. Keys become
    strings; each keeps a name of its own.

    Parameters are no data: of an array that is large, of what is nested deeper than 50 times, of a text of more than
    a mebibyte and of all after 100,000 items the same ``{"type": .., "repr": ..}`` says how much there was, without
    what is in it. Each value of a mapping has as many items to itself, all together have a million.
    """
    return _Plain(_MAX_ALL_ITEMS, MAX_ITEMS, _MAX_TEXT).of(value, 0)


def whole_data(value: object) -> Json:
    """As :func:`plain`, of data, of which all is kept, however much it is."""
    return _Plain(_NO_END, _NO_END, _NO_END).of(value, 0)


def named(value: object) -> Mapping[Any, object] | None:
    """What holds values by name, as a mapping of them: a mapping, a dataclass, a namespace, a named tuple; else None.

    What its class says is not to be shown (``repr=False``) is left out; what raises when it is asked is None.
    """
    try:
        return _named(value)
    except BaseException as error:
        _pass_interrupt(error)
        return None


def _named(value: object) -> Mapping[Any, object] | None:
    if isinstance(value, Mapping):
        return value
    kind = type(value)
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return dict(zip(kind._fields, value, strict=False))  # type: ignore[attr-defined,call-overload]
    argparse = sys.modules.get("argparse")
    if issubclass(kind, SimpleNamespace) or (argparse is not None and issubclass(kind, argparse.Namespace)):
        return vars(value)
    names = _fields_of(kind)
    return None if names is None else _Fields(value, names)


def _fields_of(kind: type) -> list[str] | None:
    """What a dataclass, or its like of attrs and pydantic, shows of itself."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.repr]
    of_pydantic = getattr(kind, "__pydantic_fields__", None)
    if isinstance(of_pydantic, dict):
        return [name for name, field in of_pydantic.items() if field.repr]
    of_attrs = getattr(kind, "__attrs_attrs__", None)
    return [field.name for field in of_attrs if field.repr] if isinstance(of_attrs, tuple) else None


class _Fields(Mapping[str, object]):
    """The attributes of an object."""

    def __init__(self, owner: object, names: list[str]) -> None:
        self._owner, self._names = owner, names

    def __getitem__(self, name: str) -> object:
        return getattr(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def text(value: object, most: int = _MAX_TEXT) -> str:
    """What a message says, whatever it was given as; of what is longer than ``most`` characters, as many."""
    told = _clean(value) if issubclass(type(value), str) else _told(value, str)  # type: ignore[arg-type]
    return told if len(told) <= most else f"{told[:most]}... ({len(told)} characters)"


def class_name(value: object) -> str:
    """The name of a value's class, whatever that class says about itself."""
    return _clean(_QUALNAME(type(value))[:MAX_NAME])


def checked(data: Json, *, levels: int = _MAX_DEPTH + 1) -> Json:
    """What a file says of a parameter, as it is. Raises ValueError when :func:`plain` leaves nothing nested so deep."""
    if isinstance(data, (dict, list)):
        if levels == 0:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        for item in data.values() if isinstance(data, dict) else data:
            checked(item, levels=levels - 1)
    return data


class _Plain:
    """Turns one value into JSON; whatever its objects raise does not get out of here, but for interrupts.

    Args:
        all_items: how many in all; of long texts and reprs each counts as several.
        items: how many each value of the outermost mapping may have.
        text: how many characters a text may have.
    """

    def __init__(self, all_items: int, items: int, text: int) -> None:
        self._all_left = all_items
        self._most = self._granted = self._left = items
        self._text = text

    def of(self, value: object, depth: int) -> Json:
        """A value."""
        self._left -= 1
        try:
            return self._of(value, depth)
        except BaseException as error:  # of any kind, as they come from objects of any kind
            _pass_interrupt(error)
            return self._stand_in(value)

    def _of(self, value: object, depth: int) -> Json:
        # By its type: what an object says of its class need not be so, and methods may be another's.
        kind = type(value)
        if value is None or kind is bool:
            return value  # type: ignore[return-value]
        if issubclass(kind, str):
            return self._of_text(_clean(value))  # type: ignore[arg-type]
        if issubclass(kind, int):
            number = int.__index__(value)  # type: ignore[arg-type]
            return number if number.bit_length() <= _MAX_BITS else self._stand_in(value)
        if issubclass(kind, float):
            return _as_json(float.__float__(value))  # type: ignore[arg-type]
        if depth < _MAX_DEPTH:
            return self._of_container(value, depth + 1)
        return value if _is_stand_in(value) else self._stand_in(value)

    def _of_text(self, text: str) -> Json:
        if len(text) > self._text:
            return _told_of("str", f"<{len(text)} characters>")
        self._left -= len(text) // _CHARACTERS_PER_ITEM
        return text

    def _of_container(self, value: Any, depth: int) -> Json:
        mapping = named(value)
        if mapping is not None:
            return self._of_mapping(mapping, value, depth)
        if issubclass(type(value), (list, tuple)):
            return self._of_items(value, value, depth)
        if isinstance(value, Set):
            return _in_order(self._of_items(value, value, depth))
        if isinstance(value, Sequence) and not isinstance(value, _NO_LISTS) and len(value) <= _MAX_LENGTH:
            return self._of_items((_at(value, index) for index in range(len(value))), value, depth)
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and math.prod(max(1, size) for size in shape) <= _MAX_LENGTH:
            return self.of(value.item() if math.prod(shape) == 1 else value.tolist(), depth)
        return self._stand_in(value)

    def _of_mapping(self, mapping: Mapping[Any, object], owner: object, depth: int) -> Json:
        # A dict is asked for its pairs: keys may be equal to nothing.
        pairs: Iterable[Any] = dict.items(mapping) if type(mapping) is dict else ((key, None) for key in mapping)
        found, error = _first(pairs, self._most + 1 if depth == 1 else max(0, self._left) + 1)
        kept: dict[str, Json] = {}
        for name, (key, value) in zip(_names_of([key for key, _ in found]), found, strict=True):
            if depth == 1:
                self._all_left -= self._granted - self._left
                self._granted = self._left = min(self._most, self._all_left)
            if self._left <= 0 or len(kept) == self._most:
                kept[_unused("...", kept)] = _rest(owner, len(kept))
                break
            self._left -= len(name) // _CHARACTERS_PER_ITEM
            kept[name] = self.of(value if type(mapping) is dict else _at(mapping, key), depth)
        if error is not None:
            kept[_unused("...", kept)] = self._stand_in(error)
        return kept

    def _of_items(self, items: Iterable[object], owner: object, depth: int) -> list[Json]:
        kept: list[Json] = []
        try:
            for item in items:
                if self._left <= 0:
                    kept.append(_rest(owner, len(kept)))
                    break
                kept.append(self.of(item, depth))
        except BaseException as error:
            _pass_interrupt(error)
            kept.append(self._stand_in(error))
        return kept

    def _stand_in(self, value: object) -> Json:
        kind = type(value)
        if _is_container(value):  # whose repr would say, without their names, what is secret
            told = _length_of(value)
        elif issubclass(kind, int):  # Python refuses to write very long numbers, but not in hexadecimal
            told = _told(value, lambda number: hex(int.__index__(number)))
        else:
            told = _told(value, repr)
        self._left -= min(len(told), MAX_NAME) // _CHARACTERS_PER_ITEM
        return _told_of(class_name(value), told)


def _at(container: Any, key: object) -> object:
    """What stands there, or the error."""
    try:
        return container[key]
    except BaseException as error:
        _pass_interrupt(error)
        return error


def _first(items: Iterable[Any], most: int) -> tuple[list[Any], BaseException | None]:
    """The first items, and the error that came instead of the others."""
    found = list[Any]()
    try:
        found.extend(islice(items, most))
    except BaseException as error:
        _pass_interrupt(error)
        return found, error
    return found, None


def _names_of(keys: list[object]) -> list[str]:
    """The name that each key is kept under: itself where it is a string, else its text.

    Where that is taken its type follows, and a number: ``{"1": a, 1: b}`` has ``1`` and ``1 (int)``.
    """
    texts = list(map(_name, keys))
    own = [issubclass(type(key), str) and str.__str__(key) == name for key, name in zip(keys, texts, strict=True)]
    taken = {name for name, is_own in zip(texts, own, strict=True) if is_own}
    free, counts, names = set(taken), dict[str, int](), list[str]()
    for name, is_own, key in zip(texts, own, keys, strict=True):
        if is_own and name in free:
            free.remove(name)
        else:
            name = _unused(name, taken, class_name(key), counts)
            taken.add(name)
        names.append(name)
    return names


def _name(key: object) -> str:
    name = _clean(key) if issubclass(type(key), str) else _told(key, str)  # type: ignore[arg-type]
    return name if len(name) <= _MAX_KEY else f"{name[:_MAX_KEY]}..."


def _unused(name: str, taken: Container[str], kind: str = "", counts: dict[str, int] | None = None) -> str:
    """A name that is not taken. ``counts`` says how far each was counted before, so that nobody counts anew."""
    if name in taken and kind:
        name += f" ({kind})"
    if name not in taken:
        return name
    counts = {} if counts is None else counts
    number = counts.get(name, 2)
    while f"{name} ({number})" in taken:
        number += 1
    counts[name] = number + 1
    return f"{name} ({number})"


def _in_order(items: list[Json]) -> list[Json]:
    """A set's items, in an order that is the same in every process."""
    try:
        return sorted(items)  # type: ignore[type-var]
    except TypeError:
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def _is_stand_in(value: object) -> TypeGuard[dict[str, Json]]:
    return type(value) is dict and value.keys() == {"type", "repr"} and all(type(one) is str for one in value.values())


def _is_container(value: object) -> bool:
    if issubclass(type(value), (list, tuple, dict, set, frozenset)):
        return True
    try:
        return named(value) is not None or (isinstance(value, (Set, Sequence)) and not isinstance(value, _SCALARS))
    except BaseException as error:
        _pass_interrupt(error)
        return False


def _length_of(value: object) -> str:
    return _told(value, lambda items: f"<{len(items)} items>" if hasattr(type(items), "__len__") else "<...>")


def _rest(owner: object, kept: int) -> Json:
    return _told_of(class_name(owner), f"{_length_of(owner)}, of which {kept} are kept")


def _told_of(kind: str, told: str) -> Json:
    return {"type": kind, "repr": told[:MAX_NAME]}


def _told(value: object, tell: Callable[[Any], str]) -> str:
    try:
        return _clean(tell(value))
    except BaseException as error:
        _pass_interrupt(error)
        return f"<{class_name(value)} that cannot be shown: {class_name(error)}>"


def _pass_interrupt(error: BaseException) -> None:
    """Raise on what the program is told by; what its objects raise, of whatever kind, costs no more than themselves."""
    if issubclass(type(error), (KeyboardInterrupt, SystemExit, GeneratorExit, threads.Stopped)):
        raise error


def _clean(text: str) -> str:
    # A lone surrogate (from a file name, say) cannot be written as UTF-8. Of a subclass, what str itself makes of it.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def _as_json(value: float) -> Json:
    return value if math.isfinite(value) else {"type": "float", "value": str(tagged(value))}


def stored(data: Json) -> Json:
    """Undo :func:`shown`, of all that is there: what a run says of itself is what is read back."""
    if isinstance(data, dict):
        return {_clean(key): stored(item) for key, item in data.items()}
    if isinstance(data, list):
        return [stored(item) for item in data]
    if isinstance(data, float):
        return _as_json(data)
    return _clean(data) if isinstance(data, str) else data


def bounded(params: dict[str, Json], most: int = MAX_BYTES) -> dict[str, Json]:
    """Parameters that together have no more bytes of JSON; what does not fit in is told of."""
    kept = dict[str, Json]()
    for name, value in params.items():
        size = len(json.dumps({name: value}))
        if size > most:
            value = _told_of(type(value).__name__, f"<{size} bytes of JSON>")
            size = len(json.dumps({name: value}))
        if size > most:
            kept[_unused("...", kept)] = _rest(params, len(kept))
            break
        kept[name] = value
        most -= size
    return kept


def shown(params: Mapping[str, Json]) -> dict[str, Json]:
    """Stored parameters as users see them: the named floats of :func:`plain` are floats again."""
    return {key: _show(value) for key, value in params.items()}


def _show(value: Json) -> Json:
    if isinstance(value, dict):
        if value.keys() == {"type", "value"} and value["type"] == "float" and isinstance(value["value"], str):
            return _SPECIAL.get(value["value"], dict(value))
        return {key: _show(item) for key, item in value.items()}
    return [_show(item) for item in value] if isinstance(value, list) else value


def flatten(params: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Nested parameters by dotted path: ``{"opt": {"lr": 1}}`` is ``{"opt.lr": 1}``."""
    flat: dict[str, Json] = {}
    for key, value in params.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def merge(base: dict[str, Json], update: Mapping[str, Json]) -> dict[str, Json]:
    """``base`` with ``update`` laid over it, nested dicts key by key; neither is changed."""
    result = dict(base)
    for key, value in update.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
