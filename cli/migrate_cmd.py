"""`sp-profile migrate`: bring a profile to this release's version of the schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from .options import with_output
from .output import Output


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@with_output
def migrate(output: Output, profile: Path) -> None:
    """Say what it takes to bring PROFILE to this release's schema; profiles 1.x need nothing.

    A major version that this release does not know is refused with exit code 4.
    """
    from sp_profile.migrate import plan_migration

    found = plan_migration(profile)
    output.document({"schema": "sp.migrate", "written": None, **dataclasses.asdict(found)})
    output.line(f"version {found.version}, this release writes {found.current}")
    output.line("nothing to migrate: this release reads every 1.x as it is")
