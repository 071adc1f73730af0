"""Calibration: prompts through a model with recording attention, one shard a prompt."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_profile.calibration_config import CalibrationConfig
from sp_profile.calibration_prompts import CalibrationPrompts, collect_prompts
from sp_profile.candidates import MaskSettings, default_candidates
from sp_profile.journal import JournalEntry
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
from sp_profile.run_config import RunConfig
from sp_profile.run_folder import RunFolder, create_or_resume
from sp_runtime.errors import ResourceError, SpError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.integrations.transformers import attention_session
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.select import select_kernels
from sp_runtime.profile import PromptRecord
from sp_runtime.version import __version__

Progress = Callable[[int, int, str], None]
"""Called with (prompts done, prompts in all, name of the prompt in hand or "")."""

_VERSIONED = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a call of `calibrate` did.

    measured: prompts measured now; resumed: prompts that an earlier call had finished.
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
    config: CalibrationConfig, output: str | Path, *, progress: Progress | None = None
) -> RunSummary:
    """Measure a model on prompts into a run folder; the same configuration resumes.

    An interruption, KeyboardInterrupt included, loses the prompt in hand and nothing else.

    Raises UsageError (arguments, prompts, another run in the folder), UnsupportedError (model),
    CorruptArtefactError, ResourceError (memory, disk), FolderLockedError, and SpError where more
    than `config.max_bad_share` of the prompts hold attention that is not finite.
    """
    source = resolve_model(config.model, revision=config.revision)
    device = resolve_device(config.device)
    choice = select_kernels(config.kernels, device)
    loaded = load_config(source, trust_remote_code=config.trust_remote_code)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    prompts = collect_prompts(config, tokenizer, loaded.fingerprint.max_position_embeddings)
    run = _resolve(config, source, loaded.fingerprint, prompts, choice.name, device)
    with create_or_resume(output, run) as folder:
        resumed = len(folder.finished)
        if resumed < len(run.prompts):
            session = _Session(
                run=run, source=source, loaded=loaded, tokenizer=tokenizer, device=device
            )
            session.measure(folder, prompts.todo(folder.finished), choice.kernels, progress)
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
class _Session:
    """What it takes to measure a prompt; the model is loaded by `measure`, not before."""

    run: RunConfig
    source: ModelSource
    loaded: LoadedConfig
    tokenizer: Any
    device: torch.device

    def measure(
        self,
        folder: RunFolder,
        prompts: Iterator[tuple[PromptRecord, PromptText]],
        kernels: Kernels,
        progress: Progress | None,
    ) -> None:
        run = self.run
        model = load_model(
            self.source,
            run.dtype,
            self.device,
            config=self.loaded.config,
            trust_remote_code=run.trust_remote_code,
        )
        handler = RecordingHandler(_record_settings(run), kernels)
        layers = frozenset(run.fingerprint.full_layers)
        with attention_session(model, handler, name="sp_recording", layers=layers):
            for record, prompt in prompts:
                _report(progress, folder, run, prompt.name)
                try:
                    self._measure_prompt(model, handler, folder, record, prompt)
                except NonFiniteAttentionError as error:
                    folder.quarantine(record.sha256, error.message)
                    _check_bad_share(folder, run)
        _report(progress, folder, run, "")

    def _measure_prompt(
        self,
        model: Any,
        handler: RecordingHandler,
        folder: RunFolder,
        record: PromptRecord,
        prompt: PromptText,
    ) -> None:
        ids = encode(prompt, self.tokenizer, chat_template=self.run.chat_template)
        try:
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=self.device)
                model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            shard = handler.shard(record)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceError(
                f"{prompt.name}: not enough memory on {self.device} for {len(ids)} tokens",
                hint="use a smaller dtype, shorter prompts or a larger device; finished prompts "
                "are kept",
            ) from error
        folder.add(shard)


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
    versions = {package: importlib.metadata.version(package) for package in _VERSIONED}
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
        ),
        candidates=default_candidates(gamma=config.gamma, stride=config.sample_stride),
        versions=tuple(sorted({**versions, "sparse-prefill": __version__}.items())),
    )


def _record_settings(run: RunConfig) -> RecordSettings:
    return RecordSettings(
        block_size=run.block_size,
        gamma=run.gamma,
        sample_stride=run.sample_stride,
        candidates=run.candidates,
        mask_settings=run.settings,
        layers=run.fingerprint.full_layers,
        num_heads=run.fingerprint.num_heads,
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
