"""The run folder of a calibration: a work folder whose units are prompts and their shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sp_profile.journal import JournalEntry
from sp_profile.run_config import RunConfig
from sp_profile.run_group import RunGroup
from sp_profile.shard import PromptShard, shard_from_bytes, shard_to_bytes
from sp_profile.work_folder import WorkFolder, WorkKind, open_work, read_unit, read_work
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.fingerprint import ModelFingerprint

CALIBRATION: WorkKind[RunConfig] = WorkKind(
    config=RunConfig,
    units=lambda config: tuple(prompt.sha256 for prompt in config.prompts),
    data="shards",
    suffix=".npz",
    command="sp-profile calibrate",
)


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
                data = read_unit(self.path, CALIBRATION, entry)
                shard = shard_from_bytes(data, str(CALIBRATION.file(self.path, entry.unit)))
                _check_belongs(shard, self.config, entry)
                if shard.prompt != prompts[entry.unit]:
                    raise CorruptArtefactError(f"{entry.unit}.npz: is of another prompt")
                yield shard


class RunFolder:
    """The writer's side, under the folder's lock; made by `create_or_resume`."""

    def __init__(self, work: WorkFolder[RunConfig]) -> None:
        self.work = work

    @property
    def finished(self) -> frozenset[str]:
        """sha256 of the prompts that need no more work, quarantined ones included."""
        return self.work.finished

    @property
    def quarantined(self) -> tuple[JournalEntry, ...]:
        return self.work.quarantined

    def add(self, shard: PromptShard) -> None:
        """Publish a shard, then journal it."""
        self.work.add(shard.prompt.sha256, shard_to_bytes(shard))

    def quarantine(self, prompt_sha256: str, reason: str) -> None:
        """Record that a prompt cannot be measured."""
        self.work.quarantine(prompt_sha256, reason)


@contextmanager
def create_or_resume(
    path: str | Path, config: RunConfig, *, group: RunGroup | None = None
) -> Iterator[RunFolder]:
    """Open a run folder for writing; raises as `open_work`."""
    with open_work(path, CALIBRATION, config, group=group) as work:
        yield RunFolder(work)


def open_run(path: str | Path, *, allow_unfinished: bool = False) -> Run:
    """Open a run folder for reading.

    Raises UsageError if there is no run or it is unfinished, CorruptArtefactError.
    """
    path = Path(path)
    config, entries = read_work(path, CALIBRATION)
    if len(entries) < len(config.prompts) and not allow_unfinished:
        raise UsageError(
            f"{path} is unfinished: {len(entries)} of {len(config.prompts)} prompts",
            hint="run the same calibrate command again to finish it",
        )
    return Run(path=path, config=config, entries=entries)


def _check_belongs(shard: PromptShard, config: RunConfig, entry: JournalEntry) -> None:
    if shard.grid.block_size != config.block_size:
        raise CorruptArtefactError(f"{entry.unit}.npz: block_size is not the run's")
    if shard.num_candidates != len(config.candidates):
        raise CorruptArtefactError(f"{entry.unit}.npz: candidate_cost has not the run's columns")
    if shard.num_lent != len(config.lending):
        raise CorruptArtefactError(f"{entry.unit}.npz: lent_density has not the run's masks")
    if shard.num_oracles != len(config.oracle_gammas):
        raise CorruptArtefactError(f"{entry.unit}.npz: oracle_density has not the run's columns")
    fingerprint = config.fingerprint
    expected = [
        (layer, head) for layer in fingerprint.full_layers for head in range(fingerprint.num_heads)
    ]
    if [tuple(pair) for pair in shard.heads.tolist()] != expected:
        raise CorruptArtefactError(f"{entry.unit}.npz: heads are not the model's")
