"""Train three small language models, lose one to kill -9, resume it, and check the best weights out.

The models read bytes of Python's own standard library. Each learning rate has its branch; each validation is a
commit of model and optimizer. Run it with ``make demo``, or ``python examples/train_and_pick_best.py --quick``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coral import Repository
from coral.experiments import Experiment, ExperimentTracker

LEARNING_RATES = {"lr-3e-4": 3e-4, "lr-1e-3": 1e-3, "lr-3e-3": 3e-3}
DOOMED = "lr-1e-3"  # this run is killed half-way, on purpose
TINY = {"width": 32, "depth": 1, "heads": 2, "context": 16}


class LanguageModel(nn.Module):
    """A transformer that predicts the next byte of a text."""

    def __init__(self, width: int = 256, depth: int = 3, heads: int = 4, context: int = 128) -> None:
        super().__init__()
        self.context = context
        self.byte = nn.Embedding(256, width)
        self.position = nn.Embedding(context, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of the byte after each of ``tokens``, a batch of ``context`` bytes each."""
        hidden = self.byte(tokens) + self.position.weight
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.output(self.norm(hidden))
        return logits

    def loss(self, text: Tensor, starts: Tensor) -> Tensor:
        """The mean cross-entropy, in nats a byte, over the windows of ``text`` at ``starts``."""
        windows = torch.stack([text[start : start + self.context + 1] for start in starts.tolist()]).long()
        return nn.functional.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def standard_library_text() -> tuple[Tensor, Tensor]:
    """The standard library's sources as bytes to train and to validate on; every tenth file validates."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    validation = b"".join(path.read_bytes() for path in files[::10])
    training = b"".join(path.read_bytes() for number, path in enumerate(files) if number % 10)
    return torch.frombuffer(bytearray(training), dtype=torch.uint8), torch.frombuffer(
        bytearray(validation), dtype=torch.uint8
    )


def validate(model: LanguageModel, text: Tensor) -> float:
    """The loss on 32 windows spread evenly over ``text``."""
    starts = torch.linspace(0, len(text) - model.context - 1, 32).long()
    with torch.no_grad():
        return model.eval().loss(text, starts).item()


@dataclass(frozen=True)
class Plan:
    """What every run of the demo shares."""

    folder: Path
    steps: int
    validate_every: int
    shape: Mapping[str, int]

    def model(self) -> LanguageModel:
        """An untrained model."""
        return LanguageModel(**self.shape)


def train(plan: Plan, branch: str, resume: str | None = None, die_at: int | None = None) -> None:
    """One run, in a process of its own; ``resume`` names the lost run to go on from, ``die_at`` a step to die after."""
    torch.set_num_threads(1)
    repo = Repository(plan.folder)
    tracker = ExperimentTracker(repo)
    training_text, validation_text = standard_library_text()
    model = plan.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATES[branch])

    if resume is None:
        repo.pin(branch)  # HEAD now means this branch to this repo, and to no other
        repo.load_into(model)
        tracker.start(name=branch, params={"lr": LEARNING_RATES[branch]}, objective={"val_loss": "min"})
        torch.manual_seed(0)
        done = 0
    else:
        tracker.resume(resume)
        repo.load_into(model, optimizer=optimizer)  # and the random number generators
        (last,) = repo.log(max_count=1)
        done = last.step or 0

    for step in range(done + 1, plan.steps + 1):
        starts = torch.randint(len(training_text) - model.context - 1, (8,))
        loss = model.train().loss(training_text, starts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracker.log("loss", loss, step=step)
        if step % plan.validate_every == 0:
            metrics = {"val_loss": validate(model, validation_text)}
            tracker.log_metrics(metrics, step=step)
            commit = repo.save(model, optimizer, step=step, metrics=metrics)
            print(
                f"  {branch}  step {step:4}  val_loss {metrics['val_loss']:.4f}  commit {commit.short_hash}", flush=True
            )
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    tracker.end()


def train_all(plan: Plan) -> None:
    """The three runs side by side; the doomed one dies half-way and is resumed from its last commit."""
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["torch", "torch._dynamo", "safetensors.torch", "coral.experiments"])
    die_at = (plan.steps + plan.validate_every) // 2  # between two commits: what came since the last is lost
    processes = {
        branch: fresh.Process(target=train, args=(plan, branch, None, die_at if branch == DOOMED else None))
        for branch in LEARNING_RATES
    }
    for process in processes.values():
        process.start()
    processes[DOOMED].join()

    tracker = ExperimentTracker(Repository(plan.folder))
    (lost,) = tracker.get_by_name(DOOMED)
    print(f"  {DOOMED}  killed at step {die_at}: {ending(lost)}; going on from its last commit")
    processes[DOOMED] = fresh.Process(target=train, args=(plan, DOOMED, lost.experiment_id))
    processes[DOOMED].start()
    for branch, process in processes.items():
        process.join()
        if process.exitcode:
            sys.exit(f"{branch} ended with exit code {process.exitcode}")


def ending(run: Experiment) -> str:
    """How a run ended, and why if it failed."""
    return f"{run.status} ({run.failure['kind']})" if run.failure else str(run.status)


def show_runs(tracker: ExperimentTracker) -> None:
    """One line a run, the oldest first."""
    print(f"\n{'run':<14}{'name':<10}{'status':<14}{'last step':>9}  {'best val_loss':>13}  child of")
    for run in sorted(tracker.list(), key=lambda run: run.created_at):
        last, best = run.get_latest_metric("loss"), run.get_best_metric("val_loss", mode="min")
        print(
            f"{run.experiment_id:<14}{run.name:<10}{ending(run):<14}{last.step if last else 0:>9}"
            f"  {best.value if best else float('nan'):>13.4f}  {run.parent_experiment or ''}"
        )


def torch_save_bytes(repo: Repository, model: LanguageModel) -> tuple[int, int]:
    """How many checkpoints all runs committed, and the bytes of the same ones written by ``torch.save``."""
    commits = {commit.commit_hash for branch in repo.branches() for commit in repo.log(branch) if commit.step}
    optimizer = torch.optim.AdamW(model.parameters())
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkpoint.pt")
        for commit in commits:
            repo.load_into(model, commit, optimizer)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            total += file.stat().st_size
    return len(commits), total


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_best_out(repo: Repository, tracker: ExperimentTracker, model: LanguageModel) -> bool:
    """Check the best step's weights out by the command line; whether they still give the loss that was logged."""
    (best,) = tracker.find_best("val_loss", mode="min", status=None, limit=1)
    print(f"\nbest: {best['name']} at step {best['best_step']}, commit {str(best['commit_hash'])[:10]}")
    print("$ coral checkout best:val_loss", flush=True)
    subprocess.run([sys.executable, "-m", "coral", "checkout", "best:val_loss"], cwd=repo.path, check=True)

    model.load_state_dict(load_file(repo.path / "model.safetensors"))
    recomputed = validate(model, standard_library_text()[1])
    equal = recomputed == best["best_value"]
    print(f"\nval_loss logged in training       {best['best_value']!r}")
    print(f"val_loss of model.safetensors     {recomputed!r}  ({'equal' if equal else 'NOT EQUAL'})")
    return equal


