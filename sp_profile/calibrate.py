"""Calibration: prompts through a model with recording attention, one shard a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_profile.calibration_config import CalibrationConfig
from sp_profile.calibration_prompts import CalibrationPrompts, collect_prompts
from sp_profile.candidates import (
    ORACLE_GAMMAS,
    MaskSettings,
    default_candidates,
    default_lending,
    peer_candidates,
)
from sp_profile.journal import JournalEntry
from sp_profile.memory import OUT_OF_MEMORY, release_memory
from sp_profile.models import (
    LoadedConfig,
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_model,
)
from sp_profile.prompts import PromptText, encode
from sp_profile.record import NonFiniteAttentionError, RecordingHandler, RecordSettings
from sp_profile.run_config import RunConfig, computing_versions
from sp_profile.run_folder import RunFolder, create_or_resume
from sp_profile.run_group import RunGroup, group_device
from sp_profile.shard import PromptShard
from sp_runtime.errors import ResourceError, SpError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.integrations.transformers import attention_session
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.select import select_kernels
from sp_runtime.profile import PromptRecord

Progress = Callable[[int, int, str], None]
"""Called with (prompts done, prompts in all, name of the prompt in hand or "")."""

_POLL_SECONDS = 0.5  # between looks at what the rest of the group has finished


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a call of `calibrate` did.

    measured: prompts measured now, by the whole group; resumed: prompts that an earlier call had
    finished.
    duplicates: prompts left out because another one is the same. quarantined: prompts whose
    attention was not finite. problems: prompts that --keep-going left out.
    """

    path: Path
    config: RunConfig
    measured: int
    resumed: int
    duplicates: int
    quarantined: tuple[JournalEntry, ...]
    problems: tuple[SpError, ...]

    @property
    def total(self) -> int:
        return len(self.config.prompts)


