"""The run folder of a calibration: `run.json`, one shard a prompt, a journal and a lock.

A killed run loses at most the prompt in hand; the same configuration resumes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sp_profile.atomic import publish_bytes, writing_errors
from sp_profile.journal import JournalEntry, append, read_journal, truncate
from sp_profile.lock import folder_lock
from sp_profile.run_config import RunConfig, first_difference
from sp_profile.shard import MAX_FILE_BYTES, PromptShard, shard_from_bytes, shard_to_bytes
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.strict_json import decode, encode, parse, read_bytes

_RUN, _SHARDS, _JOURNAL = "run.json", "shards", "journal.jsonl"
_OWN = {_RUN, _SHARDS, _JOURNAL, "lock"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished or unfinished run, for reading.

    entries: journal entries ascending by prompt; `bad` ones are quarantined prompts.
    """

    path: Path
    config: RunConfig
    entries: tuple[JournalEntry, ...]

    @property
    def fingerprint(self) -> ModelFingerprint:
        return self.config.fingerprint

    @property
    def quarantined(self) -> tuple[JournalEntry, ...]:
        return tuple(entry for entry in self.entries if entry.state == "bad")

    def shards(self) -> Iterator[PromptShard]:
        """Shards in ascending order of prompt sha256, read and checked one at a time.

        Raises CorruptArtefactError naming the shard and its field.
        """
        prompts = {prompt.sha256: prompt for prompt in self.config.prompts}
        for entry in self.entries:
            if entry.state == "done":
                shard = _read(self.path, entry)
                _check_belongs(shard, self.config, entry)
                if shard.prompt != prompts[entry.prompt]:
                    raise CorruptArtefactError(f"{entry.prompt}.npz: is of another prompt")
                yield shard


class RunFolder:
    """The writer's side, under the folder's lock; made by `create_or_resume`."""

    def __init__(self, path: Path, config: RunConfig, entries: dict[str, JournalEntry]) -> None:
        self.path = path
        self.config = config
        self._entries = entries

    @property
    def finished(self) -> frozenset[str]:
        """sha256 of the prompts that need no more work, quarantined ones included."""
        return frozenset(self._entries)

    @property
    def quarantined(self) -> tuple[JournalEntry, ...]:
        entries = sorted(self._entries.values(), key=lambda entry: entry.prompt)
        return tuple(entry for entry in entries if entry.state == "bad")

    def add(self, shard: PromptShard) -> None:
        """Publish a shard, then journal it."""
        data = shard_to_bytes(shard)
        publish_bytes(_shard_path(self.path, shard.prompt.sha256), data)
        digest = hashlib.sha256(data).hexdigest()
        self._journal(
            JournalEntry(
                prompt=shard.prompt.sha256, state="done", shard_sha256=digest, bytes=len(data)
            )
        )

    def quarantine(self, prompt_sha256: str, reason: str) -> None:
        """Record that a prompt cannot be measured."""
        self._journal(JournalEntry(prompt=prompt_sha256, state="bad", reason=reason))

    def _journal(self, entry: JournalEntry) -> None:
        append(self.path / _JOURNAL, entry)
        self._entries[entry.prompt] = entry


