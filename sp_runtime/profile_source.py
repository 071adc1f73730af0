"""Where a profile is: a local folder, its profile.json, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from sp_runtime.errors import UsageError
from sp_runtime.hub import HubName, download, parse_hub_name
from sp_runtime.profile_rules import PROFILE_NAME
from sp_runtime.strict_json import shown

SIGNATURE_NAME = f"{PROFILE_NAME}.minisig"
CARD_NAME = "README.md"
SETTINGS_NAME = "config.toml"
_BESIDE = (CARD_NAME, SETTINGS_NAME)


def find_profile(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    tables: bool = False,
) -> Path:
    """The local profile.json that a name stands for, fetched from the hub where need be.

    name: a folder, a profile.json, or `owner/name[@revision]` of the hub (see `parse_hub_name`); a
        local folder of that name wins.
    revision, subfolder: of the repository; they win over those in the name.
    tables: fetch every file that the profile lists too, of the same commit; a local folder's files
        are left as they are.

    Raises UsageError where there is no profile, UnsupportedError without huggingface_hub.
    """
    given = Path(name)
    is_local = given.name == PROFILE_NAME or os.path.exists(given)
    place = None if is_local else parse_hub_name(os.fspath(name))
    if place is None:
        if revision is not None:
            raise UsageError(
                f"a revision belongs to a repository, and {shown(str(name))} is none",
                hint="leave revision out",
            )
        folder = given / (subfolder or "")
        return folder if folder.name == PROFILE_NAME else folder / PROFILE_NAME
    if revision is not None or subfolder is not None:
        place = dataclasses.replace(
            place,
            revision=revision or place.revision,
            subfolder=place.subfolder if subfolder is None else subfolder.strip("/"),
        )
    return _fetch(place, tables=tables)


def _fetch(place: HubName, *, tables: bool) -> Path:
    try:
        folder = download(place, (PROFILE_NAME, SIGNATURE_NAME))
    except UsageError as error:
        raise UsageError(
            f"no profile at {place}: no such folder; {error.message}", hint=error.hint
        ) from error
    file = folder / PROFILE_NAME
    if tables and file.is_file():
        from sp_runtime.profile import parse_profile
        from sp_runtime.strict_json import read_bytes

        profile = parse_profile(read_bytes(file), str(file))
        depth = len(Path(place.subfolder).parts)
        commit = [folder, *folder.parents][depth].name
        listed = [record.name for record in profile.files]
        folder = download(dataclasses.replace(place, revision=commit), (*listed, *_BESIDE))
    return folder / PROFILE_NAME
