"""Small modules of every odd kind, made from a description, so that two of them can be alike or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

Shape = tuple[int, ...]


class Leaf(nn.Module):
    """A weight, and what a description adds to it."""

    def __init__(self, shape: Shape, traits: frozenset[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        for trait in sorted(traits):
            TRAITS[trait](self)


def _view(leaf: Any) -> None:
    """A table, and a buffer that is its head."""
    leaf.register_buffer("table", torch.randn(10))
    leaf.register_buffer("head", leaf.table[:3])


def _tail_first(leaf: Any) -> None:
    """A view that comes before what it is a view of, and reaches beyond its start."""
    whole = torch.randn(8)
    leaf.register_buffer("a_tail", whole[2:6])
    leaf.register_buffer("b_whole", whole)


def _turned(leaf: Any) -> None:
    """A transposed view of a square buffer."""
    leaf.register_buffer("square", torch.randn(3, 3))
    leaf.register_buffer("turned", leaf.square.t())


def _bits(leaf: Any) -> None:
    """The same memory as numbers and as integers."""
    leaf.register_buffer("numbers", torch.randn(4))
    leaf.register_buffer("words", leaf.numbers.view(torch.int32))


def _halves(leaf: Any) -> None:
    """One memory under two names of which one sees only its half."""
    leaf.register_buffer("low", torch.randn(4))
    leaf.register_buffer("as_half", leaf.low.view(torch.float16)[:4])


def _tied(leaf: Any) -> None:
    leaf.again = leaf.weight


def _reshaped(leaf: Any) -> None:
    leaf.register_buffer("flat", leaf.weight.detach().reshape(-1))


def _strided(leaf: Any) -> None:
    leaf.every_other = nn.Parameter(torch.randn(6)[::2])


def _passing(leaf: Any) -> None:
    leaf.register_buffer("scratch", torch.randn(2), persistent=False)


def _counted(leaf: Any) -> None:
    leaf.norm = nn.BatchNorm1d(2)


def _parametrized(leaf: Any) -> None:
    leaf.inner = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def _cached(leaf: Any) -> None:
    """A transposed copy of the weight, made anew when the weight is loaded."""

    def refresh(module: Any, _: object) -> None:
        module.cache = module.weight.detach().clone().reshape(-1)

    refresh(leaf, None)
    leaf.register_load_state_dict_post_hook(refresh)


def _forgiving(leaf: Any) -> None:
    """A hook that says that nothing is missing."""
    leaf.register_load_state_dict_post_hook(lambda _, keys: keys.missing_keys.clear())


def _renaming(leaf: Any) -> None:
    """Loads what is named as it once was."""

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        if f"{prefix}old" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old")

    leaf.register_load_state_dict_pre_hook(rename)


def _once(leaf: Any) -> None:
    """Saves its weight under the name it once had."""

    def rename(_: nn.Module, state: dict[str, Any], prefix: str, __: object) -> None:
        state[f"{prefix}old"] = state.pop(f"{prefix}weight")

    leaf.register_state_dict_post_hook(rename)
    _renaming(leaf)


def _with_class(method: str) -> Callable[[Any], None]:
    def apply(leaf: Any) -> None:
        leaf.__class__ = type(method, (globals()[method], *leaf.__class__.__mro__[:-1]), {})

    return apply


class Scaled:
    """Saves a scale beside its weight, and loads it."""

    scale = 1.5

    def _save_to_state_dict(self, state: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(state, prefix, keep_vars)  # type: ignore[misc]
        state[f"{prefix}weight.scale"] = torch.tensor([self.weight.abs().max()])  # type: ignore[attr-defined]

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        found = state.pop(f"{prefix}weight.scale", None)
        if found is not None:
            self.scale = float(found)
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[misc]


class Growing:
    """Takes a buffer of any length."""

    grown: torch.Tensor

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}grown" in state:
            self.grown = torch.empty_like(state[f"{prefix}grown"])
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[misc]


class Noted:
    """Extra state of any length."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.arange(float(1 + int(self.weight.abs().sum()) % 7))  # type: ignore[attr-defined]

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.extra = state


