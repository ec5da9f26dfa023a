"""What is done to a repository while it is killed, cut and refused.

Each scenario tells what was promised to it, as soon as it was: ``("commit", hash, n)`` a commit of the weights number n
was acknowledged; ``("will", refs)`` the refs are about to be these, ``("refs", refs)`` they are; ``("log", run, step)``
a point was logged; ``("artifact", run, n)`` the artifact number n was kept; ``("safe", run)`` a power cut cannot take
the points and artifacts so far; ``("ended", run)`` a run has ended; ``("manifest", file, text)`` git was given this
manifest for this file; ``("landed", hash)`` a commit of something else was acknowledged.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from coral.errors import ConflictError, ExperimentNotFoundError
from coral.experiments import Experiment, ExperimentTracker
from coral.format.manifest import Manifest
from coral.git.pktline import PacketReader, PacketWriter
from coral.repository import Repository
from coral.storage import disk
from coral.storage.folder import Folder
from coral.testing.disks import Interposed, Unsynced
from coral.testing.trace import Kind
from coral.verbs.inside_git.filter import GitFilter
from coral.verbs.merging.merge import merge
from coral.verbs.merging.rules import RULES, settle

Told = tuple[object, ...]
Tell = Callable[[Told], None]
MODEL = "model.safetensors"
POINTS = 60
_KNOWN: set[str] = set()
_ATTEMPTED = (100, 101, 200, 300, 400, 500, 600, 700, 1000)


@functools.cache
def weights(number: int) -> dict[str, np.ndarray]:
    """Weights that no other number has, partly alike, so that they are stored as deltas and shared."""
    chance = np.random.default_rng(0)
    base = chance.standard_normal(1500).astype("<f4")
    base[number % 1500] += np.float32(number + 1)
    own = np.random.default_rng(number + 1).integers(0, 256, 200, dtype=np.uint8)
    return {"base": base, "own": own, "shared": np.arange(50, dtype="<i8")}


def same(found: object, number: int) -> bool:
    """Whether weights are those of a number, bit for bit."""
    return alike(found, weights(number))


def alike(found: object, wanted: Mapping[str, np.ndarray]) -> bool:
    """Whether all tensors are there, bit for bit, and no others."""
    return isinstance(found, Mapping) and {name: np.asarray(one).tobytes() for name, one in found.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def prepare(project: Path) -> None:
    """A repository with a history: ten commits, in as many packs as there are before some are merged, and a run."""
    with disk.use(Unsynced()):
        repo = Repository(project, init=True)
        tracker = ExperimentTracker(repo)
        run = tracker.start("before")
        for number in range(6):
            run.log("loss", 1.0 / (number + 1), number)
            commit_one(repo, number)
        run.end()
        repo.create_branch("old", "HEAD~3")
        repo.tag("v0", "HEAD~2", "a tag")
        repo.checkout("main")


def commit_one(repo: Repository, number: int) -> str:
    """Commit the weights of a number; the message says which."""
    repo.stage_weights(weights(number))
    return repo.commit(f"n={number}", step=number).commit_hash


def commit_beside(repo: Repository, number: int, part: str) -> str:
    """Commit the weights of a number to a part of their own."""
    repo.stage_weights(weights(number), part)
    return repo.commit(part).commit_hash


def refs_of(repo: Repository) -> dict[str, str]:
    """Every branch and tag, by its kind and name, with its commit."""
    found: dict[str, str] = {f"branch {name}": oid for name, oid in repo.branches().items()}
    return found | {f"tag {name}": oid for name, oid in repo.tags().items()}


def commit(project: Path, tell: Tell) -> None:
    """Commits that are waited for; the last fills a tier, so that packs are merged."""
    repo = Repository(project)
    for number in range(100, 103):
        tell(("commit", commit_one(repo, number), number))


def commit_async(project: Path, tell: Tell) -> None:
    """Commits beside the caller."""
    repo = Repository(project)
    before = None
    for number in range(200, 203):
        pending = repo.save(weights(number), message=f"n={number}", step=number, wait=False)
        if before is not None:
            tell(("commit", before[0].result().commit_hash, before[1]))
        before = pending, number
    assert before is not None
    tell(("commit", before[0].result().commit_hash, before[1]))


def add_files(project: Path, tell: Tell) -> None:
    """Files that the shell stages in one step, and commits: all of them or none."""
    repo, files = Repository(project, shell_staging=True), Folder(project / "files")
    repo.unstage()  # what is left of an attempt that a disk refused
    for number in (1000, 1001):
        files.write(MODEL, file_of(number))
        files.write("notes", b"of %d" % number)
        staged = repo.stage_files({MODEL: files.path(MODEL), "notes": files.path("notes")})
        for error in staged.failed.values():
            raise error
        commit = repo.commit(f"n={number}").commit_hash
        assert set(repo.parts(commit)) >= {MODEL, "notes"}
        tell(("commit", commit, number))


def track(project: Path, tell: Tell) -> None:
    """A run that logs, commits, and ends."""
    repo = Repository(project)
    run = ExperimentTracker(repo).start("during")
    name = run.experiment_id
    for step in range(POINTS):
        run.log("loss", step / 7, step)
        tell(("log", name, step))
        if step == POINTS // 2:
            tell(("commit", commit_one(repo, 300), 300))
            tell(("safe", name))
    run.end()
    tell(("safe", name))
    tell(("ended", name))


def keep(project: Path, tell: Tell) -> None:
    """Artifacts of a run that ends, is deleted and comes back, among collections that keep nothing for a while."""
    repo = Repository(project)
    tracker = ExperimentTracker(repo)
    run = tracker.start("keeping")
    name = run.experiment_id
    for number in range(3):
        if run.log_artifact(kept(number), f"{number}.bin") is not None:
            tell(("artifact", name, number))
        # What waits in memory for the disk keeps collections out, those of its own process too.
        if not run.degraded:
            repo.maintenance.gc(prune_now=True)
    run.end()
    tell(("safe", name))
    try:
        tracker.delete(name)
    except (ConflictError, ExperimentNotFoundError):
        return  # the disk refused its end, or its beginning
    repo.maintenance.gc(prune_now=True)
    tracker.restore(name)
    repo.maintenance.gc(prune_now=True)


def kept(number: int) -> bytes:
    """The bytes of the artifact of a number."""
    return np.random.default_rng(number + 1000).bytes(3000)


def branch(project: Path, tell: Tell) -> None:
    """Branches and tags that come, move and go."""
    repo = Repository(project)
    refs = refs_of(repo)
    tip, old = refs["branch main"], refs["branch old"]
    steps: list[tuple[Callable[[], object], dict[str, str | None]]] = [
        (lambda: repo.create_branch("a/b"), {"branch a/b": tip}),
        (lambda: repo.tag("v1"), {"tag v1": tip}),
        (lambda: repo.tag("v2", "old", "why"), {"tag v2": old}),
        (lambda: repo.rename_branch("a/b", "c"), {"branch a/b": None, "branch c": tip}),
        (lambda: repo.delete_branch("c"), {"branch c": None}),
        (lambda: repo.delete_tag("v1"), {"tag v1": None}),
        (lambda: repo.reset("old"), {"branch main": old}),
    ]
    tell(("refs", refs))
    for step, change in steps:
        refs = {name: oid for name, oid in {**refs, **change}.items() if oid is not None}
        tell(("will", refs))
        step()
        tell(("refs", refs))


def checkout(project: Path, tell: Tell) -> None:
    """Files written into the project."""
    repo = Repository(project)
    for name in ("old", "main", "v0"):
        repo.checkout(name)
        tell(("file", int(next(repo.log(max_count=1)).message.partition("=")[2])))


def repack(project: Path, tell: Tell) -> None:
    """Chunks stored anew, packs merged, git objects packed."""
    repo = Repository(project)
    repo.maintenance.repack()
    repo.history.consolidate(force=True)
    for number in range(400, 402):
        tell(("commit", commit_one(repo, number), number))


def git_filter(project: Path, tell: Tell) -> None:
    """Files that git's filter takes in."""
    files = GitFilter(project)
    for number in range(500, 503):
        tell(("manifest", file_of(number), files.clean("m.safetensors", _packets(file_of(number)))))
        files.finish()


