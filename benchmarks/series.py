"""Real series of checkpoints to measure storage with: one model fine-tuned in the ways that people fine-tune models.

A model is trained from scratch on one half of Python's own library and fine-tuned on the other half; each series is
ten checkpoints of one way to do it, as safetensors files. They are made once and kept outside the tree, beside those
of :mod:`benchmarks.training`; ``python -m benchmarks.series [--small] [--cache DIR]`` makes them all.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import AdamW

from benchmarks.training import COUNT, LARGE, SMALL, Size, add_arguments
from examples.train_and_pick_best import LanguageModel, standard_library_text

PRETRAINED = "pretrained"
RANK, LORA_SCALE = 8, 2.0  # the usual alpha is twice the rank
MORE_ROWS = 64  # a growing vocabulary has this many more after each growth

Tensors = dict[str, Tensor]
Say = Callable[[str], None]


class LowRank(nn.Module):
    """A LoRA adapter: it adds a trained product of two thin matrices to a frozen weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.lora_A = nn.Parameter(torch.empty(RANK, columns))
        self.lora_B = nn.Parameter(torch.zeros(rows, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        return weight + LORA_SCALE * (self.lora_B @ self.lora_A)


def train_all(model: LanguageModel) -> None:
    """Full fine-tuning: every parameter is trained."""


def train_last(model: LanguageModel) -> None:
    """Freeze all but the last layer, the final norm and the head."""
    model.requires_grad_(False)
    for part in (model.layers[-1], model.norm, model.output):
        part.requires_grad_(True)


def adapt(model: LanguageModel) -> None:
    """Freeze the model and give each linear layer of its transformer a :class:`LowRank`."""
    model.requires_grad_(False)
    names = [name for name, parameter in model.layers.named_parameters() if parameter.dim() == 2]
    for path, _, name in (full_name.rpartition(".") for full_name in names):
        module = model.layers.get_submodule(path)
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))


def grow_vocabulary(model: LanguageModel) -> None:
    """Give the embedding and the head ``MORE_ROWS`` new rows below the old ones."""
    rows, width = model.byte.weight.shape
    byte, output = nn.Embedding(rows + MORE_ROWS, width), nn.Linear(width, rows + MORE_ROWS)
    with torch.no_grad():
        byte.weight[:rows] = model.byte.weight
        output.weight[:rows] = model.output.weight
        output.bias[:rows] = model.output.bias
    model.byte, model.output = byte, output


def plain_state(model: LanguageModel) -> Tensors:
    """The model's state, in which an adapter's tensors are named after the weight that they adapt."""
    return {
        re.sub(r"parametrizations\.(\w+)\.(?:original|0(?=\.))", r"\1", name): tensor
        for name, tensor in model.state_dict().items()
    }


@dataclass(frozen=True)
class FineTuning:
    """A way to fine-tune the pretrained model, AdamW's learning rate being the same at each step.

    Attributes:
        dtype: of the weights, their gradients and AdamW's state.
        prepare: says what is trained.
        grow_at: the checkpoints, counted from one, before which the vocabulary grows.
        each_step: whether each of its steps is a checkpoint.
    """

    rate: float
    dtype: torch.dtype = torch.float32
    prepare: Callable[[LanguageModel], None] = train_all
    grow_at: tuple[int, ...] = ()
    each_step: bool = False

    def apart(self, size: Size) -> int:
        """Steps between two checkpoints."""
        return 1 if self.each_step else size.apart

    def run(self, size: Size, start: Tensors) -> Iterator[tuple[Tensors, float]]:
        """The state and the last batch's loss, at each of ``COUNT`` checkpoints."""
        model = size.model().to(self.dtype)
        model.load_state_dict(start)
        self.prepare(model)
        _, text = halves()
        optimizer = trainer(model, self.rate)
        for number in range(1, COUNT + 1):
            if number in self.grow_at:
                grow_vocabulary(model)
                optimizer = trainer(model, self.rate)
            loss = advance(model, optimizer, text, size, self.apart(size))
            yield plain_state(model), loss


@dataclass(frozen=True)
class Derived:
    """A series made of another one's checkpoints, without training."""

    source: str
    change: Callable[[Tensors], Tensors]


