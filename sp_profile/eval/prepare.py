"""Making the prompts of an evaluation: a folder of its own inside, worked at by processes.

Token counts are exact, so a prompt is tokenized many times while it is made; long ones take
seconds. Alone, a pool of processes works at it; in a group every rank does.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_profile.eval.config import DataRecord, EvalConfig
from sp_profile.eval.folder import PROMPTS
from sp_profile.eval.prompt_store import PromptFile, prompts_from_bytes, prompts_to_bytes
from sp_profile.model_source import ModelSource
from sp_profile.models import load_tokenizer
from sp_profile.run_config import first_difference
from sp_profile.run_group import RunGroup
from sp_profile.tasks import TaskData, make_prompts
from sp_profile.work_folder import WorkFolder, WorkKind, open_work, read_unit, read_work
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import ModelFingerprint

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptUnit:
    """The prompts of one task and length, `samples` of them or as many as its data hold."""

    task: str
    length: int
    samples: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.length}-{self.samples}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsConfig:
    """What a folder of prompts holds; no machine, dtype or method, so that it can be moved."""

    fingerprint: ModelFingerprint
    seed: int
    chat_template: bool
    data: tuple[DataRecord, ...]
    units: tuple[PromptUnit, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSource:
    """What it takes to make prompts in another process."""

    source: ModelSource
    trust_remote_code: bool
    data: TaskData


def _merged(stored: PromptsConfig, asked: PromptsConfig) -> PromptsConfig:
    """More units may come; data files need not be named again."""
    wider = dataclasses.replace(asked, units=stored.units, data=asked.data or stored.data)
    difference = first_difference(stored, wider)
    if difference is not None:
        raise UsageError(
            f"the prompts of this evaluation are others (there, here): {difference}",
            hint="use another output folder",
        )
    return dataclasses.replace(wider, units=tuple(dict.fromkeys((*stored.units, *asked.units))))


PROMPT_WORK: WorkKind[PromptsConfig] = WorkKind(
    config=PromptsConfig,
    units=lambda config: tuple(unit.name for unit in config.units),
    data="files",
    suffix=".npz",
    command="sp-run eval",
    merge=_merged,
)


def prompts_config(config: EvalConfig) -> PromptsConfig:
    """The prompts that an evaluation needs."""
    return PromptsConfig(
        fingerprint=config.fingerprint,
        seed=config.seed,
        chat_template=config.chat_template,
        data=config.data,
        units=tuple(
            PromptUnit(task=task, length=length, samples=config.samples)
            for length in sorted(config.lengths)
            for task in config.tasks
        ),
    )


def prepare(
    folder: Path,
    config: EvalConfig,
    origin: PromptSource,
    *,
    group: RunGroup,
    workers: int,
    progress: Progress,
) -> None:
    """Make the prompts that are not there yet, by `workers` processes or by the group.

    Returns when all of them are there. Raises what `make_prompts` raises.
    """
    asked = prompts_config(config)
    path = folder / PROMPTS
    with open_work(path, PROMPT_WORK, asked, group=group) as work:
        wanted = {unit.name: unit for unit in asked.units}
        make = _pooled if group.is_alone else _shared
        make(work, wanted, asked, origin, workers, progress)


def read_prompt_file(folder: Path, unit: PromptUnit) -> PromptFile:
    """The prompts of one task and length.

    Raises UsageError where they are not made yet, CorruptArtefactError.
    """
    path = folder / PROMPTS
    _, entries = read_work(path, PROMPT_WORK)
    entry = next((entry for entry in entries if entry.unit == unit.name), None)
    if entry is None:
        raise UsageError(f"{path} lacks {unit.name}", hint="run sp-run eval --prepare-only")
    data = read_unit(path, PROMPT_WORK, entry)
    return prompts_from_bytes(data, str(PROMPT_WORK.file(path, unit.name)))


def check_disjoint(folder: Path, config: EvalConfig, calibration: Collection[str]) -> None:
    """Refuse prompts that a profile was made from; calibration: their sha256.

    Raises UsageError naming the first one.
    """
    known = frozenset(calibration)
    if not known:
        return
    for unit in prompts_config(config).units:
        for prompt in read_prompt_file(folder, unit).prompts:
            if prompt.sha256 in known:
                raise UsageError(
                    f"prompt {prompt.index} of {unit.task} at {unit.length} tokens is one that the "
                    "profile was calibrated on",
                    hint="take another --seed; profiles are evaluated on prompts new to them",
                )


def _pooled(
    work: WorkFolder[PromptsConfig],
    wanted: dict[str, PromptUnit],
    config: PromptsConfig,
    origin: PromptSource,
    workers: int,
    progress: Progress,
) -> None:
    todo = [unit for name, unit in wanted.items() if name not in work.finished]
    done = itertools.count(len(wanted) - len(todo))
    progress(next(done), len(wanted))
    if workers == 1 or len(todo) < 2:
        tokenizer = _tokenizer(origin) if todo else None
        for unit in todo:
            work.add(unit.name, _make(unit, config, origin, tokenizer))
            progress(next(done), len(wanted))
        return
    # Longest first, so that no long unit is left for the end.
    todo.sort(key=lambda unit: (-unit.length, unit.name))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        futures = {pool.submit(_make, unit, config, origin): unit for unit in todo}
        try:
            for future in as_completed(futures):
                work.add(futures[future].name, future.result())
                progress(next(done), len(wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _shared(
    work: WorkFolder[PromptsConfig],
    wanted: dict[str, PromptUnit],
    config: PromptsConfig,
    origin: PromptSource,
    workers: int,
    progress: Progress,
) -> None:
    tokenizer = None
    while True:
        took = False
        for unit in _unfinished(work, wanted):
            with work.claim(unit.name) as mine:
                if mine:
                    took = True
                    tokenizer = tokenizer or _tokenizer(origin)
                    work.add(unit.name, _make(unit, config, origin, tokenizer))
        work.refresh()
        left = len(list(_unfinished(work, wanted)))
        progress(len(wanted) - left, len(wanted))
        if left == 0:
            return
        if not took:
            time.sleep(0.2)


def _unfinished(
    work: WorkFolder[PromptsConfig], wanted: dict[str, PromptUnit]
) -> Iterator[PromptUnit]:
    for name, unit in sorted(wanted.items(), key=lambda item: (-item[1].length, item[0])):
        if name not in work.finished:
            yield unit


def _tokenizer(origin: PromptSource) -> Any:
    return load_tokenizer(origin.source, trust_remote_code=origin.trust_remote_code)


def _make(
    unit: PromptUnit, config: PromptsConfig, origin: PromptSource, tokenizer: Any = None
) -> bytes:
    """The file of one unit; in another process the tokenizer is loaded there."""
    prompts = make_prompts(
        unit.task,
        tokenizer=tokenizer or _tokenizer(origin),
        length=unit.length,
        samples=unit.samples,
        seed=config.seed,
        chat_template=config.chat_template,
        data=origin.data,
    )
    return prompts_to_bytes(
        itertools.islice(prompts, unit.samples),
        task=unit.task,
        length=unit.length,
        seed=config.seed,
        chat=config.chat_template,
    )