def main() -> int:
    """Run the demo; 0 when the best weights give back the loss that was logged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to make the repository (default: a new temporary folder)")
    parser.add_argument("--steps", type=int, default=120, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4 steps of a tiny model a run: to see that it works")
    arguments = parser.parse_args()
    steps, validations, shape = (4, 2, TINY) if arguments.quick else (arguments.steps, 8, {})
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="coral-demo-"))
    plan = Plan(folder, steps, max(1, steps // validations), shape)
    if (plan.folder / ".coral").exists():
        parser.error(f"{plan.folder} holds a coral repository already")

    started = time.monotonic()
    torch.set_num_threads(1)  # as the runs do: the same sums in the same order
    torch.manual_seed(0)
    model = plan.model()
    repo = Repository(plan.folder, init=True)
    repo.save(model, message="Untrained model")
    for branch in LEARNING_RATES:
        repo.create_branch(branch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"Training a {parameters / 1e6:.1f} M parameter model three times, {steps} steps each, in {plan.folder}")
    train_all(plan)

    tracker = ExperimentTracker(repo)
    show_runs(tracker)
    count, torch_bytes = torch_save_bytes(repo, model)
    packs, history = folder_bytes(repo.folder.root / "packs"), folder_bytes(repo.folder.root / ".git")
    coral_bytes = packs + history
    print(f"\n{count} checkpoints of model and optimizer:")
    print(f"  torch.save, a file each   {torch_bytes / 1e6:8.1f} MB")
    print(f"  coral, packs and history  {coral_bytes / 1e6:8.1f} MB  ({coral_bytes / torch_bytes:.2f} of it)")
    equal = check_best_out(repo, tracker, model)
    print(f"\nTook {time.monotonic() - started:.0f} s. The repository stays in {plan.folder}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
