"""Repositories of the Hugging Face Hub: names as people type them, files fetched, errors typed.

huggingface_hub is imported when a repository is asked for, never before; its cache, its token and
HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT work as in every program that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sp_runtime.errors import UnsupportedError, UsageError

__all__ = ["HubName", "download", "hub_errors", "hub_library", "parse_hub_name"]

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
    rf"(?P<scheme>hf:/{{1,2}})?(?P<repo>{_PART}/{_PART})"
    rf"(?:@(?P<revision>refs/pr/\d+|[\w.-]+))?(?:/(?P<subfolder>{_PART}(?:/{_PART})*))?",
    re.ASCII,
)
_SIGN_IN = "sign in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubName:
    """A place in a repository: owner/name, a branch, tag or commit, and a folder ("": its top)."""

    repo: str
    revision: str | None = None
    subfolder: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        under = f"/{self.subfolder}" if self.subfolder else ""
        scheme = "hf://" if under and not at else ""
        return f"{scheme}{self.repo}{at}{under}"


def parse_hub_name(text: str) -> HubName | None:
    """The place that `[hf://]owner/name[@revision][/subfolder]` names, None for any other text.

    A subfolder needs the scheme or a revision before it: a/b/c alone is a path.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    subfolder = match["subfolder"] or ""
    if subfolder and not (match["scheme"] or match["revision"]):
        return None
    return HubName(repo=match["repo"], revision=match["revision"], subfolder=subfolder)


def hub_library() -> ModuleType:
    """huggingface_hub; UnsupportedError with the command that installs it where it is missing."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "repositories of the Hugging Face Hub need the package huggingface_hub",
            hint="pip install 'sparse-prefill[hub]'",
        ) from error
    return huggingface_hub


def download(name: HubName, files: Sequence[str]) -> Path:
    """The folder in the hub's cache that holds these files of one commit, as far as they exist.

    files: names inside the subfolder. The folder of the whole repository is named by its commit.
    Raises UsageError where the repository cannot be read, UnsupportedError without huggingface_hub.
    """
    library = hub_library()
    under = f"{name.subfolder}/" if name.subfolder else ""
    with hub_errors(name), _no_bars():
        folder = library.snapshot_download(
            name.repo,
            revision=name.revision,
            allow_patterns=[f"{under}{file}" for file in files],
        )
    return Path(folder) / name.subfolder


@contextmanager
def hub_errors(name: HubName, *, action: str = "read") -> Iterator[None]:
    """Turn what huggingface_hub raises over a repository into a UsageError that says what to do.

    action: what was tried, `read` or `written`. Errors of the disk pass as they are.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Of the HTTP library that this release of huggingface_hub stands on.
    transport: Any = HfHubHTTPError.__mro__[1]
    try:
        yield
    except HFValidationError as error:
        raise UsageError(
            f"{name.repo!r} is no name of a repository: {_first_line(error)}", hint="owner/name"
        ) from error
    except (OSError, transport) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
            raise
        raise _explained(name, action, error) from error


def _explained(name: HubName, action: str, error: Exception) -> UsageError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = name.repo
    offline = constants.HF_HUB_OFFLINE
    if isinstance(error.__cause__, HfHubHTTPError):  # said again, as missing from the cache
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{repo} is gated, and you have no access", hint=f"ask for it on its page; {_SIGN_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"{repo} has no revision {name.revision!r}", hint="leave @revision out")
    if action == "read" and isinstance(error, RepositoryNotFoundError):
        return UsageError(
            f"the hub has no repository {repo} that you may read",
            hint=f"check the name; if it is private, {_SIGN_IN}",
        )
    if status in (401, 403):
        return UsageError(
            f"{repo} cannot be {action}: the hub answers {status}, not permitted", hint=_SIGN_IN
        )
    if isinstance(error, OfflineModeIsEnabled) or (
        offline and isinstance(error, LocalEntryNotFoundError)
    ):
        if action != "read":
            return UsageError(f"{repo} cannot be {action} offline", hint="unset HF_HUB_OFFLINE")
        revision = f" --revision {name.revision}" if name.revision else ""
        return UsageError(
            f"{repo} is not in the hub's cache, or not whole, and HF_HUB_OFFLINE is set",
            hint=f"fetch it once with a network: hf download {repo}{revision}",
        )
    return UsageError(
        f"{repo} cannot be {action}: {_first_line(error).removeprefix('Got: ')}",
        hint="check the network; what was fetched once is read with HF_HUB_OFFLINE=1",
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    """A profile is small; huggingface_hub's own setting is put back."""
    from huggingface_hub import utils

    were_off = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            utils.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
