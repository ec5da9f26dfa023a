"""What a torch pickle describes, without executing any of it: a machine of opcodes that makes descriptions only.

Nothing is imported, called or looked up: a global is a name. A handful of names are understood; what any other one
would make is an inert value, whose arguments, attributes and items are looked into for tensors. A pickle is refused
only when it is malformed, or asks for more work than any checkpoint does.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

PICKLE_LIMIT: Final = 32 << 20
"""Largest pickle in bytes that is looked into."""

_BUDGET = 8_000_000
_CONTAINER_COST, _MEMO_COST = 3, 2
_LETTERS = 8
_MAX_DEPTH = 100
_MAX_KEY_BITS = 64
_MAX_MEMO_KEY = (1 << 32) - 1
_LEAVE: Final = -1


class RefusedError(Exception):
    """The pickle is malformed, or too much; the message continues "kept whole: "."""


class EndsEarlyError(RefusedError):
    """The bytes end before the pickle does."""


class _OddError(Exception):
    """Arguments that a known constructor is not understood with; what it makes is an inert value."""


class StorageKind(NamedTuple):
    """What a type of storages holds.

    Attributes:
        dtype: of the tensors in it; None where coral has no such dtype, or the tensors say it themselves.
        element: the dtype that its bytes are best kept as.
        item: bytes of each of the elements that torch counts it in.
    """

    dtype: str | None
    element: str
    item: int


class Storage(NamedTuple):
    """A storage: the name it has of itself, its kind, and its size in bytes.

    The name is a folder and the key that the pickle gives. In files from before archives keys are addresses, new each
    time; there it is the storage's place among all.
    """

    name: str
    kind: StorageKind
    nbytes: int


class Tensor(NamedTuple):
    """A tensor as torch would rebuild it; offset and stride in elements."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Described(NamedTuple):
    """What a pickle describes.

    Attributes:
        tensors: by dotted path, in the pickle's order; a path may come twice.
        storages: by the key that the file has for them, in the pickle's order; also those of no tensor with a path.
        nbytes: how long the pickle is.
    """

    tensors: list[tuple[str, Tensor]]
    storages: dict[str, Storage]
    nbytes: int


class _Object:
    """An inert value: what something unknown would make of these arguments, states and items."""

    __slots__ = ("arguments", "elements", "items", "states")

    def __init__(self, arguments: tuple[object, ...] = ()) -> None:
        self.arguments = arguments
        self.states: list[object] | None = None
        self.items: dict[object, object] | None = None
        self.elements: list[object] | None = None


class _Key(NamedTuple):
    """The key of a dict that is no string, as text: its own hash could be made to collide, or take forever."""

    kind: str
    text: str