@contextmanager
def create_or_resume(path: str | Path, config: RunConfig) -> Iterator[RunFolder]:
    """Open a run folder for writing; a new or empty folder is set up, an equal run resumed.

    Raises UsageError naming the field in which the configuration differs, FolderLockedError,
    CorruptArtefactError, ResourceError.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a folder", hint="choose another output")
    with writing_errors(path):
        existing = set(os.listdir(path)) if path.exists() else set()
        strangers = {name for name in existing - _OWN if not _is_left_over(name)}
        if _RUN not in existing and strangers:
            raise UsageError(
                f"{path} holds other files, such as {min(strangers)}",
                hint="choose an empty or new output folder",
            )
        (path / _SHARDS).mkdir(parents=True, exist_ok=True)
    with folder_lock(path):
        if (path / _RUN).exists():
            _require_same(path, config)
        else:
            publish_bytes(path / _RUN, encode(config).encode("ascii") + b"\n")
        _remove_left_overs(path)
        entries, size = read_journal(path / _JOURNAL)
        truncate(path / _JOURNAL, size)
        _check_entries(path, config, entries)
        # A shard that has gone is measured again.
        kept = {
            name: entry
            for name, entry in entries.items()
            if entry.state == "bad" or _shard_path(path, name).exists()
        }
        yield RunFolder(path, config, kept)


def open_run(path: str | Path, *, allow_unfinished: bool = False) -> Run:
    """Open a run folder for reading.

    Raises UsageError if there is no run or it is unfinished, CorruptArtefactError.
    """
    path = Path(path)
    config = _read_config(path)
    entries, _ = read_journal(path / _JOURNAL)
    _check_entries(path, config, entries)
    if len(entries) < len(config.prompts) and not allow_unfinished:
        raise UsageError(
            f"{path} is unfinished: {len(entries)} of {len(config.prompts)} prompts",
            hint="run the same calibrate command again to finish it",
        )
    ordered = tuple(entries[name] for name in sorted(entries))
    return Run(path=path, config=config, entries=ordered)


def _is_left_over(name: str) -> bool:
    """Whether a name is that of a temporary file of `publish_file`, left by a killed process."""
    return name.startswith(".") and name.endswith(".tmp")


def _remove_left_overs(path: Path) -> None:
    with writing_errors(path):
        for folder in (path, path / _SHARDS):
            for entry in folder.iterdir():
                if _is_left_over(entry.name):
                    entry.unlink(missing_ok=True)


def _read_config(path: Path) -> RunConfig:
    name = str(path / _RUN)
    try:
        data = read_bytes(path / _RUN)
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not a run folder", hint="make one with sp-profile calibrate"
        ) from None
    return decode(RunConfig, parse(data, name), name)


def _require_same(path: Path, config: RunConfig) -> None:
    difference = first_difference(_read_config(path), config)
    if difference is not None:
        raise UsageError(
            f"{path} holds a run with another configuration (there, here): {difference}",
            hint="use another output folder, or the settings of that run",
        )


def _check_entries(path: Path, config: RunConfig, entries: dict[str, JournalEntry]) -> None:
    known = {prompt.sha256 for prompt in config.prompts}
    if unknown := sorted(set(entries) - known):
        raise CorruptArtefactError(f"{path / _JOURNAL}: unknown prompt {unknown[0]!r}")


def _check_belongs(shard: PromptShard, config: RunConfig, entry: JournalEntry) -> None:
    if shard.grid.block_size != config.block_size:
        raise CorruptArtefactError(f"{entry.prompt}.npz: block_size is not the run's")
    if shard.num_candidates != len(config.candidates):
        raise CorruptArtefactError(f"{entry.prompt}.npz: candidate_cost has not the run's columns")
    fingerprint = config.fingerprint
    full = [n for n, kind in enumerate(fingerprint.layer_types) if kind == "full_attention"]
    expected = [(layer, head) for layer in full for head in range(fingerprint.num_heads)]
    if [tuple(pair) for pair in shard.heads.tolist()] != expected:
        raise CorruptArtefactError(f"{entry.prompt}.npz: heads are not the model's")


def _read(folder: Path, entry: JournalEntry) -> PromptShard:
    path = _shard_path(folder, entry.prompt)
    try:
        if path.stat().st_size != entry.bytes or entry.bytes > MAX_FILE_BYTES:
            raise CorruptArtefactError(f"{path}: size differs from the journal's")
        data = path.read_bytes()
    except OSError as error:
        raise CorruptArtefactError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != entry.shard_sha256:
        raise CorruptArtefactError(
            f"{path}: SHA-256 differs from the journal's",
            hint="delete the shard and run the same calibrate command again",
        )
    return shard_from_bytes(data, str(path))


def _shard_path(folder: Path, prompt_sha256: str) -> Path:
    return folder / _SHARDS / f"{prompt_sha256}.npz"
