"""Processes that live on: interrupted at any moment, shared by threads, forked.

What was acknowledged is kept, what comes next on the same objects works, and nothing hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coral import Commit, ConflictError, Repository
from coral.errors import CoralError, NothingToCommitError
from coral.experiments import ExperimentTracker, Run
from coral.testing.interrupts import Steps
from coral.testing.processes import Note

HOW = ("signals", "lines")
_HANGS_SECONDS = 40.0
_MEASURED = 3
_UNTAGGED = 0.99


def state(value: float) -> dict[str, np.ndarray]:
    """A model all of whose numbers are one, so that a mixture of two shows."""
    return {"w": np.full(3000, value, np.float32), "b": np.full(40, value, np.float32)}


def held(repo: Repository, ref: str) -> set[float]:
    """All numbers of a commit's model."""
    weights = repo.get_all_weights(ref, "model.safetensors")
    return {float(one) for array in weights.values() for one in np.unique(np.asarray(array))}


@dataclass
class Life:
    """A process's objects, and what was acknowledged to it.

    Attributes:
        value: of the next model, point, parameter and tag.
        commits: their values, by hash.
        tags: by name, the commit.
        points, params: of each run.
        ended: the runs that were ended.
    """

    repo: Repository
    tracker: ExperimentTracker
    value: int = 0
    commits: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: dict[str, set[int]] = field(default_factory=dict)
    params: dict[str, set[str]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, project: Path) -> Life:
        """Open a repository anew."""
        repo = Repository(project)
        return cls(repo, ExperimentTracker(repo))

    @property
    def run(self) -> Run:
        """The run that is active."""
        return self.tracker.active or self.tracker.start("living")

    def next(self) -> int:
        """A value that nothing had before."""
        self.value += 1
        return self.value

    # -- the verbs; each notes what was acknowledged, in one step

    def save(self) -> None:
        value = self.next()
        self.commits[self.repo.save(state(value), step=value).commit_hash] = value

    def save_beside(self) -> None:
        value = self.next()
        self.commits[self.repo.save(state(value), step=value, wait=False).result().commit_hash] = value

    def begin_saving(self) -> None:
        value = self.next()
        pending = self.repo.save(state(value), step=value, wait=False)
        self.repo.flush()
        self.commits[pending.result().commit_hash] = value

    def commit(self) -> None:
        value = self.next()
        self.repo.stage_weights(state(value))
        self.commits[self.repo.commit("staged", step=value).commit_hash] = value

    def tag(self) -> None:
        name, commit = f"t{self.next()}", self.repo.resolve("HEAD")
        self.repo.tag(name, commit)
        self.tags[name] = commit

    def log(self) -> None:
        run, value = self.run, self.next()
        run.log("m", float(value), value)
        self.points.setdefault(run.experiment_id, set()).add(value)

    def log_params(self) -> None:
        run, name = self.run, f"p{self.next()}"
        run.log_params({name: 1})
        self.params.setdefault(run.experiment_id, set()).add(name)

    def end(self) -> None:
        run = self.run
        run.end()
        self.ended.add(run.experiment_id)

    def start(self) -> None:
        if self.tracker.active is None:
            self.tracker.start("started")

    def and_all_of(self, others: Iterable[Life]) -> Life:
        """This one, to which is acknowledged what was to others, too."""
        for other in others:
            self.commits |= other.commits
            self.tags |= other.tags
            for mine, theirs in ((self.points, other.points), (self.params, other.params)):
                for run, values in theirs.items():
                    mine.setdefault(run, set()).update(values)  # type: ignore[arg-type]
        return self

    # -- afterwards

    def go_on(self) -> None:
        """What a program does after an interrupt: all of it works on the same objects."""
        self.save()
        self.log()
        with contextlib.suppress(NothingToCommitError):
            self.repo.commit("what was staged")
        self.end()
        self.tag()

    def check(self) -> list[str]:
        """What was acknowledged and is not there, or not so."""
        repo, wrong = Repository(self.repo.path), list[str]()
        reached: dict[str, Commit] = {}
        for name in repo.branches():
            reached |= {commit.commit_hash: commit for commit in repo.log(name)}
        for made in reached.values():
            is_ours = made.step is not None and not made.message.startswith("n=")
            if is_ours and held(repo, made.commit_hash) != {made.step}:
                wrong.append(f"the commit of step {made.step} holds {held(repo, made.commit_hash)}")
        for oid, value in self.commits.items():
            if oid not in reached or reached[oid].step != value:
                wrong.append(f"the commit of {value} was acknowledged and is gone")
        tags = repo.tags()
        wrong += [f"the tag {name} is gone" for name, oid in self.tags.items() if tags.get(name) != oid]
        wrong += [one.message for one in repo.maintenance.fsck(read_data=True).damage]
        return wrong + [one for run in {*self.points, *self.params, *self.ended} for one in self._check_run(repo, run)]

    def _check_run(self, repo: Repository, name: str) -> list[str]:
        run = ExperimentTracker(repo).get(name)
        points = Counter(point.step for point in run.metrics)
        lost = {step for step in self.points.get(name, set()) if points[step] != 1}
        lost |= self.params.get(name, set()) - set(run.params)  # type: ignore[arg-type]
        wrong = [f"lost, or twice: {sorted(map(str, lost))}"] if lost else []
        return wrong + (
            [f"the run was ended and is {run.status}"] if name in self.ended and not run.status.is_final else []
        )


