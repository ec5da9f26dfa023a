"""Eight processes that commit to one branch while four read and one collects in a loop."""

from __future__ import annotations

import subprocess
from pathlib import Path

from coral import Repository
from tests.repository.helpers import child, commit, raw, read, weights

WRITERS, READERS = 8, 4
COLLECTING = {"at once": "dict(prune_now=True)", "grace": "dict(grace=0.5)"}
"""How the collector is called."""
_APART = 1000
_MINUTES = 30

_WRITER = """
    repo, start, count = Repository(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for turn in range(count):
        # Garbage, which lies in the same pack as what is committed: some that others find soon, some that nobody does.
        repo.stage_weights(weights(turn + 7 if turn % 2 else start + turn + 500), "garbage")
        repo.stage_weights(weights(turn), f"model-{start}")
        repo.unstage("garbage")
        print(start + turn, repo.commit(f"turn {start + turn}").commit_hash, flush=True)
"""
_READER = """
    import random
    turns = 0
    while not os.path.exists(sys.argv[2]):
        repo = Repository(sys.argv[1])
        found = [made.commit_hash for made in repo.log("main", max_count=20)]
        for ref in random.sample(found, min(3, len(found))):
            for name in repo.parts(ref):
                read(repo, ref, name)
            turns += 1
    print(turns)
"""
_COLLECTOR = """
    chunks = 0
    while not os.path.exists(sys.argv[2]):
        chunks += Repository(sys.argv[1]).maintenance.gc(**eval(sys.argv[3])).chunks
    print(chunks)
"""


def race(project: Path, how: str, commits: int) -> list[str]:
    """Have each writer make so many commits in a new repository, and the collector be called in one of the ways of
    :data:`COLLECTING`; what is wrong."""
    commit(Repository(project, init=True), 0)
    stop = project / "stop"
    readers = [child(_READER, project, stop) for _ in range(READERS)]
    collector = child(_COLLECTOR, project, stop, COLLECTING[how])
    writers = [child(_WRITER, project, _APART * number, commits) for number in range(WRITERS)]
    told, wrong = [], []
    for process in writers:
        output, errors = process.communicate(timeout=60 * _MINUTES)
        told.append([line.split() for line in output.splitlines()])
        wrong += _failed(process, errors)
    stop.touch()
    for what, process in (("collected", collector), *(("read", reader) for reader in readers)):
        output, errors = process.communicate(timeout=60 * _MINUTES)
        wrong += _failed(process, errors) or ([] if int(output) > 0 else [f"nothing was {what}"])
    return wrong + [one for lines in told for one in _missing(project, lines, commits)] + _damage(project)


def _failed(process: subprocess.Popen[str], errors: str) -> list[str]:
    return [f"a process ended with {process.returncode}: {errors[-2000:]}"] if process.returncode else []


def _missing(project: Path, told: list[list[str]], commits: int) -> list[str]:
    """What is wrong with the commits of one writer."""
    repo = Repository(project)
    line = [(made.message, made.commit_hash) for made in repo.log()]
    own = [(f"turn {turn}", made) for turn, made in told]
    wrong = [] if len(own) == commits else [f"{len(own)} commits were made"]
    if [one for one in reversed(line) if one in set(own)] != own:
        wrong.append(f"lost, or out of order: {set(own) - set(line)}")
    for turn, made in told:
        if read(repo, made, f"model-{int(turn) // _APART * _APART}") != raw(weights(int(turn) % _APART)):
            wrong.append(f"the commit {made} does not hold what was committed in turn {turn}")
    return wrong


def _damage(project: Path) -> list[str]:
    return [f"fsck: {one.message}" for one in Repository(project).maintenance.fsck(read_data=True).damage]