def as_bfloat16(tensors: Tensors) -> Tensors:
    """The tensors rounded to bfloat16, as a run with master weights in fp32 saves them."""
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def merge(tensors: Tensors) -> Tensors:
    """Each adapter added to its weight, and gone."""
    merged = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name in (name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")):
        merged[name] = merged[name] + LORA_SCALE * (tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"])
    return merged


SERIES: dict[str, FineTuning | Derived] = {
    "bf16-2e-5": FineTuning(2e-5, torch.bfloat16),
    "fp32-2e-5": FineTuning(2e-5),
    "bf16-1e-4": FineTuning(1e-4, torch.bfloat16),
    "fp32-1e-4": FineTuning(1e-4),
    "bf16-master-2e-5": Derived("fp32-2e-5", as_bfloat16),
    "frozen": FineTuning(1e-4, prepare=train_last),
    "lora": FineTuning(2e-4, prepare=adapt),
    "lora-merged": Derived("lora", merge),
    "vocabulary": FineTuning(1e-4, grow_at=(4, 8)),
    "fp32-2e-5, each step": FineTuning(2e-5, each_step=True),
    "bf16-2e-5, each step": FineTuning(2e-5, torch.bfloat16, each_step=True),
    "bf16-1e-4, each step": FineTuning(1e-4, torch.bfloat16, each_step=True),
}


@cache
def halves() -> tuple[Tensor, Tensor]:
    """The text to train on from scratch, and the text to fine-tune on."""
    text, _ = standard_library_text()
    middle = len(text) // 2
    return text[:middle], text[middle:]


def trainer(model: LanguageModel, rate: float) -> AdamW:
    """A new AdamW for what is trained."""
    return AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)


def advance(model: LanguageModel, optimizer: AdamW, text: Tensor, size: Size, steps: int) -> float:
    """Train for some steps; the last one's loss."""
    for _ in range(steps):
        starts = torch.randint(len(text) - size.context - 1, (size.windows,))
        loss = model.loss(text, starts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def series(name: str, size: Size, cache: Path, say: Say) -> list[Path]:
    """The files of a series, in order; made first if the cache lacks any of them.

    Args:
        name: a key of ``SERIES``, or ``PRETRAINED``, the one checkpoint that all of them start from.
        say: takes one line of progress.
    """
    way = SERIES.get(name)
    apart = way.apart(size) if isinstance(way, FineTuning) else size.apart
    steps = [size.pretraining] if name == PRETRAINED else [apart * number for number in range(1, COUNT + 1)]
    files = [cache / size.name / name / f"step-{step:04}" / "model.safetensors" for step in steps]
    if not all(file.exists() for file in files):
        _make(name, size, cache, files, say)
    return files


def _make(name: str, size: Size, cache: Path, files: list[Path], say: Say) -> None:
    earlier = partial(series, size=size, cache=cache, say=say)
    match SERIES.get(name):
        case None:
            states = _pretrain(size)
        case Derived(source, change):
            states = ((change(load_file(file)), None) for file in earlier(source))
        case way:
            (start,) = earlier(PRETRAINED)
            torch.manual_seed(0)
            tensors = {key: tensor.to(way.dtype) for key, tensor in load_file(start).items()}
            states = way.run(size, tensors)
    say(f"making {size.name} {name} (once)")
    started = time.monotonic()
    for file, (state, loss) in zip(files, states, strict=True):
        _save(file, state)
        learned = "" if loss is None else f"loss {loss:.3f}, "
        say(f"  {name} {file.parent.name}: {learned}{time.monotonic() - started:.1f} s")
        started = time.monotonic()


def _pretrain(size: Size) -> Iterator[tuple[Tensors, float | None]]:
    """One checkpoint, trained from scratch."""
    text, _ = halves()
    model = size.model()
    loss = advance(model, trainer(model, 1e-3), text, size, size.pretraining)
    yield model.state_dict(), loss


def _save(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write the file, then give its folder its name: a folder that exists is whole."""
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=file.parent.parent))
    save_file(dict(state), unfinished / file.name)
    if not file.parent.exists():
        unfinished.rename(file.parent)


def main() -> None:
    """Make every series that the cache lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.small:
        torch.set_num_threads(1)  # a second one would be waited for
    for name in (PRETRAINED, *SERIES):
        series(name, SMALL if arguments.small else LARGE, arguments.cache, partial(print, flush=True))


if __name__ == "__main__":
    main()
