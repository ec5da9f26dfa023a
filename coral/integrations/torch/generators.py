"""The state of every random generator that training draws from."""

from __future__ import annotations

import random

import numpy as np
import torch

from coral.errors import FormatError


def capture_rng() -> dict[str, object]:
    """The state of every random generator that training draws from: Python's, numpy's, torch's, each CUDA device's."""
    version, words, gauss = random.getstate()
    state: dict[str, object] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: object) -> None:
    """Put back what :func:`capture_rng` took; states of CUDA devices that are not here are left out.

    Raises:
        FormatError: not such a state.
    """
    try:
        _restore_rng(state)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"the state of the random generators is malformed: {error}") from error


def _restore_rng(state: object) -> None:
    if not isinstance(state, dict):
        raise TypeError("not a mapping")
    python = state["python"]
    random.setstate((python["version"], tuple(np.asarray(python["words"]).tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, words in enumerate(state.get("cuda", [])[:devices]):
        torch.cuda.set_rng_state(words, index)
