"""Publishing a profile in a repository of the Hugging Face Hub: verified, then one commit."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_profile.artefact import CARD_NAME, SIGNATURE_NAME, TABLE_NAMES
from sp_profile.card import HubCard, profile_card
from sp_profile.verify import verify_folder
from sp_profile.verify_types import Check
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.hub import HubName, hub_errors, hub_library, parse_hub_name
from sp_runtime.profile import PROFILE_NAME, Profile, parse_profile
from sp_runtime.profile_source import SETTINGS_NAME
from sp_runtime.strict_json import read_bytes

MAIN_BRANCH = "main"
# What a push replaces or removes; other files of a repository are left alone.
_OURS = (PROFILE_NAME, SIGNATURE_NAME, CARD_NAME, SETTINGS_NAME, *TABLE_NAMES)
# Neither bears on what is uploaded: foreign files stay behind, and the card is made anew.
_NOT_UPLOADED = ("folder", CARD_NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushFile:
    """One file of a push: its bytes, or for a table its path and the hash that profile.json has."""

    name: str
    size: int
    content: bytes | None = None
    path: Path | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PushPlan:
    """What a push would do; nothing has been sent.

    place: repository, branch (None: main) and folder. checks: what was verified of the files that
    are uploaded. left_out: files of the folder that are no part of a profile.
    """

    place: HubName
    profile: Profile
    message: str
    files: tuple[PushFile, ...]
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that fell short; a plan with any is not pushed."""
        return tuple(check for check in self.checks if not check.passed)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushResult:
    """url: of the repository at the branch. removed: files of an older profile that went."""

    url: str
    commit: str
    removed: tuple[str, ...]


def plan_push(
    path: Path,
    target: str,
    *,
    branch: str | None = None,
    message: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> PushPlan:
    """Verify a profile and lay out its upload to `owner/name[@branch][/folder]`.

    license, base_model: for the card, as in `HubCard`. message: of the commit.

    Raises UsageError for a target that is no repository or a folder without a profile,
    CorruptArtefactError for a damaged profile.
    """
    place = parse_hub_name(target)
    if place is None:
        raise UsageError(f"{target!r} names no repository", hint="owner/name or owner/name@branch")
    if branch is not None:
        place = dataclasses.replace(place, revision=branch)
    file = path if path.name == PROFILE_NAME else path / PROFILE_NAME
    folder, content = file.parent, _read(file)
    profile = parse_profile(content, str(file))
    checks = verify_folder(file, profile).checks
    card = profile_card(profile, HubCard(place=place, base_model=base_model, license=license))
    files = [_of_bytes(PROFILE_NAME, content), _of_bytes(CARD_NAME, card.encode("utf-8"))]
    beside = [name for name in (SIGNATURE_NAME, SETTINGS_NAME) if (folder / name).is_file()]
    files += [_of_bytes(name, read_bytes(folder / name)) for name in beside]
    files += [
        PushFile(name=table.name, size=table.bytes, path=folder / table.name, sha256=table.sha256)
        for table in profile.files
    ]
    known = {CARD_NAME, *(each.name for each in files)}
    return PushPlan(
        place=place,
        profile=profile,
        message=message or f"Profile {profile.profile_id[:12]} of {profile.model_name}",
        files=tuple(files),
        checks=tuple(check for check in checks if check.name not in _NOT_UPLOADED),
        left_out=tuple(sorted({each.name for each in folder.iterdir()} - known)),
    )


def push(plan: PushPlan, *, private: bool = False) -> PushResult:
    """Upload the files of a plan in one commit, in a repository made where there is none.

    Token, cache and endpoint are huggingface_hub's own. A profile's files that the repository held
    before and this profile has not, such as a signature, go in the same commit.

    Raises UsageError where the hub refuses (and for `private` where the repository is public),
    CorruptArtefactError where a table has changed since the plan or a check fell short.
    """
    if plan.findings:
        first = plan.findings[0]
        raise CorruptArtefactError(f"{first.name}: {first.detail}", hint="sp-profile verify")
    library = hub_library()
    place, branch = plan.place, plan.place.revision or MAIN_BRANCH
    under = f"{place.subfolder}/" if place.subfolder else ""
    additions = [_addition(library, under, file) for file in plan.files]
    api = library.HfApi(library_name="sparse-prefill")
    with hub_errors(place, action="written"), warnings.catch_warnings():
        # huggingface_hub wonders at tables in a repository of kind model, which this is.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        api.create_repo(place.repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(place.repo).private:
            raise UsageError(
                f"{place.repo} exists and is public",
                hint="leave --private out, or make it private in its settings first",
            )
        if branch != MAIN_BRANCH:
            api.create_branch(place.repo, branch=branch, exist_ok=True)
        present = set(api.list_repo_files(place.repo, revision=branch))
        stale = {under + name for name in _OURS} & present - {
            each.path_in_repo for each in additions
        }
        removed = sorted(stale)
        commit = api.create_commit(
            place.repo,
            [*additions, *(library.CommitOperationDelete(name) for name in removed)],
            commit_message=plan.message,
            revision=branch,
        )
    url = f"{api.endpoint}/{place.repo}"
    if branch != MAIN_BRANCH or under:
        url += f"/tree/{branch}/{place.subfolder}".rstrip("/")
    return PushResult(url=url, commit=commit.oid, removed=tuple(removed))


def _addition(library: Any, under: str, file: PushFile) -> Any:
    """The upload of one file; a table is hashed once more, by what reads it for the upload."""
    source = file.content if file.path is None else str(file.path)
    addition = library.CommitOperationAdd(path_in_repo=under + file.name, path_or_fileobj=source)
    if file.sha256 not in (None, addition.upload_info.sha256.hex()):
        raise CorruptArtefactError(
            f"{file.name}: has changed while it was pushed", hint="run the command again"
        )
    return addition


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except FileNotFoundError as error:
        raise UsageError(
            f"no profile at {file.parent}", hint=f"give a folder that holds {PROFILE_NAME}"
        ) from error


def _of_bytes(name: str, content: bytes) -> PushFile:
    return PushFile(name=name, size=len(content), content=content)
