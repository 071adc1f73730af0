"""`sp-profile migrate`: bring a profile to this release's version of the schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from .options import profile_argument, with_output
from .output import Output


@click.command()
@profile_argument
@with_output
def migrate(output: Output, profile: Path) -> None:
    """Say what brings PROFILE to this release's schema.

    Profiles 1.x need nothing. A major version that this release does not know is refused with
    exit code 4.

    \b
    Examples:
      sp-profile migrate profiles/smollm2-135m
    """
    from sp_profile.migrate import plan_migration

    found = plan_migration(profile)
    output.document({"schema": "sp.migrate", "written": None, **dataclasses.asdict(found)})
    output.line(f"version {found.version}, this release writes {found.current}")
    output.line("nothing to migrate: this release reads every 1.x as it is")
