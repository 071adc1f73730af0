"""Stored prefills that survive interruption: a work folder beside the results file.

While `results.jsonl` is being made, `results.jsonl.partial/` holds what is finished; at the end the
file is published whole and the folder removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sp_profile.atomic import temporary_of, writing_errors
from sp_profile.journal import JournalEntry
from sp_profile.prefill_store import RunFacts, store
from sp_profile.prefill_types import EncodedPrompt, PrefillConfig, PrefillResult
from sp_profile.result_file import partial_folder, target_exists
from sp_profile.run_config import first_difference
from sp_profile.work_folder import WorkFolder, WorkKind, is_run, open_work, read_work, remove_work
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.strict_json import decode, encode, parse

_PIECE = 60_000  # characters; the strict reader takes no longer strings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrefillPrompt:
    """One prompt of a run. name: as JSON, since a file name may hold any character."""

    name: str
    sha256: str
    tokens: int

    @classmethod
    def of(cls, prompt: EncodedPrompt) -> PrefillPrompt:
        return cls(name=json.dumps(prompt.name), sha256=prompt.sha256, tokens=len(prompt.token_ids))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRun:
    """The resolved configuration of one command; equal ones give equal results, times apart.

    prompts: in the order given. versions: of the packages that compute, sorted by name.
    """

    facts: RunFacts
    config: PrefillConfig
    fingerprint: ModelFingerprint
    prompts: tuple[PrefillPrompt, ...]
    versions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """A result whose texts lie beside it as JSON in pieces: they may hold any character."""

    result: PrefillResult
    text: tuple[str, ...] | None
    dense_text: tuple[str, ...] | None


PREFILL: WorkKind[PrefillRun] = WorkKind(
    config=PrefillRun,
    units=lambda run: tuple(f"{number:06d}" for number in range(len(run.prompts))),
    data="results",
    suffix=".json",
    command="sp-run prefill",
)


class PrefillRunFolder:
    """The finished results of a run, under its lock; made by `open_prefill_run`."""

    def __init__(self, target: Path, work: WorkFolder[PrefillRun]) -> None:
        self._target = target
        self._work = work
        self._results = {
            _number(entry): self._load(entry) for entry in work.entries if entry.state == "done"
        }

    def get(self, number: int) -> PrefillResult | None:
        """The result of the number-th prompt, if it is finished."""
        return self._results.get(number)

    def add(self, number: int, result: PrefillResult) -> None:
        """Keep a result; ResourceError where it cannot be written."""
        stored = _Stored(
            result=dataclasses.replace(result, prompt="", text=None, dense_text=None),
            text=_pieces(result.text),
            dense_text=_pieces(result.dense_text),
        )
        self._work.add(f"{number:06d}", encode(stored).encode("ascii"))
        self._results[number] = result

    def publish(self) -> None:
        """Write the results file, then remove the folder; nothing else ends a run."""
        assert self._work.is_complete
        results = [self._results[number] for number in sorted(self._results)]
        store(self._target, results, self._work.config.facts)
        remove_work(self._work.path, PREFILL)

    def _load(self, entry: JournalEntry) -> PrefillResult:
        name = str(PREFILL.file(self._work.path, entry.unit))
        stored = decode(_Stored, parse(self._work.read(entry), name), name)
        prompt = self._work.config.prompts[_number(entry)]
        return dataclasses.replace(
            stored.result,
            prompt=json.loads(prompt.name),
            text=_joined(stored.text, name),
            dense_text=_joined(stored.dense_text, name),
        )


@contextlib.contextmanager
def open_prefill_run(
    target: Path, run: PrefillRun, *, overwrite: bool = False
) -> Iterator[PrefillRunFolder]:
    """Begin or resume the run that is to become `target`.

    Raises UsageError where an unfinished run there has another configuration, or the file exists,
    unless `overwrite`; FolderLockedError, CorruptArtefactError and ResourceError as `open_work`.
    """
    folder = partial_folder(target)
    _remove_left_overs(target, folder)
    if overwrite and _holds_another(folder, run):
        remove_work(folder, PREFILL, lock=True)
    try:
        with open_work(folder, PREFILL, run) as work:
            # Another process may have ended its run of this file while we waited for the lock.
            if target.exists() and not (overwrite or work.is_complete):
                if not work.finished:
                    remove_work(folder, PREFILL)
                raise target_exists(target)
            _remove_temporaries(target)
            yield PrefillRunFolder(target, work)
    except UsageError as error:
        if "another configuration" not in error.message:
            raise
        raise UsageError(
            error.message, hint="finish it with its own settings, or pass --overwrite to drop it"
        ) from error


def _holds_another(folder: Path, run: PrefillRun) -> bool:
    if not is_run(folder):
        return False
    try:
        return first_difference(read_work(folder, PREFILL)[0], run) is not None
    except CorruptArtefactError:
        return True


def _remove_left_overs(target: Path, folder: Path) -> None:
    """Folders that were being removed when their process was killed."""
    with writing_errors(target):
        for name in os.listdir(target.parent):
            if temporary_of(name) == folder.name:
                remove_work(target.parent / name, PREFILL)


def _remove_temporaries(target: Path) -> None:
    """What killed processes left of the file itself; under the lock, none of them is alive."""
    with writing_errors(target):
        for name in os.listdir(target.parent):
            if temporary_of(name) == target.name:
                (target.parent / name).unlink(missing_ok=True)


def _number(entry: JournalEntry) -> int:
    return int(entry.unit)


def _pieces(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    escaped = json.dumps(text)
    return tuple(escaped[start : start + _PIECE] for start in range(0, len(escaped), _PIECE))


def _joined(pieces: Sequence[str] | None, name: str) -> str | None:
    if pieces is None:
        return None
    try:
        text = json.loads("".join(pieces))
    except ValueError as error:
        raise CorruptArtefactError(f"{name}: text: is not JSON") from error
    if not isinstance(text, str):
        raise CorruptArtefactError(f"{name}: text: is not a string")
    return text
