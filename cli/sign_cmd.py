"""`sp-profile sign`: a detached minisign signature over profile.json."""

from __future__ import annotations

from pathlib import Path

import click

from sp_runtime.errors import UsageError

from .options import path_option, profile_argument, with_output
from .output import Output

_MAX_PASSWORD = 1 << 12


@click.command()
@profile_argument
@path_option("--key", "minisign secret key file.", required=True)
@path_option(
    "--password-file",
    "Holds the key's password in its first line; asked for on a terminal if left out.",
)
@with_output
def sign(output: Output, profile: Path, key: Path, password_file: Path | None) -> None:
    """Sign PROFILE with a minisign key.

    profile.json.minisig appears beside its profile.json, which holds the hashes of all tables, so
    they are signed with it. Keys are made with `minisign -G`. Check with `sp-profile verify
    --public-key`.

    \b
    Examples:
      sp-profile sign profiles/smollm2-135m --key ~/.minisign/minisign.key
    """
    from sp_profile.signing import is_encrypted, sign_profile

    password = None
    if is_encrypted(key):
        password = _password(password_file)
    target = sign_profile(profile, key, password=password)
    output.document({"schema": "sp.sign", "signature": str(target)})
    output.line(f"signature {target}")


def _password(file: Path | None) -> str:
    if file is None:
        password: str = click.prompt("password of the key", hide_input=True, err=True)
        return password
    try:
        with open(file, "rb") as opened:
            first = opened.read(_MAX_PASSWORD).split(b"\n")[0]
        return first.rstrip(b"\r").decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: no password can be read from it") from error
