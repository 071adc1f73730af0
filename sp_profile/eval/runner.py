"""An evaluation from end to end: resolve, make prompts, measure cells; alone or in a group."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_profile.eval.cells import Cell, Environment
from sp_profile.eval.config import EvalConfig, ProfileRecord
from sp_profile.eval.folder import EvalFolder, open_eval, read_evaluation
from sp_profile.eval.forward import Forward, NonFiniteLogitsError
from sp_profile.eval.inputs import choose_device, data_records, processes_on_device
from sp_profile.eval.measure_cell import CellMeasurer, MeasureSettings
from sp_profile.eval.methods import expand_methods
from sp_profile.eval.passes import part_of, pass_config, pass_folder
from sp_profile.eval.prepare import (
    PromptSource,
    PromptUnit,
    check_disjoint,
    prepare,
    read_prompt_file,
)
from sp_profile.eval.prompt_store import PromptFile
from sp_profile.eval.request import EvalOutcome, EvalRequest, Progress
from sp_profile.model_source import ModelSource, resolve_model
from sp_profile.models import (
    LoadedConfig,
    load_config,
    load_model,
    load_tokenizer,
)
from sp_profile.prefill import stop_tokens
from sp_profile.profile_input import read_profile
from sp_profile.run_group import RunGroup, current_group
from sp_profile.tasks import resolve_tasks
from sp_profile.work_folder import WorkFolder
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import require_match
from sp_runtime.kernels.select import KernelChoice, select_kernels
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import Profile
from sp_runtime.version import __version__

_VERSIONED = ("numpy", "torch", "transformers")


def evaluate(request: EvalRequest, output: Path, progress: Progress) -> EvalOutcome:
    """Evaluate into `output`; the same request resumes it.

    Raises UsageError (arguments, another evaluation in the folder, prompts that a profile was made
    from), ProfileMismatchError, UnsupportedError, CorruptArtefactError, ResourceError (memory,
    disk), FolderLockedError. A cell whose logits are not finite is recorded as failed.
    """
    start = time.monotonic()
    group = current_group()
    session = _Session.of(request, group)
    name = pass_folder(request)
    if name is not None:
        return session.later_pass(name, output, progress, start)
    with open_eval(output, session.config, extend=request.extend, group=group) as folder:
        session.prepare(output, folder.config, progress)
        if request.prepare_only:
            return EvalOutcome(evaluation=None, measured=0, resumed=0, stopped=False)
        outcome = session.measure(folder, output, progress, start)
    if not group.is_first:
        return outcome
    return dataclasses.replace(outcome, evaluation=read_evaluation(output))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Session:
    """What was found for a request; the model is loaded by `measure`, not before."""

    request: EvalRequest
    config: EvalConfig
    group: RunGroup
    device: torch.device
    kernels: KernelChoice
    source: ModelSource
    loaded: LoadedConfig
    profiles: dict[str, Profile]

    @classmethod
    def of(cls, request: EvalRequest, group: RunGroup) -> _Session:
        """Everything that can be refused without weights is refused here."""
        key = request.public_key
        profiles = {name: read_profile(path, key) for name, path in request.profiles}
        tasks = resolve_tasks(request.tasks)
        points = {
            name: {named.name: named.point for named in profile.points}
            for name, profile in profiles.items()
        }
        methods = expand_methods(request.methods, samples=request.samples, profile_points=points)
        source = resolve_model(request.model, revision=request.revision)
        device = choose_device(request, group)
        kernels = select_kernels(request.kernels, device)
        loaded = load_config(source, trust_remote_code=request.trust_remote_code)
        for profile in profiles.values():
            require_match(profile.model, loaded.fingerprint)
        for method in methods:
            make_pattern_factory(
                method.point, profiles.get(method.profile), block_size=request.block_size
            )
        config = EvalConfig(
            model=source.public_name,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            fingerprint=loaded.fingerprint,
            profiles=tuple(
                ProfileRecord(name=name, profile_id=profile.profile_id)
                for name, profile in profiles.items()
            ),
            dtype=request.dtype,
            kernels=request.kernels,
            block_size=request.block_size,
            seed=request.seed,
            chat_template=request.chat_template,
            include_text=request.include_text,
            data=data_records(request.data),
            methods=methods,
            tasks=tasks,
            lengths=tuple(sorted(set(request.lengths))),
        )
        limit = loaded.fingerprint.max_position_embeddings
        if config.lengths[-1] > limit:
            raise UsageError(
                f"length {config.lengths[-1]} does not fit into the model's {limit} positions",
                hint="leave it out",
            )
        return cls(
            request=request,
            config=config,
            group=group,
            device=device,
            kernels=kernels,
            source=source,
            loaded=loaded,
            profiles=profiles,
        )

    def prepare(self, output: Path, config: EvalConfig, progress: Progress) -> None:
        """The prompts of the whole evaluation, checked against what the profiles were made from."""
        origin = PromptSource(
            source=self.source,
            trust_remote_code=self.request.trust_remote_code,
            data=self.request.data,
        )
        prepare(
            output,
            config,
            origin,
            group=self.group,
            workers=self.request.workers,
            progress=lambda done, total: progress("prompts", done, total),
        )
        self._check_disjoint(output, config)

    def _check_disjoint(self, output: Path, config: EvalConfig) -> None:
        calibration = {
            prompt.sha256
            for profile in self.profiles.values()
            for prompt in profile.calibration.prompts
        }
        check_disjoint(output, config, calibration)

    def measure(
        self,
        folder: EvalFolder,
        output: Path,
        progress: Progress,
        start: float,
        *,
        prompt_samples: int | None = None,
    ) -> EvalOutcome:
        """The cells that are left, dealt over the group; the first rank waits for all of them.

        prompt_samples: how many prompts the prompt files were made for; the configuration's own.
        """
        work = folder.work
        cells = {cell.id: cell for cell in work.config.cells()}
        resumed, measured = len(work.finished), 0
        progress("cells", resumed, len(cells))
        samples = prompt_samples or work.config.samples
        prompts = _PromptCache(output, samples)
        measurer: CellMeasurer | None = None
        stopped = False
        while not work.is_complete and not stopped:
            took = False
            for unit in cells:
                if unit in work.finished:
                    continue
                limit = self.request.max_seconds
                if limit is not None and time.monotonic() - start >= limit:
                    stopped = True
                    break
                with work.claim(unit) as mine:
                    if not mine:
                        continue
                    took = True
                    measurer = measurer or self._measurer(work.config.audit)
                    self._measure_cell(folder, measurer, cells[unit], prompts)
                    measured += 1
                progress("cells", len(work.finished), len(cells))
            work.refresh()
            if not took and not stopped:
                if not self.group.is_first:
                    break  # the first rank waits for the others
                time.sleep(0.5)
        if stopped and self.group.is_first:
            _await_others(folder.work, cells)
        return EvalOutcome(evaluation=None, measured=measured, resumed=resumed, stopped=stopped)

    def later_pass(self, name: str, output: Path, progress: Progress, start: float) -> EvalOutcome:
        """A pass over the first prompts of each cell asked for, into the folder `name`; see
        `pass_config`."""
        stored = read_evaluation(output).config
        config = pass_config(self.request, self.config, stored, self.group)
        self._check_disjoint(output, part_of(self.config, stored))
        with open_eval(output / name, config, extend=True, group=self.group) as folder:
            outcome = self.measure(folder, output, progress, start, prompt_samples=stored.samples)
        if not self.group.is_first:
            return outcome
        return dataclasses.replace(outcome, evaluation=read_evaluation(output))

    def _measure_cell(
        self, folder: EvalFolder, measurer: CellMeasurer, cell: Cell, prompts: _PromptCache
    ) -> None:
        chosen = prompts.of(cell).prompts[: cell.method.samples]
        try:
            folder.add(measurer.measure(cell, chosen))
        except NonFiniteLogitsError as error:
            folder.fail(cell, error.message)

    def _measurer(self, audit: float | None) -> CellMeasurer:
        request = self.request
        trust = request.trust_remote_code
        tokenizer = load_tokenizer(self.source, trust_remote_code=trust)
        model = load_model(
            self.source,
            request.dtype,
            self.device,
            config=self.loaded.config,
            trust_remote_code=trust,
        )
        names = {"", *self.profiles}
        forwards = {name: self._forward(model, self.profiles.get(name)) for name in names}
        timed = request.timed if request.timed is not None else self.group.is_alone
        untimed = "" if timed else "switched off"
        if audit is not None:
            timed, untimed = False, "heads were audited"
        elif not self.group.is_alone:
            if request.timed:
                raise UsageError(
                    "times of processes that share a device mean nothing",
                    hint="leave out --timing, and run sp-run eval --timing-pass N alone afterwards",
                )
            timed, untimed = False, f"{self.group.world_size} processes ran at once"
        settings = MeasureSettings(
            timed=timed,
            untimed=untimed,
            decode=pass_folder(request) is None,
            include_text=request.include_text,
            sharing=processes_on_device(self.group, self.device),
            environment=self._environment(),
            audit=audit,
        )
        return CellMeasurer(forwards, tokenizer, stop_tokens(model), settings)

    def _forward(self, model: Any, profile: Profile | None) -> Forward:
        return Forward(
            model,
            profile,
            self.kernels,
            block_size=self.request.block_size,
            weights_sha256=self.loaded.fingerprint.weights_sha256,
        )

    def _environment(self) -> Environment:
        device = self.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        versions = {package: importlib.metadata.version(package) for package in _VERSIONED}
        return Environment(
            device=name,
            kernels=self.kernels.name,
            processes=self.group.world_size,
            versions=tuple(sorted({**versions, "sparse-prefill": __version__}.items())),
        )


def _await_others(work: WorkFolder[EvalConfig], units: Iterable[str]) -> None:
    """Return when no unit is in the hands of another process of the group."""
    for unit in units:
        while unit not in work.finished:
            with work.claim(unit) as mine:
                if mine:
                    break
            work.refresh()
            time.sleep(0.2)


class _PromptCache:
    """The prompt file read last; neighbouring cells share it."""

    def __init__(self, folder: Path, samples: int) -> None:
        self._folder = folder
        self._samples = samples
        self._held: tuple[PromptUnit, PromptFile] | None = None

    def of(self, cell: Cell) -> PromptFile:
        unit = PromptUnit(task=cell.task, length=cell.length, samples=self._samples)
        if self._held is None or self._held[0] != unit:
            self._held = (unit, read_prompt_file(self._folder, unit))
        return self._held[1]
