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

_MAX_DEPTH = 100
_MAX_VALUES = 500_000


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


def find_tensors(pickle: bytes) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a pickle of torch.save describes, by dotted path, in the pickle's order.

    Raises:
        RefusedError: the pickle is malformed, too large, or holds something else than data.
    """
    if len(pickle) > PICKLE_LIMIT:
        raise RefusedError("too large")
    try:
        root = _Machine().run(pickle)
    except (ValueError, TypeError, LookupError, OverflowError, UnicodeError) as error:
        raise RefusedError(str(error)) from None
    return _walk(root)


def _walk(root: object) -> Iterator[tuple[str, Tensor]]:
    pending: list[tuple[tuple[str, ...], object]] = [((), root)]
    for _ in range(_MAX_VALUES):
        if not pending:
            return
        path, value = pending.pop()
        if isinstance(value, Tensor):
            yield ".".join(path) or "tensor", value
            continue
        if isinstance(value, Storage):
            raise RefusedError("a storage outside of a tensor")
        children = [((*path, str(key)), item) for key, item in _children(value)]
        # A container that is shared many times over is walked as often, so both directions have a bound.
        if children and (len(path) >= _MAX_DEPTH or len(pending) + len(children) > _MAX_VALUES):
            raise RefusedError("nested too deep")
        pending.extend(reversed(children))
    raise RefusedError("too many values")


def _children(value: object) -> list[tuple[object, object]]:
    """The items of a container that are, or may hold, tensors; by key or index."""
    if isinstance(value, dict):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, list) or type(value) is tuple:
        items = enumerate(value)
    else:
        return []
    return [(key, item) for key, item in items if isinstance(item, dict | list | tuple)]


class _Machine:
    """Just the opcodes that torch.save and Python's own pickler write in protocols 2 to 5."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self, pickle: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
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
        _no_tensors(self._pop_mark())
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
        _no_tensors(self._pop_mark())

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise RefusedError("items for no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

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
        self._stack.append(_allowed(str(module), str(name)))

    def persistent_id(self, _: object) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise RefusedError("a call of something that is no known constructor")
        self._stack.append(_CONSTRUCTORS[function](arguments))

    def build(self, _: object) -> None:
        # Attributes of an OrderedDict, or a numpy array's data; neither is a tensor's own.
        state = self._stack.pop()
        _no_tensors([state])
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


def _allowed(module: str, name: str) -> _Global:
    found = _Global(module, name)
    is_torch_name = module in ("torch", "torch.storage") and (name in _STORAGES or name in _DTYPES)
    if not is_torch_name and found not in _CONSTRUCTORS and found not in _NAMES_ONLY:
        raise RefusedError(f"{module}.{name}")
    return found


def _key(key: object) -> object:
    # Only flat keys: the hash of a tuple nested a million deep overflows the interpreter's own stack.
    flat = key if type(key) is tuple else (key,)
    if not all(isinstance(item, str | int | float | bytes | _Inert | None) for item in flat):
        raise RefusedError("a key that is no plain value")
    return key


def _no_tensors(values: list[object]) -> None:
    """Refuse tensors where they would have no path."""
    pending = list(values)
    for _ in range(_MAX_VALUES):
        if not pending:
            return
        value = pending.pop()
        if isinstance(value, Tensor | Storage):
            raise RefusedError("a tensor in a place without a name")
        pending.extend(item for _, item in _children(value))
        if len(pending) > _MAX_VALUES:
            break
    raise RefusedError("too many values")


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


def _rebuild_v2(arguments: tuple[object, ...]) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks[, metadata]); metadata says conjugate and negative views.
    if not 4 <= len(arguments) <= 7 or any(arguments[6:]):
        raise RefusedError("a conjugate or negative view")
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), None)


def _rebuild_v3(arguments: tuple[object, ...]) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks, dtype[, metadata])
    if not 7 <= len(arguments) <= 8 or any(arguments[7:]):
        raise RefusedError("a conjugate or negative view")
    dtype = arguments[6]
    if not isinstance(dtype, _Global) or dtype.name not in _DTYPES:
        raise RefusedError("a tensor without a dtype")
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), _DTYPES[dtype.name])


def _rebuild_parameter(arguments: tuple[object, ...]) -> Tensor:
    # (tensor, requires_grad, hooks[, state])
    if not 3 <= len(arguments) <= 4 or not isinstance(arguments[0], Tensor) or any(arguments[3:]):
        raise RefusedError("a malformed parameter")
    return arguments[0]


def _dict(arguments: tuple[object, ...]) -> dict[object, object]:
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, list):
        raise RefusedError("a malformed mapping")
    result = {}
    for key, value in pairs:
        result[_key(key)] = value
    return result


def _default_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    return {}


def _inert(arguments: tuple[object, ...]) -> _Inert:
    _no_tensors(list(arguments))
    return _Inert()


_CONSTRUCTORS: Final[dict[_Global, Callable[[tuple[object, ...]], object]]] = {
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