class Spoken:
    """Extra state that is no tensor."""

    def get_extra_state(self) -> object:
        return {"sum": float(self.weight.sum()), "kind": ("a", 1)}  # type: ignore[attr-defined]

    def set_extra_state(self, state: object) -> None:
        self.extra = state


class Versioned:
    """Looks at the version that its weights were saved by."""

    _version = 3

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        self.loaded = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)  # type: ignore[misc]


class Refusing:
    """Refuses, once its weight was overwritten."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[misc]
        self.was_here = True
        rest[-1].append("not with me")


def _grown(leaf: Any) -> None:
    leaf.register_buffer("grown", torch.randn(int(torch.randint(1, 6, ()))))
    _with_class("Growing")(leaf)


TRAITS: dict[str, Callable[[Any], None]] = {
    "view": _view,
    "tail first": _tail_first,
    "turned": _turned,
    "bits": _bits,
    "halves": _halves,
    "tied": _tied,
    "reshaped": _reshaped,
    "strided": _strided,
    "passing": _passing,
    "counted": _counted,
    "parametrized": _parametrized,
    "cached": _cached,
    "forgiving": _forgiving,
    "renaming": _renaming,
    "once": _once,
    "scaled": _with_class("Scaled"),
    "grown": _grown,
    "noted": _with_class("Noted"),
    "spoken": _with_class("Spoken"),
    "versioned": _with_class("Versioned"),
    "refusing": _with_class("Refusing"),
}
WRAPS: dict[str, Callable[[Any], Any]] = {
    "sequence": lambda inner: nn.Sequential(inner),
    "parallel": lambda inner: nn.DataParallel(inner),
    "compiled": lambda inner: torch.compile(inner),
    "module": lambda inner: nn.ModuleDict({"module": inner}),
}
ODD_ALONE = {"refusing", "forgiving"}

Description = tuple[tuple[str, Shape, frozenset[str]], ...]
"""Of each leaf: what it is wrapped in, its shape, and its traits."""


def build(description: Description, seed: int) -> Any:
    """The module that a description stands for; what is in it depends on the seed."""
    torch.manual_seed(seed)
    model = nn.Module()
    for number, (wrap, shape, traits) in enumerate(description):
        model.add_module(f"leaf{number}", WRAPS[wrap](Leaf(shape, traits)))
    return model


leaves = st.tuples(
    st.sampled_from(sorted(WRAPS)),
    st.sampled_from([(2, 3), (4,), (3, 2)]),
    st.frozensets(st.sampled_from(sorted(TRAITS.keys() - ODD_ALONE)), max_size=4),
)
descriptions = st.lists(leaves, min_size=1, max_size=3).map(tuple)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Description, Description]:
    """Two descriptions: alike, or with one leaf of the second another one, or gone, or odd."""
    first = draw(descriptions)
    place = draw(st.integers(0, len(first) - 1))
    wrap, shape, traits = first[place]
    kept = first[:place], first[place + 1 :]
    second = draw(
        st.sampled_from(
            [
                first,
                first,
                (*kept[0], *kept[1]),
                (*kept[0], (wrap, (5,), traits), *kept[1]),
                (*kept[0], (wrap, shape, traits | {"view"}), *kept[1]),
                (*kept[0], (wrap, shape, traits | {"refusing"}), *kept[1]),
                (*kept[0], (wrap, shape, traits | {"forgiving", "view"}), *kept[1]),
                (*kept[0], (wrap, shape, frozenset()), *kept[1]),
            ]
        )
    )
    return first, second


def contents(model: Any) -> dict[str, object]:
    """All that a module and those inside it hold, each tensor by its bytes."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for name, value in table.items():
                if isinstance(value, torch.Tensor):
                    found[f"{path}.{name}"] = (value.shape, value.stride(), value.detach().clone().numpy().tobytes())
                elif isinstance(value, int | float | str | dict) and not name.startswith("_"):
                    found[f"{path}.{name}"] = repr(value)
    return found
