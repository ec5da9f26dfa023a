"""What stands for something that this process alone has: an open store, a run that is going on, a commit on its way."""

from __future__ import annotations

from typing import NoReturn, Self

from coral.errors import UnsupportedValueError


class Live:
    """An object of which there is one, wherever it is held.

    Copied with what holds it, it is still that one: the copy of a model that knows its run, as for a moving average of
    its weights, knows the same run. Another process cannot have it; to be pickled is refused.
    """

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise UnsupportedValueError(
            f"{self!r} belongs to this process, and cannot be pickled",
            hint="hand over the repository's path, or the run's experiment_id, and open it there; "
            "of a model, save its state_dict()",
        )
