"""Loading leaves in a module what its own ``load_state_dict`` would have left in it, or raises and leaves it alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import nn
from torch.nn.utils import prune

from coral import Repository
from coral.errors import UnsupportedValueError, UsageError
from coral.format.dtypes import byte_count
from coral.integrations.torch.loading import plan_loading
from coral.integrations.torch.modules import take_apart
from coral.integrations.torch.survey import survey
from coral.integrations.torch.tensors import source
from coral.verbs.checkpoint import ReadMany
from tests.integrations.modules import TRAITS, WRAPS, Description, Leaf, build, contents, pairs

_INSIDE = {"compiled": "_orig_mod", "parallel": "module"}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """An empty repository."""
    return Repository(tmp_path, init=True)


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


def _refusing(change: Callable[[Any], object]) -> Any:
    """A model whose hook changes it, and whose second layer does not fit."""
    model: Any = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Leaf((5,), frozenset({"cached"}))})
    model.notes, model.grads = [torch.ones(2), "x"], {"seen": 1}
    model["a"].register_forward_hook(lambda *_: None)
    model["a"].weight.grad = torch.ones(2, 2)
    model.register_load_state_dict_pre_hook(lambda module, *_: change(module))
    return model


CHANGES: dict[str, Callable[[Any], object]] = {
    "another type": lambda model: model.half(),
    "a larger type": lambda model: model.double(),
    "other memory": lambda model: setattr(model["a"].weight, "data", torch.zeros(7, 2)[:2]),
    "a new buffer": lambda model: model.register_buffer("new", torch.ones(1)),
    "a parametrization": lambda model: nn.utils.parametrizations.orthogonal(model["a"]),
    "contents of attributes": lambda model: (model.notes.clear(), model.grads.update(more=2)),
    "hooks": lambda model: model["a"]._forward_hooks.clear(),
    "gradients": lambda model: model.requires_grad_(False).zero_grad(),
    "a larger memory": lambda model: model["a"].weight.untyped_storage().resize_(64),
    "random numbers": lambda model: torch.rand(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_hook_changed_is_put_back(repo: Repository, change: str) -> None:
    """What the module's code did before it was refused: types, memory, attributes, hooks, gradients, random numbers."""
    saved = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Leaf((4,), frozenset())})
    repo.save(saved)
    ours = _refusing(CHANGES[change])

    def held() -> object:
        a = ours["a"]
        more = (ours.notes, ours.grads, list(a._forward_hooks), a.weight.grad, a.weight.requires_grad, type(a))
        places = identities(ours) if change != "a larger memory" else ()  # which moved, and cannot go back
        return contents(ours), places, repr(more), torch.get_rng_state().tolist()

    before = held()
    with pytest.raises(UsageError, match="fit the model"):
        repo.load_into(ours)
    assert held() == before


def test_the_program_may_resize_its_memory_afterwards(repo: Repository) -> None:
    """Neither saving nor loading, nor its undoing, does anything to the model's memory but read and fill it."""
    model: Any = nn.ModuleDict({"layer": nn.Linear(2, 2), "own": Leaf((4,), frozenset({"cached"}))})
    repo.save(model)
    repo.save(model, wait=False).result()
    repo.load_into(model)
    for tensor in model.state_dict().values():
        tensor.untyped_storage().resize_(tensor.nbytes * 2)
    plain = nn.Linear(2, 2)
    repo.save(plain)
    repo.load_into(plain)
    plain.weight.untyped_storage().resize_(64)
    weight: Any = repo.get_weight("weight", framework="torch")
    weight.resize_(5, 5)


