"""Training that stops and goes on: bit for bit, and without a side effect where none is asked for."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coral import Repository
from coral.errors import CoralError, PartNotFoundError, UnsupportedValueError, UsageError
from tests.integrations.modules import build, contents
from tests.repository.helpers import commit, read, run

_TRAIN = """
import random, torch, numpy as np
from coral import Repository
torch.set_num_threads(1)

def make():
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
    layers = torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Dropout(0.3)
    model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[1:].parameters()}], lr=3e-3, amsgrad=True
    )
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 3e-3], total_steps=40)

def train(model, optimizer, scheduler, steps):
    for _ in range(steps):
        x = torch.randn(8, 16) * random.random() + float(np.random.normal())
        loss = model(x).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step(); scheduler.step()

def save(path, parts, **state):
    return Repository(path, init=True).save(*parts, step=1, metrics={"loss": 0.5}, tags=["t"], **state)
"""


def _state(path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    repo = Repository(path)
    return read(repo, name="model.safetensors"), read(repo, name="state.safetensors")


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    """20 steps straight are 10 steps, save, a new process, load, 10 steps: every parameter, moment and generator."""
    run(
        _TRAIN
        + """
parts = make(); train(*parts, 20); save(sys.argv[1], parts)
parts = make(); train(*parts, 10); save(sys.argv[2], parts, epoch=(1, 'x'))
""",
        tmp_path / "straight",
        tmp_path / "halves",
    )
    output = run(
        _TRAIN
        + """
repo = Repository(sys.argv[1])
parts = make()
print(repo.load_into(parts[0], "t", parts[1], parts[2]))
train(*parts, 10)
repo.save(*parts, "second half")
""",
        tmp_path / "halves",
    )
    assert output.strip() == "{'epoch': (1, 'x')}"
    assert _state(tmp_path / "halves") == _state(tmp_path / "straight")
    states = [Repository(tmp_path / name).get_state() for name in ("halves", "straight")]
    assert repr(states[0]).replace("'state': {}", "") == repr(states[1]).replace("'state': {}", "")
    made = next(Repository(tmp_path / "straight").log())
    assert (made.step, made.metrics, made.message) == (1, {"loss": 0.5}, "step 1")


def _rng() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # type: ignore[index]


def test_loading_weights_alone_leaves_the_generators_alone(repo: Repository) -> None:
    """Without an optimizer or a scheduler neither saving nor loading changes a random number."""
    model = torch.nn.Linear(4, 4)
    before = _rng()
    repo.save(model, torch.optim.AdamW(model.parameters()), epoch=3)
    assert _rng() == before
    torch.rand(3), random.random()
    before = _rng()
    assert repo.load_into(torch.nn.utils.skip_init(torch.nn.Linear, 4, 4)) == {"epoch": 3}
    assert _rng() == before
    repo.load_into(model, optimizer=torch.optim.AdamW(model.parameters()))
    assert _rng() != before


def test_a_misfit_changes_nothing(repo: Repository) -> None:
    """Every name, shape and dtype that does not fit is listed, and the model is as it was."""
    repo.save({"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.ones(1), "d": torch.ones(5)})

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(3))
            self.b = torch.nn.Parameter(torch.zeros(2, 3))
            self.c = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
            self.e = torch.nn.Parameter(torch.zeros(5))

    model = Model()
    for strict in (True, False):
        with pytest.raises(UsageError) as caught:
            repo.load_into(model, strict=strict)
        told = str(caught.value)
        assert all(text in told for text in ("b:", "c:", "[2, 2]", "[2, 3]", "F16"))
        assert ("missing: e" in told and "unexpected: d" in told) is strict
        assert not any(tensor.any() for tensor in model.parameters())
    repo.save({"a": torch.ones(3), "d": torch.ones(5)})
    with pytest.warns(UserWarning, match="the weights lack b, c, e"):
        repo.load_into(model, strict=False)
    assert model.a.tolist() == [1, 1, 1] and not model.e.any()


def test_a_state_that_is_not_there_raises(repo: Repository) -> None:
    """An optimizer is not silently left as it is, and nothing was loaded into the model before that is known."""
    model = torch.nn.Linear(3, 3)
    repo.save(model)
    target = torch.nn.Linear(3, 3)
    before = target.weight.tolist()
    with pytest.raises(PartNotFoundError, match="optimizer"):
        repo.load_into(target, optimizer=torch.optim.AdamW(target.parameters()))
    assert target.weight.tolist() == before
    commit(repo, 1, "other")
    repo.rm("model.safetensors", "state.safetensors")
    repo.commit("numpy only")
    with pytest.raises(UsageError, match="missing: weight"):
        repo.load_into(target)
    with pytest.raises(UsageError):
        repo.load_into({"weight": np.zeros(3)})


def test_a_state_file_of_another_make_is_no_state(repo: Repository) -> None:
    """A plain file that bears the name of the state does not keep the weights from being loaded."""
    model = torch.nn.Linear(3, 3)
    repo.stage_weights(model)
    repo.stage_weights({"x": np.ones(3)}, "state.safetensors")
    repo.commit("x")
    target = torch.nn.Linear(3, 3)
    assert repo.load_into(target) == {}
    assert torch.equal(target.weight, model.weight)


def test_saving_the_same_twice_is_two_commits(repo: Repository) -> None:
    """A checkpoint that changed nothing is still a point in the training's history."""
    model = torch.nn.Linear(3, 3)
    repo.save(model, step=1), repo.save(model, step=2)
    assert [found.step for found in repo.log()] == [2, 1]


