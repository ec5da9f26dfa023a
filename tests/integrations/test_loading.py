"""Loading leaves in a module what its own ``load_state_dict`` would have left in it, or raises and leaves it alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import nn
from torch.nn.utils import prune

from coral.errors import UnsupportedValueError, UsageError
from coral.format.dtypes import byte_count
from coral.integrations.torch.loading import ReadMany, plan_loading
from coral.integrations.torch.modules import take_apart
from coral.integrations.torch.tensors import source
from tests.integrations.modules import TRAITS, WRAPS, Description, Leaf, build, pairs

_INSIDE = {"compiled": "_orig_mod", "parallel": "module"}


class Facts:
    """What is known of a stored tensor before it is read."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        found = source(name, tensor)
        self.dtype, self.shape = found.dtype, found.shape
        self.data = bytes(found.read(0, byte_count(found.dtype, found.shape)))


def reader(stored: dict[str, Facts]) -> ReadMany:
    """Reads what was stored."""

    def read_many(wanted: Any) -> None:
        # Last first: only what may be filled in any order is asked for at once.
        for name, data in reversed(list(wanted)):
            data[:] = stored[name].data

    return read_many


def load(saved: Any, target: Any, *, strict: bool = True) -> None:
    """Save one module's state and load it into another."""
    tensors, rest = take_apart(saved)
    stored = {name: Facts(name, tensor) for name, tensor in tensors.items()}
    plan_loading(target, stored, strict=strict, rest=rest).fill(reader(stored))


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


