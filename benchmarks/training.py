"""Real checkpoints to measure with: a transformer trained on text, saved at ten steps with its AdamW state.

They are made once and kept outside the tree; ``python -m benchmarks.training [--small] [--cache DIR]`` makes them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.optim import AdamW

from examples.train_and_pick_best import LanguageModel, standard_library_text

DEFAULT_CACHE = Path(tempfile.gettempdir(), "coral-benchmarks")
COUNT = 10


@dataclass(frozen=True)
class Size:
    """A model's shape, and how it is trained: bytes a window, windows a step, steps between two checkpoints.

    Attributes:
        pretraining: steps before the fine-tunings of :mod:`benchmarks.series`.
        apart: steps between two checkpoints of those.
    """

    name: str
    width: int
    depth: int
    heads: int
    context: int
    windows: int
    steps: int
    pretraining: int
    apart: int

    def model(self) -> LanguageModel:
        """An untrained model of this size; the same one every time."""
        torch.manual_seed(0)
        return LanguageModel(self.width, self.depth, self.heads, self.context)


LARGE = Size("large", 512, 8, heads=8, context=64, windows=8, steps=8, pretraining=400, apart=20)  # 25.5 M parameters
SMALL = Size("smoke", 96, 2, heads=2, context=16, windows=2, steps=1, pretraining=1, apart=1)  # 0.3 M parameters


@dataclass(frozen=True)
class Checkpoint:
    """One saved step: ``model.safetensors``, and a ``torch.save`` of the model's and optimizer's state dicts."""

    folder: Path

    @property
    def weights_file(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def state_file(self) -> Path:
        return self.folder / "checkpoint.pt"

    def load(self, size: Size) -> tuple[LanguageModel, AdamW]:
        """The model and the optimizer as they were at this step."""
        state = torch.load(self.state_file, weights_only=True)
        model = size.model()
        model.load_state_dict(state["model"])
        optimizer = AdamW(model.parameters(), lr=1e-3)
        optimizer.load_state_dict(state["optimizer"])
        return model, optimizer


def checkpoints(size: Size, cache: Path, say: Callable[[str], None]) -> list[Checkpoint]:
    """The checkpoints of this size, in order; trained first if the cache lacks any of them.

    Args:
        say: takes one line of progress.
    """
    made = [Checkpoint(cache / size.name / f"step-{size.steps * number:04}") for number in range(1, COUNT + 1)]
    if not all(checkpoint.folder.is_dir() for checkpoint in made):
        _train(size, made, say)
    return made


def _train(size: Size, to_make: list[Checkpoint], say: Callable[[str], None]) -> None:
    text, _ = standard_library_text()
    model = size.model()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"training {parameters / 1e6:.1f} M parameters for {len(to_make)} checkpoints (once: a minute or two)")
    for checkpoint in to_make:
        started = time.monotonic()
        for _ in range(size.steps):
            starts = torch.randint(len(text) - size.context - 1, (size.windows,))
            loss = model.loss(text, starts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _save(checkpoint, model, optimizer)
        say(f"  {checkpoint.folder.name}: loss {loss.item():.3f}, {time.monotonic() - started:.1f} s")


def _save(checkpoint: Checkpoint, model: LanguageModel, optimizer: AdamW) -> None:
    """Write both files, then give the folder its name: a folder that exists is whole."""
    checkpoint.folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Checkpoint(Path(tempfile.mkdtemp(dir=checkpoint.folder.parent)))
    save_file(model.state_dict(), unfinished.weights_file)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished.state_file)
    if not checkpoint.folder.exists():
        unfinished.folder.rename(checkpoint.folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose the checkpoints."""
    parser.add_argument("--small", action="store_true", help="0.3 M parameters, hardly trained: a smoke run")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where to keep checkpoints (%(default)s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    checkpoints(SMALL if arguments.small else LARGE, arguments.cache, print)
