"""What a torch pickle describes, without executing any of it: a machine of opcodes that makes descriptions only.

Nothing is imported, called or looked up: a global is a name, and a handful of names are understood. Whatever else a
pickle holds makes it refused, and the file is then kept whole.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

from coral.format.dtypes import item_bytes

PICKLE_LIMIT: Final = 32 << 20
"""Largest pickle in bytes that is looked into."""

_BUDGET = 8_000_000
_CONTAINER_COST, _MEMO_COST = 3, 2
_LETTERS = 8
_MAX_DEPTH = 100
_MAX_KEY_BITS = 64


class RefusedError(Exception):
    """The pickle holds something that is not understood."""


class Storage(NamedTuple):
    """A storage: its key in the archive, its dtype (None: bytes of any), and its size in bytes."""

    key: str
    dtype: str | None
    nbytes: int


class Tensor(NamedTuple):
    """A tensor as torch would rebuild it; offset and stride in elements."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Inert:
    """A value that is no tensor and holds none."""


class _Key(NamedTuple):
    """The key of a dict that is no string, as text: its own hash could be made to collide, or take forever."""

    kind: str
    text: str


class _Nameless(NamedTuple):
    """A key whose text would not be the same in every process; no tensor may stand below it."""

    number: int


class _Budget:
    """The work that one pickle may cause in all: about a small object made, or looked at, for each unit of it.

    Ten bytes of a pickle can ask for a million objects to be walked or copied, and then do so again.
    """

    def __init__(self) -> None:
        self._left = _BUDGET

    def spend(self, units: int) -> None:
        """Raise RefusedError when more was spent than there was."""
        self._left -= units
        if self._left < 0:
            raise RefusedError("too much work")

    def spend_text(self, letters: int) -> None:
        """As :meth:`spend`, for a text of so many letters."""
        self.spend(1 + letters // _LETTERS)


class _Global(NamedTuple):
    module: str
    name: str


_MARK: Final = _Inert()

_STORAGES: Final[dict[str, str | None]] = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": None,
}
_DTYPES: Final = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}


def find_tensors(pickle: bytes) -> list[tuple[str, Tensor]]:
    """The tensors that a pickle of torch.save describes, by dotted path, in the pickle's order.

    Time and memory are bounded, whatever the pickle is.

    Raises:
        RefusedError: the pickle is malformed, too large, or holds something else than data.
    """
    if len(pickle) > PICKLE_LIMIT:
        raise RefusedError("too large")
    budget = _Budget()
    try:
        return list(_walk(_Machine(budget).run(pickle), budget))
    except (ValueError, TypeError, LookupError, OverflowError, UnicodeError) as error:
        raise RefusedError(str(error)) from None


def _walk(root: object, budget: _Budget) -> Iterator[tuple[str, Tensor]]:
    pending: list[tuple[str | None, int, object]] = [("", 0, root)]
    while pending:
        path, depth, value = pending.pop()
        if isinstance(value, Storage):
            raise RefusedError("a storage outside of a tensor")
        if isinstance(value, Tensor):
            if path is None:
                raise RefusedError("a tensor in a place without a name")
            budget.spend(len(value.shape))
            yield path or "tensor", value
            continue
        children = _children(value, budget)
        if children and depth >= _MAX_DEPTH:
            raise RefusedError("nested too deep")
        # A container that is shared many times over is walked as often, and pays each time.
        pending += [(_path(path, depth, key, budget), depth + 1, item) for key, item in reversed(children)]


def _path(path: str | None, depth: int, key: object, budget: _Budget) -> str | None:
    """The path of an item; None below a key that has no name."""
    if path is None or isinstance(key, _Nameless):
        return None
    name = key.text if isinstance(key, _Key) else str(key)
    budget.spend_text(len(path) + len(name))
    return f"{path}.{name}" if depth else name


def _children(value: object, budget: _Budget) -> list[tuple[object, object]]:
    """The items of a container that are, or may hold, tensors; by key or index."""
    if isinstance(value, dict):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, list) or type(value) is tuple:
        items = enumerate(value)
    else:
        return []
    budget.spend(len(value))
    return [(key, item) for key, item in items if isinstance(item, dict | list | tuple)]