def git_merge(project: Path, tell: Tell) -> None:
    """Versions of a file that git's merge driver averages."""
    files = GitFilter(project)
    base, ours, theirs = ({"base": weights(number)["base"]} for number in (800, 801, 802))
    texts = [files.clean("m.safetensors", _packets(safetensors.numpy.save(one))) for one in (base, ours, theirs)]
    files.finish()
    merged = settle(merge(*map(Manifest.from_bytes, texts)), RULES["average"], store=lambda: files.store)
    Folder(project / "merging").write("ours", merged.to_bytes())
    mean = (ours["base"].astype("<f8") / 2 + theirs["base"].astype("<f8") / 2).astype("<f4")
    tell(("manifest", safetensors.numpy.save({"base": mean}), (project / "merging" / "ours").read_bytes()))


def collect(project: Path, tell: Tell) -> None:
    """Garbage that lies beside what is kept, and is collected; what is found again comes out of the trash."""
    repo = Repository(project)
    for number, grace in ((700, 0.0), (701, 0.001), (702, 0.0)):
        repo.stage_weights(weights(number + 50), "garbage")
        repo.stage_weights(weights(number))
        repo.unstage("garbage")
        tell(("commit", repo.commit(f"n={number}", step=number).commit_hash, number))
        repo.maintenance.gc(grace=grace, prune_now=not grace)
    tell(("commit", commit_one(repo, 751), 751))


