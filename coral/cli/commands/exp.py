"""``coral exp``: the group of commands about experiments."""

from __future__ import annotations

from coral.cli.group import HELP_NAMES, LazyGroup, Section

_PACKAGE = "coral.cli.exp"

SECTIONS = {
    "Record": Section(
        _PACKAGE,
        {
            "start": "Start a run, and print its id.",
            "log": "Log metrics to a run.",
            "params": "Show or set a run's parameters.",
            "end": "End a run: it is completed.",
            "fail": "End a run: it failed.",
            "cancel": "End a run: it was called off.",
            "resume": "Start a run that goes on where another stopped.",
        },
    ),
    "Look": Section(
        _PACKAGE,
        {
            "list": "List runs, newest first.",
            "show": "Show one run.",
            "compare": "Compare runs: parameters and metrics.",
            "best": "Find the runs that did best by a metric.",
            "lineage": "Show the family of a run.",
            "summary": "Count runs, by status.",
        },
    ),
    "Tidy": Section(
        _PACKAGE,
        {
            "delete": "Move runs to the trash.",
            "restore": "Bring deleted runs back.",
        },
    ),
}

command = LazyGroup(
    name="exp",
    sections=SECTIONS,
    context_settings=HELP_NAMES,
    help="""Record runs, compare them, and find the best.

    A run started here stays RUNNING until it is ended. The commands that log to a run, or end it, mean the one that
    --run names, else CORAL_RUN, else the only one running. Wherever a run is named, RUN is its id, the first digits of
    that (four or more), or its name, if no other run is called so.

    \b
    Example:
      export CORAL_RUN=$(coral exp start bert -p lr=1e-3 -t nlp)
      coral exp log loss 0.5 --step 3
      coral commit -m "step 3" --step 3 model.safetensors
      coral exp end
      coral checkout best:loss:min
    """,
)
