"""What users log and set, turned into plain Python values without importing the library it came from."""

from __future__ import annotations

import json
import math
import operator
import reprlib
from collections import UserString
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, SupportsFloat, SupportsIndex, TypeGuard

from coral.errors import UnsupportedValueError, UsageError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value as the files keep it; NaN and infinities are the strings of :data:`SPECIAL` under :func:`tagged`."""

MAX_STEP = 2**63 - 1
LAST_MS = 253_402_300_799_000
"""The end of the year 9999, in milliseconds since 1970; the first time is 0."""
MAX_NAME = 1000
_MAX_DEPTH = 50
_MAX_TOO_DEEP = 1000
_MAX_ITEMS = 10_000
_MAX_BITS = 1024
_NO_LISTS = (bytes, bytearray, memoryview, range, UserString)
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def metric_name(name: object) -> str:
    """A metric's name, as it is. Raises UsageError for what is none."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise UsageError(f"{name!r} is not a metric's name", hint=f"a string of 1 to {MAX_NAME} characters")
    return name


def number(name: str, value: object) -> float:
    """A metric's value as a float: Python and numpy numbers, bools, and one-element arrays and tensors.

    Raises:
        UnsupportedValueError: anything else; the message names the metric.
    """
    if isinstance(value, (str, bytes, bytearray)):
        raise UnsupportedValueError(f"metric {name!r}: {value!r} is a string, not a number", hint="convert it yourself")
    item = getattr(value, "item", None)
    try:
        plain = item() if callable(item) else value
        if isinstance(plain, (SupportsFloat, SupportsIndex)) and not isinstance(plain, str):
            return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UnsupportedValueError(f"metric {name!r}: {type(value).__name__} is not one number ({error})") from error
    raise UnsupportedValueError(f"metric {name!r}: {type(value).__name__} is not a number")


def whole(step: object) -> int | None:
    """A step as an int, or None. Raises UsageError for what is not a whole number of 64 bits."""
    if step is None:
        return None
    item = getattr(step, "item", None)
    try:
        result = operator.index(item() if callable(item) else step)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"step {step!r} is not a whole number") from None
    if not -MAX_STEP <= result <= MAX_STEP:
        raise UsageError(f"step {result} does not fit into 64 bits")
    return result


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
    """A parameter as JSON: scalars and mappings as they are; lists, tuples, sets, arrays and the like as lists.

    One-element arrays are numbers. NaN and infinities become ``{"type": "float", "value": "NaN"}``. Anything else, and
    an array that is large, or what is nested deeper than 50 times, is kept as ``{"type": <class>, "repr": <repr>}``;
    what raises when it is asked for, such as a value that a configuration lacks, as the error. So no parameter is
    refused, none is lost, and none pretends to be a string. Keys become strings; each keeps a name of its own.
    """
    return _Plain().of(value, 0)


def text(value: object) -> str:
    """What a message says, whatever it was given as."""
    return _clean(_told(value, str))


def checked(data: Json, *, levels: int = _MAX_DEPTH + 1) -> Json:
    """What a file says of a parameter, as it is. Raises ValueError when :func:`plain` leaves nothing nested so deep."""
    if isinstance(data, (dict, list)):
        if levels == 0:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        for item in data.values() if isinstance(data, dict) else data:
            checked(item, levels=levels - 1)
    return data


class _Plain:
    """Turns one parameter into JSON; whatever its objects raise does not get out of here."""

    def __init__(self) -> None:
        # How often it may be too deep still: what contains itself twice is so without an end.
        self._too_deep_left = _MAX_TOO_DEEP

    def of(self, value: object, depth: int) -> Json:
        """A value."""
        try:
            return self._of(value, depth)
        except Exception:  # of any kind, as they come from objects of any kind
            return _stand_in(value)

    def _of(self, value: object, depth: int) -> Json:
        if isinstance(value, str):
            return _clean(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and value.bit_length() <= _MAX_BITS:
            return int(value)
        if isinstance(value, float):
            value = float(value)
            return value if math.isfinite(value) else {"type": "float", "value": str(tagged(value))}
        if depth < _MAX_DEPTH and self._too_deep_left > 0:
            return self._of_container(value, depth + 1)
        self._too_deep_left -= 1
        return value if _is_stand_in(value) else _stand_in(value)

    def _of_container(self, value: object, depth: int) -> Json:
        if isinstance(value, Mapping):
            return {name: self._item(value, key, depth) for name, key in _names_of(value)}
        if isinstance(value, (list, tuple)):
            return [self.of(item, depth) for item in value]
        if isinstance(value, Set):
            return _in_order([self.of(item, depth) for item in value])
        if isinstance(value, Sequence) and not isinstance(value, _NO_LISTS) and len(value) <= _MAX_ITEMS:
            return [self._item(value, index, depth) for index in range(len(value))]
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and math.prod(shape) <= _MAX_ITEMS:
            return self.of(value.item() if math.prod(shape) == 1 else value.tolist(), depth)  # type: ignore[attr-defined]
        return _stand_in(value)

    def _item(self, container: Mapping[object, object] | Sequence[object], key: Any, depth: int) -> Json:
        try:
            value = container[key]
        except Exception as error:
            return _stand_in(error)
        return self.of(value, depth)


def _names_of(mapping: Mapping[object, object]) -> list[tuple[str, object]]:
    """Each key, after the name that it is kept under: itself where it is a string, else its text.

    Where that is taken its type follows: ``{"1": a, 1: b}`` has ``1`` and ``1 (int)``.
    """
    keys = list(mapping)
    texts, named = {key for key in keys if isinstance(key, str)}, dict[str, object]()
    for key in keys:
        name = _clean(key if isinstance(key, str) else _told(key, str))
        while name != key and (name in named or name in texts):
            name += f" ({type(key).__name__})"
        named[name] = key
    return list(named.items())


def _in_order(items: list[Json]) -> list[Json]:
    """A set's items, in an order that is the same in every process."""
    try:
        return sorted(items)  # type: ignore[type-var]
    except TypeError:
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def _is_stand_in(value: object) -> TypeGuard[dict[str, Json]]:
    return type(value) is dict and value.keys() == {"type", "repr"} and all(type(one) is str for one in value.values())


def _stand_in(value: object) -> Json:
    is_nested = isinstance(value, (list, tuple, dict, set, frozenset))
    # Python refuses to write very long numbers, but not in hexadecimal.
    tell: Callable[[Any], str] = reprlib.repr if is_nested else hex if isinstance(value, int) else repr
    return {"type": type(value).__qualname__, "repr": _clean(_told(value, tell)[:1000])}


def _told(value: object, tell: Callable[[object], str]) -> str:
    try:
        return tell(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _clean(text: str) -> str:
    # A lone surrogate (from a file name, say) cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


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