class _Nameless(NamedTuple):
    """A key whose text would not be the same in every process; what stands below it has no path."""

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
            raise RefusedError("its pickle is more work than any checkpoint's")

    def spend_text(self, letters: int) -> None:
        """As :meth:`spend`, for a text of so many letters."""
        self.spend(1 + letters // _LETTERS)


class _Global(NamedTuple):
    module: str
    name: str


_MARK: Final = _Object()

_STORAGES: Final = {
    **{
        f"{name}Storage": StorageKind(dtype, dtype, item)
        for name, dtype, item in (
            ("Float", "F32", 4),
            ("Double", "F64", 8),
            ("Half", "F16", 2),
            ("BFloat16", "BF16", 2),
            ("Long", "I64", 8),
            ("Int", "I32", 4),
            ("Short", "I16", 2),
            ("Char", "I8", 1),
            ("Byte", "U8", 1),
            ("Bool", "BOOL", 1),
            ("ComplexFloat", "C64", 8),
        )
    },
    "UntypedStorage": StorageKind(None, "U8", 1),
    "ComplexDoubleStorage": StorageKind(None, "F64", 16),
    "QInt8Storage": StorageKind(None, "I8", 1),
    "QUInt8Storage": StorageKind(None, "U8", 1),
    "QInt32Storage": StorageKind(None, "I32", 4),
    "QUInt4x2Storage": StorageKind(None, "U8", 1),
    "QUInt2x4Storage": StorageKind(None, "U8", 1),
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


def describe(pickle: bytes, folder: str) -> Described:
    """The tensors and storages that a pickle of torch.save describes; what follows the pickle is not looked at.

    Args:
        pickle: bytes that begin with it.
        folder: what the names of its storages begin with.

    Raises:
        RefusedError: the pickle is malformed, or too large. Time and memory are bounded, whatever it is.
    """
    machine, root = _run(pickle, folder)
    return Described(list(_walk(root, machine.budget)), machine.storages, machine.nbytes)


def plain_list(pickle: bytes) -> tuple[list[str], int]:
    """The texts of which a pickle is a list, and how long the pickle is. Raises RefusedError."""
    machine, root = _run(pickle)
    if not isinstance(root, list) or not all(isinstance(item, str) for item in root):
        raise RefusedError("its list of storages is malformed")
    return root, machine.nbytes


def length(pickle: bytes) -> int:
    """How long the pickle is that these bytes begin with. Raises RefusedError."""
    return _run(pickle)[0].nbytes


def _run(pickle: bytes, folder: str = "") -> tuple[_Machine, object]:
    if len(pickle) > PICKLE_LIMIT:
        raise RefusedError(f"its pickle has over {PICKLE_LIMIT >> 20} MiB of values that are no tensors")
    machine = _Machine(_Budget(), folder)
    try:
        return machine, machine.run(pickle)
    except (ValueError, TypeError, LookupError, OverflowError, UnicodeError):
        raise RefusedError("its pickle is damaged") from None


def _walk(root: object, budget: _Budget) -> Iterator[tuple[str, Tensor]]:
    pending: list[tuple[str, int, object]] = [("", 0, root)]
    around: set[int] = set()
    known: set[int] = set()
    while pending:
        path, depth, value = pending.pop()
        if isinstance(value, Tensor):
            budget.spend(len(value.shape))
            yield path or "tensor", value
        elif depth == _LEAVE:
            around.discard(id(value))
        elif depth < _MAX_DEPTH and id(value) not in around:
            # A container that is shared many times over is walked as often, and pays each time. Objects, which refer
            # to one another every way there is, are walked where they come first.
            children = _children(value, budget, again=id(value) in known)
            if not children:
                continue
            if isinstance(value, _Object):
                known.add(id(value))
            around.add(id(value))
            pending.append(("", _LEAVE, value))
            for key, item in reversed(children):
                if not isinstance(key, _Nameless):
                    pending.append((_path(path, depth, key, budget), depth + 1, item))


def _path(path: str, depth: int, key: object, budget: _Budget) -> str:
    name = key.text if isinstance(key, _Key) else str(key)
    budget.spend_text(len(path) + len(name))
    return f"{path}.{name}" if depth else name


_Children = list[tuple[object, object]]


def _children(value: object, budget: _Budget, *, again: bool = False) -> _Children:
    """The items of a container that are, or may hold, tensors; by key or index.

    Args:
        again: an object stood somewhere else before; then it is what a module's ``state_dict`` shows once more.
    """
    if isinstance(value, dict):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, list) or type(value) is tuple:
        items = enumerate(value)
    elif isinstance(value, _Object):
        return _drawn(value, budget) if again else _parts(value, budget)
    else:
        return []
    budget.spend(len(value))
    return [(key, item) for key, item in items if isinstance(item, _HOLDERS)]


_HOLDERS: Final = (dict, list, tuple, _Object)
_DRAWERS: Final = ("_parameters", "_buffers", "_modules")


def _parts(value: _Object, budget: _Budget) -> _Children:
    """As :func:`_children`: arguments and elements by index, attributes and items by name."""
    found = _children(value.arguments, budget)
    for state in value.states or ():
        found += _attributes(state, budget)
    return found + _children(value.items, budget) + _children(value.elements, budget)


def _attributes(state: object, budget: _Budget) -> _Children:
    """What the state of an object says of its attributes; those of a module have the names of its ``state_dict``."""
    if type(state) is tuple and len(state) == 2 and isinstance(state[1], dict) and isinstance(state[0], dict | None):
        # Beside the attributes those that have slots.
        return _attributes(state[0] or {}, budget) + _children(state[1], budget)
    if not isinstance(state, dict):
        return _children(state if isinstance(state, list) or type(state) is tuple else (state,), budget)
    found: _Children = []
    for name, item in _children(state, budget):
        found += _children(item, budget) if name in _DRAWERS and isinstance(item, dict) else [(name, item)]
    return found


def _drawn(value: _Object, budget: _Budget) -> _Children:
    """What is in the drawers of a module; nothing of any other object."""
    states = [state for state in value.states or () if isinstance(state, dict)]
    budget.spend(1 + len(value.states or ()))
    return [child for state in states for name in _DRAWERS for child in _children(state.get(name), budget)]


class _Machine:
    """The opcodes that picklers write, in all protocols, but for those that need something beside the pickle."""

    def __init__(self, budget: _Budget, folder: str) -> None:
        self._folder = folder
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._id_length = 0
        self.storages: dict[str, Storage] = {}
        self.nbytes = 0
        self.budget = budget

    def run(self, pickle: bytes) -> object:
        for opcode, argument, position in _opcodes(pickle):
            name = opcode.name
            self.budget.spend(_COSTS.get(name, 1))
            if name in _LITERALS:
                self._stack.append(argument)
            elif name == "STOP":
                assert position is not None
                self.nbytes = position + 1
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
                raise ValueError("no mark")
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
        self._stack.append(_Object())

    def tuple_of_marked(self, _: object) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def list_of_marked(self, _: object) -> None:
        self._stack.append(self._pop_mark())

    def dict_of_marked(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._update(items)

    def set_of_marked(self, _: object) -> None:
        # The order of a set is another one in each process, so nothing in it has a path.
        self._pop_mark()
        self._stack.append(_Object())

    def pop_marked(self, _: object) -> None:
        self._pop_mark()

    def double(self, _: object) -> None:
        self._stack.append(self._stack[-1])

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
        if isinstance(target, _Object):
            target.elements = target.elements or []
            target.elements += items
        elif isinstance(target, list):
            target += items
        else:
            raise TypeError("append to no list")

    def add_items(self, _: object) -> None:
        self._pop_mark()

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, _Object):
            target.items = into = target.items or {}
        elif isinstance(target, dict):
            into = target
        else:
            raise TypeError("items for no dict")
        _fill(into, zip(items[::2], items[1::2], strict=True), self.budget)

    def put(self, index: object) -> None:
        self._memo[_memo_key(index)] = self._stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: object) -> None:
        self._stack.append(self._memo[_memo_key(index)])

    def pop(self, _: object) -> None:
        self._stack.pop()

    def find_global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(_Global(module, name))

    def find_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global whose name is no text")
        self._stack.append(_Global(module, name))

    def find_extension(self, code: object) -> None:
        self._stack.append(_Global("extension", str(code)))

    def persistent_id(self, _: object) -> None:
        persistent = self._stack.pop()
        try:
            found = self._named_elsewhere(persistent)
        except _OddError:
            found = _Object((persistent,))
        self._stack.append(found)

    def _named_elsewhere(self, persistent: object) -> object:
        """What a persistent id stands for; in archives ("storage", kind, key, place, length)."""
        if type(persistent) is not tuple or not 4 <= len(persistent) <= 6:
            raise _OddError
        what, kind, key = persistent[:3]
        # Before archives: ("module", class, path, source), and one more for a storage, which is no part of another.
        if what == "module" and len(persistent) == 4:
            return kind
        if what != "storage" or len(persistent) == 4 or not isinstance(key, str):
            raise _OddError
        storage = self._storage(key, _storage_kind(kind), persistent)
        if any(persistent[5:]):
            raise _OddError
        return storage

    def _storage(self, key: str, kind: StorageKind, persistent: tuple[object, ...]) -> Storage:
        if self._id_length not in (0, len(persistent)):
            raise RefusedError("its pickle names storages in two ways")
        self._id_length = len(persistent)
        known = self.storages.get(key)
        place = key if self._id_length == 5 else str(len(self.storages))
        name = known.name if known is not None else self._folder + place
        storage = Storage(name, kind, _size(persistent[4]) * kind.item)
        if known is None:
            self.storages[key] = storage
        elif known.nbytes != storage.nbytes:
            raise RefusedError("its pickle gives a storage two lengths")
        # One and the same each time, because pickles say it for each tensor anew.
        return known if known == storage else storage

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise TypeError("a call without arguments")
        self._stack.append(_made(function, arguments, self.budget))

    def new_object(self, _: object) -> None:
        arguments = self._stack.pop()
        self._stack[-1] = _Object((arguments,)) if type(arguments) is not tuple else _Object(arguments)

    def new_object_by_name(self, _: object) -> None:
        names = self._stack.pop()
        self.new_object(None)
        made = self._stack[-1]
        assert isinstance(made, _Object)
        made.states = [names]

    def instance(self, _: object) -> None:
        self._stack.append(_Object(tuple(self._pop_mark())))

    def instance_of_first(self, _: object) -> None:
        _, *arguments = self._pop_mark()
        self._stack.append(_Object(tuple(arguments)))

    def build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Object):
            target.states = target.states or []
            target.states.append(state)
        elif not isinstance(target, dict):
            # A tensor with a state of its own is perhaps another tensor then. A dict stays what it is: that of a
            # module has the versions of the modules as an attribute.
            self._stack[-1] = _Object()

    def ignore(self, _: object) -> None:
        pass


