"""Bringing a profile to this release's major version of the schema; so far there is only one.

A minor version never needs this: its reader fills in what an older one did not have. A new major
version adds one `Step` to STEPS, a golden profile, and a JSON Schema beside the older ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import SCHEMA_VERSION, load_profile

Document = dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """From major version `major` to the next: changes a parsed profile.json, but its checksum."""

    major: int
    what: str
    change: Callable[[Document], Document]


STEPS: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """version: of the profile as it is. current: of this release. steps: what it takes."""

    version: str
    current: str
    steps: tuple[str, ...]


def plan_migration(path: str | Path) -> Migration:
    """What it takes to bring a profile to the current version; nothing, for every 1.x.

    Raises UsageError where there is no profile, CorruptArtefactError where it is damaged or of a
    major version that this release does not know.
    """
    profile = load_profile(path)
    steps = steps_from(major_of(profile.schema_version), STEPS)
    return Migration(
        version=profile.schema_version,
        current=SCHEMA_VERSION,
        steps=tuple(step.what for step in steps),
    )


def steps_from(major: int, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that lead from `major` to the last version, in order.

    Raises CorruptArtefactError where no unbroken chain of steps leads on from `major`.
    """
    wanted = [step for step in steps if step.major >= major]
    numbers = [step.major for step in wanted]
    if numbers != list(range(major, major + len(wanted))):
        raise CorruptArtefactError(
            f"schema_version: nothing migrates major version {major}", hint="make the profile anew"
        )
    return tuple(wanted)


def major_of(version: str) -> int:
    """The major version of a checked schema_version."""
    return int(version.split(".")[0])