class _Meanwhile(Interposed):
    """A disk that has another process act when a pack of ours is there to be seen, and its name not yet durable."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act: Callable[[], None] | None = act

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if kind == "rename" and str(arguments[1]).endswith(".idx") and self.act is not None:
            act, self.act = self.act, None
            do()
            act()
            return None
        return do()


def two_writers(project: Path, tell: Tell) -> None:
    """Two processes commit the same weights; one of them relies on the other's pack."""
    ours, theirs = Repository(project), Repository(project)

    def act() -> None:
        tell(("commit", commit_one(theirs, 600), 600))

    ours.stage_weights(weights(600))
    with disk.use(_Meanwhile(act)):
        tell(("commit", ours.commit("n=600", allow_empty=True).commit_hash, 600))


def file_of(number: int) -> bytes:
    """The weights of a number as a safetensors file."""
    return safetensors.numpy.save(weights(number))


def _packets(data: bytes) -> PacketReader:
    out = io.BytesIO()
    writer = PacketWriter(out)
    writer.write_content(data)
    writer.end_content()
    reader = PacketReader(io.BytesIO(out.getvalue()))
    reader.begin_content()
    return reader


SCENARIOS: dict[str, Callable[[Path, Tell], None]] = {
    one.__name__: one
    for one in (
        commit,
        commit_async,
        add_files,
        track,
        keep,
        branch,
        checkout,
        repack,
        collect,
        git_filter,
        git_merge,
        two_writers,
    )
}


# -- afterwards


def check(project: Path, told: list[Told], *, power: bool) -> list[str]:
    """What was promised and is not kept; with a power cut, log lines since the last sync may be missing."""
    wrong = _check(project, told, power=power)
    return wrong or _go_on(project)


def _check(project: Path, told: list[Told], *, power: bool) -> list[str]:
    repo = Repository(project)
    wrong = [f"fsck: {one.message}" for one in repo.maintenance.fsck(read_data=True).damage]
    reached: dict[str, str] = {}
    for name in [*repo.branches(), *repo.tags()]:
        reached |= {one.commit_hash: one.message for one in repo.log(name)}
    for oid, message in reached.items():
        # A commit's name covers the names of its bytes, and fsck has read those: once for all is enough.
        if oid not in _KNOWN and not wrong and message.startswith("n="):
            if same(repo.get_all_weights(oid, MODEL), int(message.partition("=")[2])):
                _KNOWN.add(oid)
            else:
                wrong.append(f"the commit {oid} does not hold the weights {message}")
    for kind, *rest in told:
        if kind in ("commit", "landed") and rest[0] not in reached:
            wrong.append(f"the commit {rest} was acknowledged and is gone")
        elif kind == "manifest":
            wrong += _check_manifest(project, *rest)
    return wrong + _check_refs(repo, told) + _check_files(project, told) + _check_runs(repo, told, power=power)


