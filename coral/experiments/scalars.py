"""What users log and set, turned into plain Python values without importing the library it came from."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import SupportsFloat, SupportsIndex

from coral.errors import UnsupportedValueError, UsageError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value as the files keep it; NaN and infinities are the strings of :data:`SPECIAL` under :func:`tagged`."""

MAX_STEP = 2**63 - 1
LAST_MS = 253_402_300_799_000
"""The end of the year 9999, in milliseconds since 1970; the first time is 0."""
MAX_NAME = 1000
_MAX_DEPTH = 50
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


def plain(value: object, *, depth: int = 0) -> Json:
    """A parameter as JSON: scalars, lists and dicts as they are, one-element arrays as numbers.

    NaN and infinities become ``{"type": "float", "value": "NaN"}``; anything else is kept as
    ``{"type": <its class>, "repr": <its repr>}``, so that no parameter is refused and none pretends to be a string.
    """
    if value is None or isinstance(value, (bool, str)):
        return _clean(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else {"type": "float", "value": str(tagged(value))}
    if depth >= _MAX_DEPTH:
        raise UsageError(f"a parameter is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_clean(str(key)): plain(item, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth=depth + 1) for item in value]
    return _foreign(value, depth)


def _foreign(value: object, depth: int) -> Json:
    if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0:
        item = getattr(value, "item", None)
        if callable(item):
            single = item()
            if isinstance(single, (bool, int, float, str)):
                return plain(single, depth=depth + 1)
    return {"type": type(value).__qualname__, "repr": _clean(repr(value)[:1000])}


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
