"""Signed commits: made and checked with the user's own keys, and nothing else is taken for one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from coral import Repository
from coral.errors import CorruptionError, GitCommandError, SignatureError, UsageError
from coral.git import signing
from coral.ids import CommitHash
from coral.verbs.commit import root_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with an ssh key, whom he trusts himself."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in ("GIT_CONFIG_GLOBAL", "GNUPGHOME", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    make_key(home / ".ssh" / "id")
    public = (home / ".ssh" / "id.pub").read_text()
    (home / "allowed").write_text(f"me@example.org {public}")
    for key, value in {
        "gpg.format": "ssh",
        "user.signingkey": "~/.ssh/id",
        "gpg.ssh.allowedSignersFile": "~/allowed",
    }.items():
        subprocess.run(["git", "config", "--global", key, value], check=True)
    return home


class Model(torch.nn.Module):
    """What the commits hold."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(100_000))
        self.b = torch.nn.Parameter(torch.zeros(64))


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with one commit that is not signed."""
    found = Repository(tmp_path / "project", init=True)
    found.stage_weights({"w": np.arange(100_000, dtype="<f4"), "b": np.zeros(64, "<f4")})
    found.commit("first")
    return found


def signed(repo: Repository, value: float = 1) -> CommitHash:
    repo.stage_weights({"w": np.full(100_000, value, "<f4")}, update=True)
    return repo.commit("signed", sign=True).commit_hash


def test_a_signed_commit_verifies(repo: Repository) -> None:
    """git itself verifies it, and the signature covers the BLAKE3 root of the manifests."""
    commit = signed(repo)
    found = repo.maintenance.verify(commit, read_data=True)
    assert found.commit == commit
    assert "me@example.org" in found.report
    assert found.nbytes == 400_000 + 256
    assert repo.history.commit(commit).root == found.root == root_of(repo.history, repo.history.parts(commit))
    done = subprocess.run(["git", "-C", repo.folder.root, "verify-commit", commit], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run(["git", "-C", repo.folder.root, "fsck", "--strict"], check=True, capture_output=True)
    model = Model()
    repo.load_into(model, commit, require_signed=True)
    assert float(model.w.detach().sum()) == 100_000


def test_unsigned_commits_are_refused(repo: Repository) -> None:
    """Without a signature nothing is loaded where one is required."""
    with pytest.raises(SignatureError, match="not signed"):
        repo.maintenance.verify()
    with pytest.raises(SignatureError):
        repo.load_into(Model(), require_signed=True)


def test_another_key_is_refused(repo: Repository, home: Path) -> None:
    """A signature by a key that the user does not list is none."""
    make_key(home / ".ssh" / "other")
    repo.stage_weights({"w": np.ones(10, "<f4")})
    commit = repo.commit("mine?", sign=str(home / ".ssh" / "other")).commit_hash
    with pytest.raises(SignatureError, match="trusted"):
        repo.maintenance.verify(commit)


def test_a_changed_commit_is_refused(repo: Repository) -> None:
    """A signature taken over to another commit, or one whose manifests are others, is refused."""
    commit = signed(repo)
    data = repo.history._handle.read(commit)[1]
    forged = repo.history._handle.write("commit", data.replace(b"signed\n", b"forged\n", 1))
    with pytest.raises(SignatureError, match="trusted"):
        repo.maintenance.verify(forged)


def test_a_signature_without_the_root_is_refused(repo: Repository) -> None:
    """git's own signature covers SHA-1 alone; that is not enough."""
    tree = subprocess.run(
        ["git", "-C", repo.folder.root, "rev-parse", "HEAD^{tree}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    made = subprocess.run(
        [
            "git",
            "-C",
            repo.folder.root,
            "-c",
            "user.name=n",
            "-c",
            "user.email=e",
            "commit-tree",
            "-S",
            "-m",
            "m",
            tree,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert signing.verify(repo.history.git_dir, made, folder=repo.path).good
    with pytest.raises(SignatureError, match="covers no root"):
        repo.maintenance.verify(made)


def test_missing_chunks_are_told(repo: Repository) -> None:
    """What is signed and not here is damage."""
    commit = signed(repo)
    for path in (repo.folder.root / "packs").iterdir():
        path.unlink()
    with pytest.raises(CorruptionError):
        Repository(repo.path).maintenance.verify(commit)


def test_no_program_of_a_repository_s_is_run(repo: Repository, tmp_path: Path) -> None:
    """Programs that a repository's own configuration names, the project's or the history's, are never run."""
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\nexit 0\n")
    evil.chmod(0o755)
    subprocess.run(["git", "init", "-q", repo.path], check=True)
    for folder in (repo.path, repo.folder.root):
        for key in ("gpg.program", "gpg.ssh.program", "gpg.openpgp.program", "gpg.x509.program"):
            subprocess.run(["git", "-C", folder, "config", key, evil], check=True)
    subprocess.run(["git", "-C", repo.folder.root, "config", "gpg.ssh.allowedSignersFile", "/dev/null"], check=True)
    commit = signed(Repository(repo.path))
    repo.maintenance.verify(commit)
    assert not (tmp_path / "pwned").exists()


def test_wrong_settings(repo: Repository) -> None:
    """No key, a key that is an option, an unknown format and a program that fails are told; nothing is committed."""
    before = repo.resolve("HEAD")
    repo.stage_weights({"w": np.ones(10, "<f4")})
    for key, value, error in (
        ("user.signingkey", "/no/such/key", GitCommandError),
        ("gpg.format", "wax", UsageError),
        ("gpg.format", "ssh", GitCommandError),
        ("user.signingkey", "-Osomething", UsageError),
        ("user.signingkey", "", UsageError),
    ):
        subprocess.run(["git", "config", "--global", key, value], check=True)
        with pytest.raises(error):
            repo.commit("signed", sign=True)
    assert repo.resolve("HEAD") == before


@pytest.mark.skipif(not os.path.exists("/usr/bin/gpg"), reason="GnuPG is not installed: its signatures are not tested")
def test_gpg(repo: Repository, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenPGP keys work as ssh keys do."""
    folder = Path("/tmp") / f"gnupg-{os.getpid()}"  # a socket's path must be short
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(folder))
    try:
        subprocess.run(
            ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "me <me@example.org>"],
            check=True,
            capture_output=True,
        )
        subprocess.run(["git", "config", "--global", "gpg.format", "openpgp"], check=True)
        subprocess.run(["git", "config", "--global", "user.signingkey", "me@example.org"], check=True)
        assert "me@example.org" in repo.maintenance.verify(signed(repo)).report
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], check=False)
        subprocess.run(["rm", "-rf", folder], check=False)


def test_a_replaced_commit_is_not_the_one_that_was_signed(repo: Repository) -> None:
    """git shows a replacement in a commit's place; what is verified is the commit that the weights are read from."""
    good = signed(repo)
    handle = repo.history._handle
    forged_parts = {"model.safetensors": repo.history.part(repo.resolve("HEAD~1"), "model.safetensors")}
    root = root_of(repo.history, {name: oid for name, oid in forged_parts.items() if oid})
    tree = repo.history._object(repo.resolve("HEAD~1")).tree
    text = handle.read(good)[1].decode()
    text = text.replace(text.split("\n")[0], f"tree {tree}", 1)
    text = text.replace(repo.history.commit(good).root or "", root)
    forged = handle.write("commit", text.encode())
    replace = repo.history.git_dir / "refs/replace" / forged
    replace.parent.mkdir(parents=True)
    replace.write_text(good + "\n")
    assert "gpgsig" in text and forged != good
    with pytest.raises(SignatureError, match="no signature that is trusted"):
        repo.maintenance.verify(forged)
    assert repo.maintenance.verify(good).commit == good


def test_revoked_keys_stay_revoked(repo: Repository, home: Path) -> None:
    """A repository's own configuration does not switch off the user's list of revoked keys."""
    commit = signed(repo)
    revoked = home / "revoked"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, home / ".ssh" / "id.pub"], check=True)
    subprocess.run(["git", "config", "--global", "gpg.ssh.revocationFile", str(revoked)], check=True)
    empty = home / "empty"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", empty, "/dev/null"], check=True)
    subprocess.run(["git", "-C", repo.folder.root, "config", "gpg.ssh.revocationFile", str(empty)], check=True)
    subprocess.run(["git", "-C", repo.folder.root, "config", "gpg.minTrustLevel", "never"], check=True)
    with pytest.raises(SignatureError):
        repo.maintenance.verify(commit)