def _check_manifest(project: Path, file: object, text: object) -> list[str]:
    assert isinstance(text, bytes)
    pieces: list[bytes] = []
    GitFilter(project).smudge(Manifest.from_bytes(text), lambda piece: pieces.append(bytes(piece)))
    return [] if b"".join(pieces) == file else ["a file comes back as another"]


def _check_refs(repo: Repository, told: list[Told]) -> list[str]:
    states = [rest[0] for kind, *rest in told if kind in ("will", "refs")]
    if not states:
        return []
    states = states[-2:] if told[-1][0] == "will" else states[-1:]
    allowed: list[dict[str, str]] = [state for state in states if isinstance(state, dict)]
    names = {name for state in allowed for name in state} | set(refs_of(repo))
    found = refs_of(repo)
    return [
        f"{name} is {found.get(name)}"
        for name in names
        if found.get(name) not in [state.get(name) for state in allowed]
    ]


def _check_files(project: Path, told: list[Told]) -> list[str]:
    """A file of the project is always one of those that were to be written, whole."""
    path = project / "model.safetensors"
    known = [file_of(number) for number in range(6)]
    return [] if path.read_bytes() in known else ["the file in the project is none that was checked out"]


def _check_runs(repo: Repository, told: list[Told], *, power: bool) -> list[str]:
    tracker = ExperimentTracker(repo)
    wrong: list[str] = []
    logged: dict[object, set[object]] = {}
    safe: dict[object, set[object]] = {}
    for kind, *rest in told:
        if kind == "log":
            logged.setdefault(rest[0], set()).add(rest[1])
        elif kind == "safe":
            safe[rest[0]] = set(logged.get(rest[0], ()))
    for run in tracker.list():
        points = [(point.value, point.step or 0) for point in run.metrics]
        if run.name == "during":
            promised = (safe if power else logged).get(run.experiment_id, set())
            wrong += [f"a point was never logged: {point}" for point in points if point[0] != point[1] / 7]
            wrong += [f"points were lost: {lost}" for lost in [promised - {step for _, step in points}] if lost]
            if ("ended", run.experiment_id) in told and str(run.status) != "completed":
                wrong.append(f"the run ended and is {run.status}")
        elif run.name == "before" and len(points) != 6:
            wrong.append("an old run lost points")
    told_of = {rest[0] for kind, *rest in told if kind in ("log", "safe", "ended")}
    found = {one.experiment_id: one for one in [*tracker.trash(), *tracker.list()]}
    wrong += [f"the run {run} is gone" for run in told_of - found.keys()]
    return wrong + [one for run in found.values() for one in _check_artifacts(run, told, power=power)]


def _check_artifacts(run: Experiment, told: list[Told], *, power: bool) -> list[str]:
    """Those that were kept are there, whether or not the run was deleted; and whatever is there is whole."""
    safe = told.index(("safe", run.experiment_id)) if ("safe", run.experiment_id) in told else 0
    promised = {
        rest[1]
        for kind, *rest in told[: safe if power else None]
        if [kind, *rest[:1]] == ["artifact", run.experiment_id]
    }
    there = {int(one.name.partition(".")[0]) for one in run.list_artifacts()}
    wrong = [f"artifacts were lost: {promised - there}"] if promised - there else []
    return wrong + [f"the artifact {one} is another" for one in there if run.load_artifact(f"{one}.bin") != kept(one)]


def _go_on(project: Path) -> list[str]:
    """The next commit, run and branch work, with nothing to unlock by hand."""
    repo = Repository(project)
    run = ExperimentTracker(repo).start("after")
    run.log("loss", 0.5, 1)
    made = commit_one(repo, 900)
    run.end()
    # What the scenarios were at when they were cut short.
    attempted = {f"{number}.{name}": one for number in _ATTEMPTED for name, one in weights(number).items()}
    repo.stage_weights(attempted)
    if not alike(repo.get_all_weights(repo.commit("again").commit_hash, MODEL), attempted):
        return ["what was attempted before cannot be committed again"]
    repo.create_branch("after", made)
    fresh = Repository(project)
    is_logged = len(ExperimentTracker(fresh).get(run.experiment_id).metrics) == 1
    return [] if is_logged and same(fresh.get_all_weights("after", MODEL), 900) else ["what came next went wrong"]