def calibrate(
    config: CalibrationConfig,
    output: str | Path,
    *,
    group: RunGroup | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Measure a model on prompts into a run folder; the same configuration resumes.

    An interruption, KeyboardInterrupt included, loses the prompt in hand and nothing else.
    group: the processes that share the prompts, each of which makes this call; the first one
    returns when every prompt is done, the others when none is left to take.

    Raises UsageError (arguments, prompts, another run in the folder), UnsupportedError (model),
    CorruptArtefactError, ResourceError (memory, disk), FolderLockedError, and SpError where more
    than `config.max_bad_share` of the prompts hold attention that is not finite.
    """
    group = group or RunGroup()
    prepared = prepare(config, group)
    run, prompts = prepared.run, prepared.prompts
    with create_or_resume(output, run, group=group) as folder:
        resumed = len(folder.finished)
        if resumed < len(run.prompts):
            _Session(prepared=prepared).measure(folder, progress)
        _check_bad_share(folder, run)
        return RunSummary(
            path=Path(output),
            config=run,
            measured=len(folder.finished) - resumed,
            resumed=resumed,
            duplicates=prompts.duplicates,
            quarantined=folder.quarantined,
            problems=prompts.problems,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Everything that a calibration needs but the weights, which `load_model` loads."""

    run: RunConfig
    prompts: CalibrationPrompts
    source: ModelSource
    loaded: LoadedConfig
    tokenizer: Any
    device: torch.device
    kernels: Kernels

    def load_model(self) -> Any:
        """The model on its device; raises as `models.load_model`."""
        return load_model(
            self.source,
            self.run.dtype,
            self.device,
            config=self.loaded.config,
            trust_remote_code=self.run.trust_remote_code,
        )

    def record_settings(self) -> RecordSettings:
        """What is recorded of each prompt."""
        run = self.run
        return RecordSettings(
            block_size=run.block_size,
            gamma=run.gamma,
            sample_stride=run.sample_stride,
            candidates=run.candidates,
            mask_settings=run.settings,
            lending=run.lending,
            oracle_gammas=run.oracle_gammas,
            layers=run.fingerprint.full_layers,
            num_heads=run.fingerprint.num_heads,
        )


def prepare(config: CalibrationConfig, group: RunGroup) -> Calibration:
    """Resolve what was asked for, without weights; raises as `calibrate`."""
    source = resolve_model(config.model, revision=config.revision)
    device = _device(config, group)
    choice = select_kernels(config.kernels, device)
    loaded = load_config(source, trust_remote_code=config.trust_remote_code)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    prompts = collect_prompts(config, tokenizer, loaded.fingerprint.max_position_embeddings)
    return Calibration(
        run=_resolve(config, source, loaded.fingerprint, prompts, choice.name, device),
        prompts=prompts,
        source=source,
        loaded=loaded,
        tokenizer=tokenizer,
        device=device,
        kernels=choice.kernels,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Session:
    """Measures prompts into a folder."""

    prepared: Calibration

    @property
    def run(self) -> RunConfig:
        return self.prepared.run

    def measure(self, folder: RunFolder, progress: Progress | None) -> None:
        """Measure every prompt that is left, together with the rest of the group."""
        model = self.prepared.load_model()
        handler = RecordingHandler(self.prepared.record_settings(), self.prepared.kernels)
        layers = frozenset(self.run.fingerprint.full_layers)
        with attention_session(model, handler, name="sp_recording", layers=layers):
            while self._pass(model, handler, folder, progress):
                pass
        _report(progress, folder, self.run, "")

    def _pass(
        self,
        model: Any,
        handler: RecordingHandler,
        folder: RunFolder,
        progress: Progress | None,
    ) -> bool:
        """Measure every prompt that nobody has in hand; whether there may be more to do."""
        took = False
        for record, prompt in self.prepared.prompts.todo(folder.finished):
            with folder.work.claim(record.sha256) as mine:
                if not mine:
                    continue
                took = True
                _report(progress, folder, self.run, prompt.name)
                try:
                    self._measure_prompt(model, handler, folder, record, prompt)
                except NonFiniteAttentionError as error:
                    folder.quarantine(record.sha256, error.message)
                    _check_bad_share(folder, self.run)
        folder.work.refresh()
        if folder.work.is_complete:
            return False
        if not took:
            # The rest is in other hands. The first process stays, in case one of them fails.
            time.sleep(_POLL_SECONDS)
            return folder.work.group.is_first
        return True

    def _measure_prompt(
        self,
        model: Any,
        handler: RecordingHandler,
        folder: RunFolder,
        record: PromptRecord,
        prompt: PromptText,
    ) -> None:
        ids = encode(prompt, self.prepared.tokenizer, chat_template=self.run.chat_template)
        shard = self._record(model, handler, record, ids)
        if shard is None:
            handler.split()
            release_memory()
            shard = self._record(model, handler, record, ids)
        if shard is None:
            raise ResourceError(
                f"{prompt.name}: not enough memory on {self.prepared.device} for {len(ids)} "
                "tokens, not even with few heads at a time",
                hint="use a smaller dtype, shorter prompts or a larger device; finished prompts "
                "are kept",
            )
        folder.add(shard)

    def _record(
        self, model: Any, handler: RecordingHandler, record: PromptRecord, ids: tuple[int, ...]
    ) -> PromptShard | None:
        """The shard of one prompt; None where the memory does not suffice.

        Any other error of the device passes through and ends the process.
        """
        try:
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=self.prepared.device)
                model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            return handler.shard(record)
        except OUT_OF_MEMORY:
            return None


def _device(config: CalibrationConfig, group: RunGroup) -> torch.device:
    """The processes of a group spread over the GPUs, unless one is named."""
    if group.is_alone or config.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return resolve_device(config.device)
    return resolve_device(group_device(group))


def _resolve(
    config: CalibrationConfig,
    source: ModelSource,
    fingerprint: ModelFingerprint,
    prompts: CalibrationPrompts,
    kernels: str,
    device: torch.device,
) -> RunConfig:
    longest = max(record.tokens for record in prompts.records)
    block_size = config.resolve_block_size(longest)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return RunConfig(
        model=source.public_name,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        fingerprint=fingerprint,
        prompts=prompts.records,
        dtype=config.dtype,
        device=name,
        kernels=kernels,
        block_size=block_size,
        gamma=config.gamma,
        sample_stride=config.sample_stride,
        seed=config.seed,
        chat_template=prompts.chat_template,
        max_bad_share=config.max_bad_share,
        settings=MaskSettings(
            min_budget=config.resolve_min_budget(longest, block_size),
            max_budget=config.max_budget,
            slash_cover=config.slash_cover,
            sink=config.sink,
            local_blocks=config.local_blocks,
            row_slack=config.row_slack,
        ),
        candidates=default_candidates(gamma=config.gamma, stride=config.sample_stride)
        + (peer_candidates() if config.peers else ()),
        versions=computing_versions(),
        lending=default_lending(gamma=config.gamma, stride=config.sample_stride),
        oracle_gammas=ORACLE_GAMMAS,
    )


def _check_bad_share(folder: RunFolder, run: RunConfig) -> None:
    bad = folder.quarantined
    if len(bad) > run.max_bad_share * len(run.prompts):
        raise SpError(
            f"{len(bad)} of {len(run.prompts)} prompts cannot be measured: {bad[0].reason}",
            hint="try bfloat16 or float32, or raise the share of bad prompts that is allowed",
        )


def _report(progress: Progress | None, folder: RunFolder, run: RunConfig, label: str) -> None:
    if progress is not None:
        progress(len(folder.finished), len(run.prompts), label)