def _opcodes(pickle: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    """As pickletools has them. Raises EndsEarlyError where there are no more bytes, ValueError where they are odd."""
    stream = io.BytesIO(pickle)
    try:
        yield from pickletools.genops(stream)
    except ValueError:
        if stream.tell() < len(pickle):
            raise
        raise EndsEarlyError("its pickle is damaged, or cut short") from None


def _refuse_opcode(machine: _Machine, argument: object) -> NoReturn:
    raise RefusedError("its pickle needs something that is not in the file")


_LITERALS: Final = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("INT", "LONG", "FLOAT", "STRING", "UNICODE"),
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
    "LIST": _Machine.list_of_marked,
    "DICT": _Machine.dict_of_marked,
    "POP_MARK": _Machine.pop_marked,
    "DUP": _Machine.double,
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
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "BINPERSID": _Machine.persistent_id,
    "EXT1": _Machine.find_extension,
    "EXT2": _Machine.find_extension,
    "EXT4": _Machine.find_extension,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_by_name,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_of_first,
    "BUILD": _Machine.build,
}

_COSTS: Final = {
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "FROZENSET", "DICT", "LIST"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"), 1 + _CONTAINER_COST),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 1 + _MEMO_COST),
}


def _made(function: object, arguments: tuple[object, ...], budget: _Budget) -> object:
    """What a call makes: a description where it is understood, else an inert value."""
    constructor = _CONSTRUCTORS.get(function) if isinstance(function, _Global) else None
    if constructor is not None:
        try:
            return constructor(arguments, budget)
        except _OddError:
            pass
    return _Object(arguments)