def identities(model: Any) -> list[tuple[str, int, int]]:
    """Which objects the module's tensors are, and where they lie."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return [(name, id(tensor), tensor.data_ptr()) for name, tensor in tensors]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(pairs())
@example(((("sequence", (4,), frozenset({"view"})),),) * 2)
@example(((("module", (4,), frozenset({"once", "tied"})),),) * 2)
def test_loading_does_what_load_state_dict_does(pair: tuple[Description, Description]) -> None:
    """Whatever hooks, views, ties and buffers a module has: the same bytes, or an error where torch raises."""
    saved, theirs, ours = build(pair[0], 1), build(pair[1], 2), build(pair[1], 2)
    before = contents(ours), identities(ours)
    try:
        theirs.load_state_dict(saved.state_dict())
    except RuntimeError:
        with pytest.raises(UsageError, match="fit the model"):
            load(saved, ours)
        assert (contents(ours), identities(ours)) == before
        return
    load(saved, ours)
    assert contents(ours) == contents(theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trait", sorted(TRAITS.keys() - {"refusing"}))
def test_every_trait_is_loaded(trait: str) -> None:
    """Each kind of module by itself, so that a failure names it."""
    description: Description = (("sequence", (2, 3), frozenset({trait})),)
    saved, theirs, ours = build(description, 1), build(description, 2), build(description, 2)
    theirs.load_state_dict(saved.state_dict())
    load(saved, ours)
    assert contents(ours) == contents(theirs)
    assert torch.equal(ours.state_dict()["leaf0.0.weight" if trait != "once" else "leaf0.0.old"], saved.leaf0[0].weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trait", ["versioned", "counted", "once", "spoken"])
def test_wrappers_do_not_matter(trait: str) -> None:
    """What was saved from a compiled or parallel model is loaded into the plain one, and the other way round."""
    for there, here in itertools.product(WRAPS, repeat=2):
        saved, ours = (WRAPS[wrap](Leaf((2, 3), frozenset({trait}))) for wrap in (there, here))
        if {there, here} <= {"compiled", "parallel"}:
            load(saved, ours)
            expected = Leaf((2, 3), frozenset({trait}))
            expected.load_state_dict(saved.get_submodule(_INSIDE[there]).state_dict())
            assert contents(ours.get_submodule(_INSIDE[here])) == contents(expected)
        elif there != here:
            with pytest.raises(UsageError, match="fit the model"):
                load(saved, ours)


def test_weights_kept_by_the_names_of_before_are_loaded() -> None:
    """Coral used to leave out ``module.`` wherever it stood; what was kept so still fits the model it is of."""
    saved, ours = ((nn.ModuleDict({"module": nn.Linear(2, 3)})) for _ in range(2))
    stored = {name.removeprefix("module."): Facts(name, tensor) for name, tensor in saved.state_dict().items()}
    plan_loading(ours, stored).fill(reader(stored))
    assert contents(ours) == contents(saved)
    with pytest.raises(UsageError, match=r"missing: module\.weight"):
        plan_loading(ours, stored, rest=take_apart(saved)[1])


@pytest.mark.parametrize("traits", [(), ("cached",)])
def test_a_backward_pass_does_not_go_on_with_other_weights(traits: tuple[str, ...]) -> None:
    """Loading between forward and backward is told by torch, as when it loads by itself."""
    saved, ours = (Leaf((2, 3), frozenset(traits)) for _ in range(2))
    loss = (ours.weight**2).sum()
    load(saved, ours)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_cannot_be_written_to_is_found_before_anything_is() -> None:
    """Elements that share one place, and tensors of inference mode, are named; the rest of the model is as it was."""
    saved, ours = (Leaf((2, 3), frozenset()) for _ in range(2))
    saved.register_buffer("wide", torch.ones(4))
    ours.register_buffer("wide", torch.zeros(1).expand(4))
    with torch.inference_mode():
        ours.register_buffer("late", torch.zeros(2))
    saved.register_buffer("late", torch.ones(2))
    before = contents(ours)
    with pytest.raises(UsageError) as caught:
        load(saved, ours)
    assert "wide: " in caught.value.message and "late: " in caught.value.message
    assert contents(ours) == before
    with torch.inference_mode():
        del saved.wide, ours.wide
        load(saved, ours)
    assert dict(ours.named_buffers())["late"].tolist() == [1, 1]


@pytest.mark.parametrize("trait", ["tied", "cached"])
def test_what_is_ignored_is_said(trait: str) -> None:
    """Without strict, a warning names what only one side has; nothing in common is an error."""
    saved, ours = build(_leaf(trait), 1), build(_leaf(trait), 2)
    saved.only_there, ours.only_here = nn.Linear(1, 1, bias=False), nn.Linear(2, 1, bias=False)
    with pytest.warns(UserWarning, match=r"weights lack only_here\.weight.*model lacks only_there\.weight"):
        load(saved, ours, strict=False)
    assert torch.equal(saved.leaf0[0].weight, ours.leaf0[0].weight)
    other = nn.ModuleDict({"other": ours})
    before = contents(other)
    with pytest.raises(UsageError, match="no name in common"):
        load(saved, other, strict=False)
    assert contents(other) == before


def _leaf(trait: str) -> Description:
    return (("sequence", (2, 3), frozenset({trait})),)


def test_lazy_modules_reach_the_hint_and_are_loaded_into() -> None:
    """A module without a shape yet is not saved, and is filled as torch fills it; a refusal leaves it without one."""
    with pytest.raises(UnsupportedValueError, match="lazy") as caught:
        load(nn.LazyLinear(3), nn.Linear(2, 3))
    assert caught.value.hint is not None and "run the model once" in caught.value.hint
    saved, ours = nn.Linear(2, 3), nn.LazyLinear(3)
    load(saved, ours)
    assert torch.equal(saved.weight, ours.weight)
    pair: Any = nn.Sequential(nn.LazyLinear(3), Leaf((2, 3), frozenset({"refusing"})))
    with pytest.raises(UsageError):
        load(nn.Sequential(nn.Linear(2, 3), Leaf((2, 3), frozenset())), pair)
    assert pair[0].has_uninitialized_params() and not hasattr(pair[1], "was_here")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torch_s_own_modules_are_loaded() -> None:
    """Modules of torch with hooks, parametrizations and masks, and scripted ones, hold what torch would load."""

    def make() -> Any:
        layers = {
            "transformer": nn.Transformer(8, 2, 1, 1, 16),
            "instance": nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
            "spectral": nn.utils.spectral_norm(nn.Linear(3, 3)),
            "weight": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
            "masked": prune.random_unstructured(nn.Linear(3, 3), "weight", amount=0.3),
            "recurrent": nn.LSTM(3, 2),
        }
        return nn.ModuleDict(layers)

    scripted = [torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))) for _ in range(3)]
    for saved, ours, theirs in ((make(), make(), make()), scripted):
        load(saved, ours)
        theirs.load_state_dict(saved.state_dict())
        assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
            k: v.tolist() for k, v in theirs.state_dict().items()
        }
