"""``coral verify``: whether a commit is what somebody signed whom you trust."""

from __future__ import annotations

from dataclasses import asdict

import click

from coral.cli.complete import complete_ref
from coral.cli.look.output import json_option, print_json, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("ref", default="HEAD", shell_complete=complete_ref)
@click.option("--read-data", is_flag=True, help="Read and verify every byte, too.")
@json_option
@pass_session
def command(session: Session, ref: str, read_data: bool, as_json: bool) -> None:
    """Check that the commit REF is just what somebody signed whom you trust.

    The signature must be good by git's own rules (gpg.ssh.allowedSignersFile, or gpg's keyring), and must cover the
    manifests that the commit holds; their tensors must be here. Exits with 10 when it is not so.

    \b
    Examples:
      coral verify
      coral verify v1.0 --read-data
    """
    repo = session.open()
    with progress_bar("verifying", None, quiet=session.quiet) as progress:
        verified = repo.maintenance.verify(ref, read_data=read_data, progress=progress)
    if as_json:
        print_json(asdict(verified))
        return
    session.say(f"{verified.commit[:10]} is what was signed")
    session.say(verified.report)
    if read_data:
        session.say(f"{size(verified.nbytes)} read and verified")