VERBS: tuple[Callable[[Life], None], ...] = (
    *(Life.save, Life.save_beside, Life.begin_saving, Life.commit, Life.tag),
    *(Life.log, Life.log_params, Life.end, Life.start),
)


# -- interrupts


def interrupt(note: Note, project: Path, how: str, count: int, seed: int) -> tuple[int, list[str]]:
    """Interrupt verbs so many times, by real signals or at lines of coral's; how many were, and what is wrong."""
    warnings.simplefilter("ignore")
    chance, life, wrong, hits = random.Random(seed), Life.begin(project), list[str](), 0
    interrupts = _Signals(life) if how == "signals" else _Lines(life)
    tried = 0
    while hits < count and tried < 5 * count and not wrong:
        tried += 1
        note(tried)  # still alive
        verb = chance.choice(VERBS)
        faulthandler.dump_traceback_later(_HANGS_SECONDS, exit=True)
        try:
            hit = interrupts.during(verb, chance.random())
            hits += hit
            if hit:
                life.go_on()
        except BaseException:
            wrong.append(f"after {verb.__name__} at {interrupts.place}: {traceback.format_exc(limit=-6)}")
        finally:
            faulthandler.cancel_dump_traceback_later()
    try:
        life.repo.unstage()
        life.repo.maintenance.gc(prune_now=True)
        wrong += life.check()
    except CoralError:
        wrong.append(traceback.format_exc(limit=-6))
    return hits, wrong


class _Signals:
    """Real ones, after a part of the time that a verb takes."""

    def __init__(self, life: Life) -> None:
        self.place = ""
        self._life = life
        self._seconds = {verb: min(self._measure(verb) for _ in range(_MEASURED)) for verb in VERBS}
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _measure(self, verb: Callable[[Life], None]) -> float:
        begun = time.perf_counter()
        verb(self._life)
        return time.perf_counter() - begun

    def during(self, verb: Callable[[Life], None], part: float) -> bool:
        """Call a verb; whether it was interrupted."""
        sender = threading.Thread(target=self._send, args=(part * 1.2 * self._seconds[verb],))
        try:
            try:
                sender.start()
                verb(self._life)
            finally:
                sender.join()  # an interrupt of which is one, too
        except KeyboardInterrupt:
            sender.join()
            return True
        return False

    @staticmethod
    def _send(pause: float) -> None:
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)