class Watching:
    """Trains nothing; looks at the weights when it is loaded, as what keeps a second copy of them does."""

    def __init__(self, model: torch.nn.Module, *, is_refused: bool = False) -> None:
        self.model, self.is_refused = model, is_refused
        self.seen = float(model.weight.sum().detach())  # type: ignore[operator]

    def state_dict(self) -> dict[str, object]:
        return {"is_refused": self.is_refused}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.seen = float(self.model.weight.sum().detach())  # type: ignore[operator]
        if state["is_refused"]:
            raise KeyError("moments")


def _optimizer(model: torch.nn.Linear, *, groups: int = 1) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW([{"params": parameters}] if groups == 1 else [{"params": [p]} for p in parameters])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("misfit", ["optimizer", "scheduler", "unknown", "generators", "hooks"])
def test_a_state_that_does_not_fit_changes_nothing(repo: Repository, misfit: str) -> None:
    """Whatever refuses what is loaded: weights, optimizer, scheduler and generators are all as they were."""
    saved = torch.nn.Linear(3, 3)
    trains = _optimizer(saved)
    repo.save(saved, trains, torch.optim.lr_scheduler.CosineAnnealingLR(trains, 5))
    if misfit == "unknown":
        repo.save(saved, Watching(saved), Watching(saved, is_refused=True))
    if misfit == "generators":
        state = repo.get_state()
        assert isinstance(state, dict)
        repo.stage_state({**state, "rng": {**state["rng"], "torch": torch.zeros(3, dtype=torch.uint8)}})
        repo.commit("damaged")
    model = torch.nn.Linear(3, 3)
    optimizer: Any = _optimizer(model, groups=2 if misfit == "optimizer" else 1)
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    if misfit == "scheduler":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    if misfit == "unknown":
        optimizer, scheduler = Watching(model), Watching(model)
    if misfit == "hooks":
        model.register_load_state_dict_post_hook(lambda module, _: 1 // 0)

    def held() -> str:
        rows = [tensor.tolist() for tensor in model.parameters()]
        return repr((rows, getattr(optimizer, "seen", 0), optimizer.state_dict(), scheduler.state_dict(), _rng()))

    before = held()
    places = {"unknown": "scheduler", "hooks": "weights do not fit", "generators": "generators"}
    with pytest.raises(CoralError, match=places.get(misfit, misfit)):
        repo.load_into(model, "HEAD", optimizer, scheduler)
    assert held() == before


def test_what_looks_at_the_weights_is_loaded_after_them(repo: Repository) -> None:
    """An optimizer that is not torch's own finds the weights as they were saved."""
    saved, model = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    repo.save(saved, Watching(saved))
    keeps = Watching(model)
    repo.load_into(model, optimizer=keeps)
    assert keeps.seen == float(saved.weight.sum()) and torch.equal(model.weight, saved.weight)


def test_a_module_with_extra_state_and_versions_comes_back(repo: Repository) -> None:
    """What is no tensor, and what torch notes of its modules' versions, goes with the checkpoint."""
    leaf = ("parallel", (2, 3), frozenset({"spoken", "versioned"}))
    saved, expected, model = (build((leaf,), seed) for seed in (1, 2, 3))
    expected.load_state_dict(saved.state_dict())
    repo.save(saved)
    repo.load_into(model)
    assert contents(model) == contents(expected) and expected.leaf0.module.loaded == 3
    with pytest.raises(UnsupportedValueError, match=r"_extra_state.* is a dict"):
        repo.stage_weights(saved)


def test_files_of_torch_say_so(repo: Repository, tmp_path: Path) -> None:
    """A checked-out file is what save_file writes as ``format: pt``, which transformers asks for."""
    model = torch.nn.Linear(3, 3)
    file = repo.folder.root.parent / "model.safetensors"
    repo.save(model)
    repo.checkout("HEAD", "model.safetensors")
    save_file(model.state_dict(), tmp_path / "torch", metadata={"format": "pt"})
    assert file.read_bytes() == (tmp_path / "torch").read_bytes()
    repo.save(model, metadata={"epoch": "3"}, wait=False).result()
    repo.checkout("HEAD", "model.safetensors")
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "epoch": "3"}
    repo.stage_weights({"bias": torch.ones(3)}, update=True, metadata={"epoch": "4"})
    repo.stage_weights({"array": np.ones(3)}, "other.safetensors")
    repo.commit("both")
    assert dict(repo.parts()["model.safetensors"].metadata) == {"format": "pt", "epoch": "4"}
    assert repo.parts()["other.safetensors"].metadata == ()
    with pytest.raises(UnsupportedValueError, match="text"):
        repo.save(model, metadata={"epoch": 3})  # type: ignore[dict-item]