class _Machine:
    """Just the opcodes that torch.save and Python's own pickler write in protocols 2 to 5."""

    def __init__(self, budget: _Budget) -> None:
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self.budget = budget

    def run(self, pickle: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
            self.budget.spend(_COSTS.get(name, 1))
            if name in _LITERALS:
                self._stack.append(argument)
            elif name == "STOP":
                break
            else:
                _OPCODES.get(name, _refuse_opcode)(self, argument)
        (result,) = self._stack
        return result

    def _pop_mark(self) -> list[object]:
        stack = self._stack
        index = len(stack) - 1
        while stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise RefusedError("no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def push_mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def push_none(self, _: object) -> None:
        self._stack.append(None)

    def push_true(self, _: object) -> None:
        self._stack.append(True)

    def push_false(self, _: object) -> None:
        self._stack.append(False)

    def push_dict(self, _: object) -> None:
        self._stack.append({})

    def push_list(self, _: object) -> None:
        self._stack.append([])

    def push_tuple(self, _: object) -> None:
        self._stack.append(())

    def push_set(self, _: object) -> None:
        self._stack.append(_Inert())

    def tuple_of_marked(self, _: object) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def set_of_marked(self, _: object) -> None:
        _no_tensors(self._pop_mark(), self.budget)
        self._stack.append(_Inert())

    def tuple1(self, _: object) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def tuple2(self, _: object) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def tuple3(self, _: object) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def appends(self, _: object) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise RefusedError("append to no list")
        target.extend(items)

    def add_items(self, _: object) -> None:
        _no_tensors(self._pop_mark(), self.budget)

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise RefusedError("items for no dict")
        _fill(target, zip(items[::2], items[1::2], strict=True), self.budget)

    def put(self, index: object) -> None:
        assert isinstance(index, int)
        self._memo[index] = self._stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: object) -> None:
        assert isinstance(index, int)
        self._stack.append(self._memo[index])

    def pop(self, _: object) -> None:
        self._stack.pop()

    def find_global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(_allowed(module, name))

    def find_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("a global whose name is no text")
        self._stack.append(_allowed(module, name))

    def persistent_id(self, _: object) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise RefusedError("a call of something that is no known constructor")
        self._stack.append(_CONSTRUCTORS[function](arguments, self.budget))

    def build(self, _: object) -> None:
        # Attributes of an OrderedDict, or a numpy array's data; neither is a tensor's own.
        state = self._stack.pop()
        _no_tensors([state], self.budget)
        if not isinstance(self._stack[-1], dict | _Inert):
            raise RefusedError("a state for something that has none")

    def ignore(self, _: object) -> None:
        pass


def _refuse_opcode(machine: _Machine, argument: object) -> NoReturn:
    raise RefusedError("an opcode that torch.save does not write")


_LITERALS: Final = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_OPCODES: Final[dict[str, Callable[[_Machine, object], None]]] = {
    "PROTO": _Machine.ignore,
    "FRAME": _Machine.ignore,
    "MARK": _Machine.push_mark,
    "POP": _Machine.pop,
    "NONE": _Machine.push_none,
    "NEWTRUE": _Machine.push_true,
    "NEWFALSE": _Machine.push_false,
    "EMPTY_DICT": _Machine.push_dict,
    "EMPTY_LIST": _Machine.push_list,
    "EMPTY_TUPLE": _Machine.push_tuple,
    "EMPTY_SET": _Machine.push_set,
    "TUPLE": _Machine.tuple_of_marked,
    "FROZENSET": _Machine.set_of_marked,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "BINPERSID": _Machine.persistent_id,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}

_COSTS: Final = {
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "FROZENSET", "REDUCE"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), 1 + _MEMO_COST),
}


def _allowed(module: str, name: str) -> _Global:
    found = _Global(module, name)
    is_torch_name = module in ("torch", "torch.storage") and (name in _STORAGES or name in _DTYPES)
    if not is_torch_name and found not in _CONSTRUCTORS and found not in _NAMES_ONLY:
        raise RefusedError(f"{module}.{name}")
    return found


def _fill(target: dict[object, object], pairs: Iterable[tuple[object, object]], budget: _Budget) -> None:
    for key, value in pairs:
        known = _key(key, len(target), budget)
        if known in target:
            raise RefusedError("a key stands twice")
        target[known] = value


def _key(key: object, number: int, budget: _Budget) -> object:
    """What a key is kept as: text is itself, any other plain value and flat tuple its kind and text."""
    if isinstance(key, str):
        return key
    flat = key if type(key) is tuple else (key,)
    budget.spend(_CONTAINER_COST + len(flat))
    for item in flat:
        if isinstance(item, str | bytes):
            budget.spend_text(len(item))
        elif isinstance(item, int) and item.bit_length() > _MAX_KEY_BITS:
            raise RefusedError("a key that is a huge number")
        elif not isinstance(item, int | float | _Inert | None):
            raise RefusedError("a key that is no plain value")
    if any(isinstance(item, _Inert) for item in flat):
        return _Nameless(number)
    return _Key(type(key).__name__, str(key))