class _Lines:
    """At a line of coral's own code."""

    def __init__(self, life: Life) -> None:
        self.place = ""
        self._life = life
        self._lines = {verb: self._count(verb) for verb in VERBS}

    def _count(self, verb: Callable[[Life], None]) -> int:
        steps = Steps()
        steps.run(lambda: verb(self._life))
        return steps.count

    def during(self, verb: Callable[[Life], None], part: float) -> bool:
        """Call a verb; whether it was interrupted."""
        steps = Steps(1 + int(part * self._lines[verb]))
        hit = steps.run(lambda: verb(self._life))
        self.place = steps.place
        return hit


# -- threads


def share(note: Note, project: Path, threads: int, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Have threads share one repository object and one run for some seconds; how many calls there were, and what is
    wrong: each commit holds what its caller passed, or the call was refused."""
    warnings.simplefilter("ignore")
    repo = Repository(project)
    tracker = ExperimentTracker(repo)
    tracker.start("shared")
    lives = [Life(repo, tracker, value=1_000_000 * (number + 1)) for number in range(threads)]
    until, wrong, calls = time.monotonic() + seconds, list[str](), [0] * threads
    verbs = [verb for verb in VERBS if verb not in (Life.end, Life.start, Life.tag)]

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while time.monotonic() < until and not wrong:
            try:
                # Tags are few: each is a way down the whole history to whoever checks it.
                (chance.choice([*verbs, _read]) if chance.random() < _UNTAGGED else Life.tag)(lives[number])
            except ConflictError:
                pass  # refused
            except BaseException:
                wrong.append(traceback.format_exc(limit=-6))
            calls[number] += 1

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) and time.monotonic() < until + _HANGS_SECONDS:
        note(sum(calls))  # still alive
        time.sleep(0.2)
    if any(worker.is_alive() for worker in workers):
        faulthandler.dump_traceback(all_threads=True)
        return sum(calls), ["a thread hangs"]
    tracker.end()
    return sum(calls), wrong + lives[0].and_all_of(lives[1:]).check()


def _read(life: Life) -> None:
    if life.commits:
        oid, value = next(reversed(life.commits.items()))
        if held(life.repo, oid) != {value}:
            raise AssertionError(f"the commit of {value} holds {held(life.repo, oid)}")
    life.repo.status()


# -- forks


def fork(note: Note, project: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """Fork while threads save and log; the children save and read, each on a branch of its own."""
    warnings.simplefilter("ignore")
    repo = Repository(project)
    tracker = ExperimentTracker(repo)
    run = tracker.start("parent")
    Life(repo, tracker).save()  # that children find what they look for
    over, wrong = threading.Event(), list[str]()

    def work(number: int) -> None:
        life = Life(repo, tracker, value=1_000_000 * (number + 1))
        while not over.is_set():
            try:
                (life.save if number else life.save_beside)()
                run.log_params({f"p{number}": time.monotonic()})
                _read(life)
            except ConflictError:
                pass
            except BaseException:
                wrong.append(traceback.format_exc(limit=-6))
                return

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
    for worker in workers:
        worker.start()
    chance = random.Random(seed)
    for number in range(count):
        note(number)  # still alive
        time.sleep(chance.random() * 0.03)
        status = _fork(lambda number=number: _live(repo, number))  # type: ignore[misc]
        if status:
            wrong.append(f"the child {number} ended with {status}")
    over.set()
    for worker in workers:
        worker.join(_HANGS_SECONDS)
    run.end()
    wrong += [one.message for one in Repository(project).maintenance.fsck(read_data=True).damage]
    return count, wrong + [f"child {number}" for number in range(count) if held(repo, f"child{number}") != {number}]


def _live(repo: Repository, number: int) -> None:
    repo.create_branch(f"child{number}")
    repo.pin(f"child{number}")
    repo.get_all_weights(name="model.safetensors")["w"]
    repo.save(state(number), wait=False).result()


def _fork(job: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(int(_HANGS_SECONDS))
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