def _fill(target: dict[object, object], pairs: Iterable[tuple[object, object]], budget: _Budget) -> None:
    for key, value in pairs:
        target[_key(key, len(target), budget)] = value


def _key(key: object, number: int, budget: _Budget) -> object:
    """What a key is kept as: text is itself, any other plain value and flat tuple its kind and text."""
    if isinstance(key, str):
        return key
    flat = key if type(key) is tuple else (key,)
    budget.spend(_CONTAINER_COST + len(flat))
    for item in flat:
        if isinstance(item, str | bytes):
            budget.spend_text(len(item))
        elif not isinstance(item, int | float | None) or (isinstance(item, int) and item.bit_length() > _MAX_KEY_BITS):
            return _Nameless(number)
    return _Key(type(key).__name__, str(key))


def _memo_key(index: object) -> int:
    """The place in the memo that an opcode names; written as text it could be of those whose hashes are all one."""
    if not isinstance(index, int) or not 0 <= index <= _MAX_MEMO_KEY:
        raise ValueError("a place in the memo that no pickler gives")
    return index


def _storage_kind(kind: object) -> StorageKind:
    if not isinstance(kind, _Global) or kind.module not in _TORCH or kind.name not in _STORAGES:
        raise _OddError
    return _STORAGES[kind.name]


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _OddError
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64:
        raise _OddError
    return tuple(map(_size, value))