def _no_tensors(values: list[object], budget: _Budget) -> None:
    """Refuse tensors where they would have no path."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor | Storage):
            raise RefusedError("a tensor in a place without a name")
        budget.spend(1)
        pending.extend(item for _, item in _children(value, budget))


def _storage(persistent: object) -> Storage:
    if type(persistent) is not tuple or len(persistent) != 5 or persistent[0] != "storage":
        raise RefusedError("a persistent id that is no storage")
    _, kind, key, _, length = persistent
    if not isinstance(kind, _Global) or not isinstance(key, str) or kind.name not in _STORAGES:
        raise RefusedError("a malformed storage")
    dtype = _STORAGES[kind.name]
    return Storage(key, dtype, _size(length) * (1 if dtype is None else item_bytes(dtype)))


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise RefusedError("a size that is none")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64:
        raise RefusedError("a shape that is none")
    return tuple(map(_size, value))


def _tensor(storage: object, offset: object, layout: tuple[object, object], dtype: str | None) -> Tensor:
    if not isinstance(storage, Storage):
        raise RefusedError("a tensor without a storage")
    dtype = dtype or storage.dtype
    sizes, steps = map(_sizes, layout)
    if dtype is None or len(sizes) != len(steps):
        raise RefusedError("a tensor without a dtype")
    return Tensor(storage, dtype, sizes, steps, _size(offset))


def _rebuild_v2(arguments: tuple[object, ...], _: _Budget) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks[, metadata]); metadata says conjugate and negative views.
    if not 4 <= len(arguments) <= 7 or any(arguments[6:]):
        raise RefusedError("a conjugate or negative view")
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), None)


def _rebuild_v3(arguments: tuple[object, ...], _: _Budget) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks, dtype[, metadata])
    if not 7 <= len(arguments) <= 8 or any(arguments[7:]):
        raise RefusedError("a conjugate or negative view")
    dtype = arguments[6]
    if not isinstance(dtype, _Global) or dtype.name not in _DTYPES:
        raise RefusedError("a tensor without a dtype")
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), _DTYPES[dtype.name])


def _rebuild_parameter(arguments: tuple[object, ...], _: _Budget) -> Tensor:
    # (tensor, requires_grad, hooks[, state])
    if not 3 <= len(arguments) <= 4 or not isinstance(arguments[0], Tensor) or any(arguments[3:]):
        raise RefusedError("a malformed parameter")
    return arguments[0]


def _dict(arguments: tuple[object, ...], budget: _Budget) -> dict[object, object]:
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, dict | list):
        raise RefusedError("a malformed mapping")
    budget.spend(len(pairs) * _CONTAINER_COST)
    if isinstance(pairs, dict):
        return dict(pairs)
    result: dict[object, object] = {}
    _fill(result, ((key, value) for key, value in pairs), budget)
    return result


def _default_dict(arguments: tuple[object, ...], _: _Budget) -> dict[object, object]:
    return {}


def _inert(arguments: tuple[object, ...], budget: _Budget) -> _Inert:
    _no_tensors(list(arguments), budget)
    return _Inert()


_CONSTRUCTORS: Final[dict[_Global, Callable[[tuple[object, ...], _Budget], object]]] = {
    _Global("torch._utils", "_rebuild_tensor"): _rebuild_v2,
    _Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    _Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    _Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    _Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    _Global("collections", "OrderedDict"): _dict,
    _Global("collections", "Counter"): _dict,
    _Global("collections", "defaultdict"): _default_dict,
    _Global("torch", "Size"): _inert,
    _Global("torch", "device"): _inert,
    _Global("_codecs", "encode"): _inert,
    _Global("builtins", "set"): _inert,
    _Global("builtins", "frozenset"): _inert,
    _Global("builtins", "complex"): _inert,
    _Global("__builtin__", "set"): _inert,
    _Global("__builtin__", "frozenset"): _inert,
    _Global("__builtin__", "complex"): _inert,
    _Global("numpy", "dtype"): _inert,
    _Global("numpy.core.multiarray", "scalar"): _inert,
    _Global("numpy._core.multiarray", "scalar"): _inert,
    _Global("numpy.core.multiarray", "_reconstruct"): _inert,
    _Global("numpy._core.multiarray", "_reconstruct"): _inert,
}
_NAMES_ONLY: Final = frozenset(
    _Global(module, name)
    for module, names in {
        "numpy": ("ndarray",),
        "builtins": ("list", "dict", "int", "float"),
        "__builtin__": ("list", "dict", "int", "float"),
    }.items()
    for name in names
)