@pytest.mark.parametrize("trait", ["tied", "cached"])
def test_the_default_device_does_not_matter(repo: Repository, trait: str) -> None:
    """Coral's own memory lies in the program's, wherever tensors are made by default."""
    saved, ours = build(_leaf(trait), 1), build(_leaf(trait), 2)
    optimizer = torch.optim.SGD(ours.parameters(), momentum=0.9)
    repo.save(saved, optimizer)
    torch.set_default_device("meta")
    try:
        repo.load_into(ours, "HEAD", optimizer)
        assert repo.get_weight("leaf0.0.weight", framework="torch").device.type == "cpu"  # type: ignore[attr-defined]
    finally:
        torch.set_default_device("cpu")
    assert torch.equal(ours.leaf0[0].weight, saved.leaf0[0].weight)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scripted_modules_beside_others(repo: Repository) -> None:
    """A scripted module is put back, too."""
    saved, ours = (nn.Sequential(torch.jit.script(nn.Linear(2, 2)), Leaf((4,), frozenset())) for _ in range(2))
    repo.save(saved)
    before = contents(ours)
    ours[1].register_load_state_dict_post_hook(lambda *_: 1 // 0)
    with pytest.raises(UsageError):
        repo.load_into(ours)
    assert contents(ours) == before
    ours[1]._load_state_dict_post_hooks.clear()
    ours[1].register_load_state_dict_post_hook(lambda *_: None)
    repo.load_into(ours)
    assert ours.state_dict()["0.weight"].tolist() == saved.state_dict()["0.weight"].tolist()


class Late(nn.Linear):
    """Says its extra state only once it has one."""

    def get_extra_state(self) -> object:
        return {"at": self.at}

    def set_extra_state(self, state: Any) -> None:
        self.at = state["at"]


def test_the_target_is_not_asked_for_its_state() -> None:
    """What a module does to say its state is not run where it is only loaded into."""
    saved, ours = Late(2, 2), Late(2, 2)
    saved.at = 3
    asked: list[int] = []
    ours.register_state_dict_post_hook(lambda *_: asked.append(1))
    load(saved, ours)
    assert ours.at == 3 and not asked


def test_hooks_find_what_torch_would_have_handed_them() -> None:
    """The state dict has torch's order, and what is kept of it keeps nothing else alive."""
    saved = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    seen: dict[str, torch.Tensor] = {}
    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ours.register_load_state_dict_pre_hook(lambda _, state, *__: seen.update(state))
    load(saved, ours)
    assert list(seen) == list(saved.state_dict())
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in seen.values())


def test_small_differences_that_torch_forgives() -> None:
    """An empty view, and a hook that adds to what it says was unexpected."""
    saved, ours = Leaf((2,), frozenset()), Leaf((2,), frozenset())
    for leaf in (saved, ours):
        leaf.register_buffer("none", torch.zeros(0, 1).expand(0, 4))
    load(saved, ours)
    ours.register_load_state_dict_post_hook(lambda _, keys: keys.unexpected_keys.append("a"))
    with pytest.warns(UserWarning, match="the model lacks a"):
        load(saved, ours, strict=False)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("trait", ["tied", "cached"])
def test_a_warning_that_is_an_error_changes_nothing(repo: Repository, trait: str) -> None:
    """Where warnings are raised, they are raised before anything is loaded, or all of it is put back."""
    saved, ours = build(_leaf(trait), 1), build(_leaf(trait), 2)
    ours.more = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    repo.save(saved, torch.optim.SGD(ours.parameters(), lr=0.1))
    before = contents(ours)
    with pytest.raises(UserWarning, match="the weights lack"):
        repo.load_into(ours, "HEAD", optimizer, strict=False)
    assert contents(ours) == before and optimizer.param_groups[0]["lr"] == 0.5


def test_torch_s_norms_are_filled_in_place() -> None:
    """Their code for files of before torch 1.0 does nothing to those of today."""
    norms = (nn.InstanceNorm1d(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.BatchNorm2d(4))
    for norm in (*norms, nn.BatchNorm1d(4, track_running_stats=False)):
        assert not survey(nn.Sequential(norm)).needs_own_loading(nn.Sequential(norm).state_dict())
    assert survey(nn.BatchNorm1d(4)).needs_own_loading({"weight", "bias", "running_mean", "running_var"})


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_wrap_others_are_refused() -> None:
    """What has no memory of its own cannot be put back; torch's own loading into it is not tried."""
    two = pytest.importorskip("torch.testing._internal.two_tensor")
    saved, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    ours.weight = nn.Parameter(two.TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(UsageError, match=r"weight: .*TwoTensor"):
        load(saved, ours)
