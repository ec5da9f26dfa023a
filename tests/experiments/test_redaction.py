"""Secrets: what is one gets nowhere on the disk, and what is none stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from coral.experiments import ExperimentTracker, redaction
from coral.experiments.redaction import REDACTED, is_secret_name, redact_params, redact_text
from coral.repository import Repository

# Made up, in pieces, so that no scanner of this source takes them for real ones.
TOKENS = {
    "github": "ghp_" + "a1B2" * 9,
    "github, fine-grained": "github_pat_" + "11ABCDEFG0_" + "x1Y2" * 10,
    "gitlab": "glpat-" + "a1B2c3D4" * 3,
    "hugging face": "hf_" + "AbCdEfGh" * 4 + "ij",
    "aws": "AKIA" + "ABCDEFGH12345678",
    "openai": "sk-" + "proj-" + "a1B2c3D4" * 6,
    "anthropic": "sk-" + "ant-api03-" + "a1B2c3D4" * 6,
    "slack": "xoxb" + "-123456789012-abcdefABCDEF",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl",
    "pem": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIB\nabc\n-----END RSA PRIVATE KEY-----",
    "pem, cut": "-----BEGIN " + "PRIVATE KEY-----\nMIIB",
}
SECRET_NAMES = [
    *("api_key", "apiKey", "API_KEY", "openai.api_key", "token", "hf_token", "HF_TOKEN", "authToken", "access-token"),
    *("secret", "client_secret", "password", "db_password", "DB.PASSWORD", "credentials", "aws_secret_access_key"),
    *("private_key", "Authorization", "wandb_api_key", "aws_access_key_id", "passphrase", "apikey"),
]
ORDINARY = {
    "tokenizer": "bpe-32k",
    "max_tokens": "4096",
    "tokens": "1e9",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "mask_token": "[MASK]",
    "token_type": "word",
    "api_key_env": "OPENAI_API_KEY",
    "password_file": "/run/secrets/db",
    "secretary": "Ada",
    "key": "attention.key",
    "keys": "q,k,v",
    "author": "Ada <ada@example.org>",
    "model": "sk-learn-random-forest-classifier-with-many-words",
    "optimizer": "adamw_torch_fused",
    "dataset": "https://huggingface.co/datasets/glue",
    "remote": "ssh://git@github.com/org/repo.git",
    "scp": "git@github.com:org/repo.git",
    "hash": "0123456789abcdef0123456789abcdef01234567",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "checkpoint": "s3://bucket/hf_models/llama-3-8b_step-1000",
    "at": "lr@0.1:warmup@100",
    "text": "a password is a word",
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing was warned of yet."""
    redaction._warned.clear()
    yield
    redaction._warned.clear()


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_of_well_known_make(kind: str) -> None:
    """Wherever it stands in a text, none of it stays, and all around it does."""
    with pytest.warns(UserWarning, match="notes"):
        assert redact_text(f"before {TOKENS[kind]}", "notes") == f"before {REDACTED}"
    assert redact_params({"a": [{"b": TOKENS[kind]}]}) == {"a": [{"b": REDACTED}]}


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_that_say_so(name: str) -> None:
    """A text under such a name is not kept, nor any text below it; numbers and nothing are no secrets."""
    with pytest.warns(UserWarning):
        assert redact_params({name: "hunter2"}) == {name: REDACTED}
    assert redact_params({name: {"user": "x", "n": 3}}) == {name: {"user": REDACTED, "n": 3}}
    assert redact_params({name: 5, "b": {name: None}, "c": {name: ""}}) == {name: 5, "b": {name: None}, "c": {name: ""}}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_parameters_stay(name: str) -> None:
    """No hyper-parameter, path, hash or address loses a letter, and nobody is warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert redact_params({name: ORDINARY[name]}) == {name: ORDINARY[name]}
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("https://token@host/x?a=b", "https://[redacted]@host/x?a=b"),
        ("postgresql://u:p%40@db:5432/x", "postgresql://[redacted]@db:5432/x"),
        ("see https://a:b@c.d, or not", "see https://[redacted]@c.d, or not"),
        ("https://h/x?X-Amz-Signature=abc&y=1", "https://h/x?X-Amz-Signature=[redacted]&y=1"),
        ("https://h/x?a=1&access_token=abc#top", "https://h/x?a=1&access_token=[redacted]#top"),
        ("https://h/a@b", "https://h/a@b"),
    ],
)
def test_urls(url: str, kept: str) -> None:
    """What lets somebody in is taken out of a URL, and the rest still says where it leads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert redact_text(url, "x") == kept


def test_nothing_of_it_is_on_the_disk(repo: Repository, tracker: ExperimentTracker) -> None:
    """By whichever way it comes, no file below ``.coral`` holds the secret; one warning says which were left out."""
    token = TOKENS["hugging face"]
    with pytest.warns(UserWarning, match="'hf_token'") as warned:
        run = tracker.start(
            f"run {token}",
            f"why {token}",
            {"hf_token": "plain-secret", "url": f"https://{token}@host", "lr": 0.1},
            labels={"password": "plain-secret", "team": "a"},
            notes=token,
        )
        run.log_params({"nested": {"api_key": "plain-secret"}})
        run.set_notes(f"note {token}")
        run.set_labels({"api_key": "plain-secret"})
        run.log("loss", 1.0, metadata={"secret": "plain-secret"})
        run.fail(f"401 for https://user:plain-secret@host and {token}")
    assert len([one for one in warned if issubclass(one.category, UserWarning)]) == 1
    for path in repo.folder.root.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"plain-secret" not in data and token.encode() not in data, path
    found = ExperimentTracker(repo).get(run.experiment_id)
    assert found.params["lr"] == 0.1 and found.params["hf_token"] == REDACTED and found.labels["team"] == "a"