class Lookahead(torch.optim.SGD):
    """Keeps a second copy of the weights, made anew when it is loaded."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]


def test_a_subclass_of_torch_s_optimizers_may_look_at_the_weights(repo: Repository) -> None:
    """It is loaded after them, as in torch."""
    saved, model = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    repo.save(saved, Lookahead(saved.parameters()))
    optimizer = Lookahead(model.parameters())
    repo.load_into(model, optimizer=optimizer)
    assert all(map(torch.equal, optimizer.slow, saved.parameters()))


class Delegating:
    """Not an optimizer, but it has one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


def test_an_optimizer_may_be_anything_with_the_two_methods(repo: Repository) -> None:
    """Methods of the object itself, and those that it hands on, are the methods that are meant."""
    model = torch.nn.Linear(3, 3)
    optimizer = _optimizer(model)
    repo.save(model, Delegating(optimizer))
    fresh = torch.optim.AdamW(model.parameters())
    own = SimpleNamespace(state_dict=fresh.state_dict, load_state_dict=fresh.load_state_dict)
    for holder in (Delegating(fresh), own):
        fresh.state.clear()
        repo.load_into(model, optimizer=holder)
        assert fresh.state[model.weight]["exp_avg"].tolist() == optimizer.state[model.weight]["exp_avg"].tolist()


def test_schedulers_are_put_back_to_the_last_attribute(repo: Repository) -> None:
    """What a state of another kind left in a scheduler, and in those inside of it, is gone again."""
    saved, model = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    lock = threading.Lock()
    repo.save(saved, _optimizer(saved), torch.optim.lr_scheduler.OneCycleLR(_optimizer(saved), 1.0, total_steps=9))
    optimizer = _optimizer(model)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if lock else 1)
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, [cosine, factor], [3])
    model.register_load_state_dict_post_hook(lambda *_: 1 // 0)
    for scheduler in (torch.optim.lr_scheduler.StepLR(optimizer, 3), chained):
        before = [dict(vars(one)) for one in (scheduler, cosine, factor)]
        with pytest.raises(UsageError):
            repo.load_into(model, "HEAD", optimizer, scheduler)
        assert [dict(vars(one)) for one in (scheduler, cosine, factor)] == before


_INTERRUPTED = """
import signal, threading, torch
from coral import Repository
from torch import nn

def make():
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(8)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)

repo = Repository(sys.argv[1], init=True)
torch.manual_seed(0); saved = make(); repo.save(*saved)
hits = mixed = 0
for number in range(30):
    model, optimizer = make()
    optimizer.param_groups[0]["lr"] = 0.5
    before = [p.detach().clone() for p in model.parameters()]
    timer = threading.Timer(0.0007 * number, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        repo.load_into(model, "HEAD", optimizer)
        timer.join()
    except KeyboardInterrupt:
        hits += 1
    timer.join()
    new = [torch.equal(p, q) for p, q in zip(model.parameters(), saved[0].parameters())]
    old = [torch.equal(p, q) for p, q in zip(model.parameters(), before)]
    lr = optimizer.param_groups[0]["lr"]
    mixed += not (all(new) and lr == 0.1 or all(old) and lr == 0.5)
print(hits > 5, mixed)
"""


def test_an_interrupt_finds_all_or_nothing_loaded(repo: Repository) -> None:
    """Ctrl-C at any time: the weights and the optimizer are the saved ones, or those of before."""
    assert run(_INTERRUPTED, repo.path).split() == ["True", "0"]