def _tensor(storage: object, offset: object, layout: tuple[object, object], dtype: str | None) -> Tensor:
    if not isinstance(storage, Storage):
        raise _OddError
    dtype = dtype or storage.kind.dtype
    sizes, steps = map(_sizes, layout)
    if dtype is None or len(sizes) != len(steps):
        raise _OddError
    return Tensor(storage, dtype, sizes, steps, _size(offset))


def _rebuild_v2(arguments: tuple[object, ...], _: _Budget) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks[, metadata]); metadata says conjugate and negative views,
    # whose elements are not the bytes that stand there.
    if not 4 <= len(arguments) <= 7 or any(arguments[6:]):
        raise _OddError
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), None)


def _rebuild_v3(arguments: tuple[object, ...], _: _Budget) -> Tensor:
    # (storage, offset, shape, stride, requires_grad, hooks, dtype[, metadata])
    if not 7 <= len(arguments) <= 8 or any(arguments[7:]):
        raise _OddError
    dtype = arguments[6]
    if not isinstance(dtype, _Global) or dtype.module not in _TORCH or dtype.name not in _DTYPES:
        raise _OddError
    storage, offset, shape, stride = arguments[:4]
    return _tensor(storage, offset, (shape, stride), _DTYPES[dtype.name])


def _rebuild_typed(arguments: tuple[object, ...], budget: _Budget) -> Tensor:
    # (function, type, arguments, state): a tensor of a class of its own, or with attributes.
    if len(arguments) != 4:
        raise _OddError
    function, _, inner, _ = arguments
    if not isinstance(function, _Global) or function not in _REBUILDERS or type(inner) is not tuple:
        raise _OddError
    return _REBUILDERS[function](inner, budget)


def _first(arguments: tuple[object, ...], _: _Budget) -> object:
    # (tensor, requires_grad, hooks[, state]), and (value, type).
    if not arguments:
        raise _OddError
    return arguments[0]


def _dict(arguments: tuple[object, ...], budget: _Budget) -> dict[object, object]:
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, dict | list):
        raise _OddError
    budget.spend(len(pairs) * _CONTAINER_COST)
    if isinstance(pairs, dict):
        return dict(pairs)
    result: dict[object, object] = {}
    _fill(result, map(_pair, pairs), budget)
    return result


def _pair(value: object) -> tuple[object, object]:
    if not (isinstance(value, list) or type(value) is tuple) or len(value) != 2:
        raise _OddError
    return value[0], value[1]


def _default_dict(arguments: tuple[object, ...], _: _Budget) -> dict[object, object]:
    return {}


def _set(arguments: tuple[object, ...], _: _Budget) -> _Object:
    return _Object()


_TORCH: Final = ("torch", "torch.storage")
_REBUILDERS: Final[dict[_Global, Callable[[tuple[object, ...], _Budget], Tensor]]] = {
    _Global("torch._utils", "_rebuild_tensor"): _rebuild_v2,
    _Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    _Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
}
_CONSTRUCTORS: Final[dict[_Global, Callable[[tuple[object, ...], _Budget], object]]] = {
    **_REBUILDERS,
    _Global("torch._utils", "_rebuild_parameter"): _first,
    _Global("torch._utils", "_rebuild_parameter_with_state"): _first,
    _Global("torch._tensor", "_rebuild_from_type"): _rebuild_typed,
    _Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_typed,
    _Global("torch.jit._pickle", "restore_type_tag"): _first,
    _Global("collections", "OrderedDict"): _dict,
    _Global("collections", "Counter"): _dict,
    _Global("collections", "defaultdict"): _default_dict,
    **{_Global(module, name): _set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
}
