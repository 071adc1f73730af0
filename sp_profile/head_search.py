"""Measuring every head of a model on a profile's calibration prompts, one layer at a time.

What the searches for head patterns share: only prompts of the profile's own calibration are used,
so that a search never sees a prompt that an evaluation may use.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sp_profile.calibration_config import CalibrationConfig
from sp_profile.calibration_prompts import CalibrationPrompts, collect_prompts
from sp_profile.models import load_config, load_model, load_tokenizer, resolve_device, resolve_model
from sp_profile.prompts import encode
from sp_profile.record import NonFiniteAttentionError
from sp_profile.rewrite import rewrite_profile
from sp_profile.run_config import Dtype
from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import ResourceError, UnsupportedError, UsageError
from sp_runtime.fingerprint import require_match
from sp_runtime.integrations.transformers import ForwardCall, attention_session
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.select import select_kernels
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.profile import HeadPatterns, Profile, PromptRecord

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""
Observe = Callable[[PromptRecord, LayerInputs, Tensor], None]
"""Called for every layer of every prompt with its exact block mass, float32 [H, R, C]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search runs on.

    prompts: files of the profile's calibration; without any, its built-in prompts are made again.
    lengths: of those, only prompts of so many tokens; () is all of them.
    device: auto, cpu or cuda[:N]; kernels: auto, triton or reference.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    prompts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    dtype: Dtype = "float32"
    device: str = "auto"
    kernels: str = "auto"
    allow_weights_mismatch: bool = False


def measure_heads(
    profile: Profile, config: SearchConfig, observe: Observe, progress: Progress
) -> tuple[PromptRecord, ...]:
    """Run the calibration prompts through the model and show every layer to `observe`.

    Returns the prompts used, ascending by hash.
    Raises UsageError (prompts that are not the profile's), ProfileMismatchError, UnsupportedError,
    ResourceError, NonFiniteAttentionError.
    """
    if not profile.calibration.prompts:
        raise UsageError(
            "the profile has no calibration prompts to search on",
            hint="search on a profile that `sp-profile calibrate` and `cluster` made",
        )
    source = resolve_model(config.model, revision=config.revision)
    device = resolve_device(config.device)
    choice = select_kernels(config.kernels, device)
    loaded = load_config(source, trust_remote_code=config.trust_remote_code)
    require_match(profile.model, loaded.fingerprint, allow_weights=config.allow_weights_mismatch)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    prompts = collect_prompts(
        _collection(profile, config), tokenizer, loaded.fingerprint.max_position_embeddings
    )
    records = _chosen(profile, config, prompts)
    model = load_model(
        source,
        config.dtype,
        device,
        config=loaded.config,
        trust_remote_code=config.trust_remote_code,
    )
    skipped = frozenset(r.sha256 for r in prompts.records) - {r.sha256 for r in records}
    handler = _MassHandler(profile.calibration.block_size, choice.kernels, observe)
    layers = frozenset(profile.model.full_layers)
    progress(0, len(records))
    with attention_session(model, handler, name="sp_search", layers=layers):
        for done, (record, prompt) in enumerate(prompts.todo(skipped), start=1):
            ids = encode(prompt, tokenizer, chat_template=prompts.chat_template)
            handler.prompt = record
            _forward(model, ids, device, prompt.name)
            progress(done, len(records))
    return records


def _forward(model: Any, ids: Any, device: torch.device, name: str) -> None:
    try:
        with torch.inference_mode():
            tokens = torch.tensor([ids], device=device)
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"{name}: not enough memory on {device} for {len(ids)} tokens",
            hint="use a smaller dtype, --length or a larger device",
        ) from error


def _collection(profile: Profile, config: SearchConfig) -> CalibrationConfig:
    """The configuration that makes the profile's calibration prompts again."""
    calibration = profile.calibration
    if config.prompts:
        return CalibrationConfig(
            model=config.model,
            prompts=config.prompts,
            chat_template=calibration.chat_template,
            keep_going=True,
        )
    built_in = [prompt for prompt in calibration.prompts if prompt.task]
    if not built_in:
        raise UsageError(
            "the profile was calibrated on prompts of its maker, which it does not hold",
            hint="pass the same files with --prompts",
        )
    cells = Counter((prompt.task, prompt.tokens) for prompt in built_in)
    lengths = {tokens for _, tokens in cells}
    if config.lengths:
        lengths &= {*config.lengths}
    if not lengths:
        known = ", ".join(map(str, sorted({tokens for _, tokens in cells})))
        raise UsageError(
            "no calibration prompt of the profile has such a length", hint=f"it has {known}"
        )
    return CalibrationConfig(
        model=config.model,
        tasks=tuple(sorted({task for task, _ in cells})),
        lengths=tuple(sorted(lengths)),
        samples=max(cells.values()),
        seed=calibration.seed,
        chat_template=calibration.chat_template,
    )


def _chosen(
    profile: Profile, config: SearchConfig, prompts: CalibrationPrompts
) -> tuple[PromptRecord, ...]:
    known = {prompt.sha256 for prompt in profile.calibration.prompts}
    records = tuple(
        record
        for record in prompts.records
        if record.sha256 in known and (not config.lengths or record.tokens in config.lengths)
    )
    if not records:
        raise UsageError(
            "none of these prompts is one that the profile was calibrated on",
            hint="pass the calibration's own files, and the lengths that are in it",
        )
    return records


class _MassHandler:
    """An `AttentionHandler` that computes exact attention and shows its block mass."""

    def __init__(self, block_size: int, kernels: Kernels, observe: Observe) -> None:
        self.prompt: PromptRecord | None = None
        self._block_size = block_size
        self._kernels = kernels
        self._observe = observe
        self._grid: BlockGrid | None = None

    def begin(self, call: ForwardCall) -> None:
        if call.q_offset != 0:
            raise UnsupportedError("a search takes each prompt in one piece")
        self._grid = BlockGrid(q_len=call.q_len, kv_len=call.kv_len, block_size=self._block_size)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        assert self._grid is not None, "begin comes first"
        assert self.prompt is not None
        grid = self._grid
        inputs = LayerInputs(layer=layer, q=q, k=k, grid=grid, scale=scale, kernels=self._kernels)
        index = BlockIndex.full(1, q.shape[1], grid, q.device)
        output, lse = self._kernels.attention(q, k, v, index, scale=scale)
        heads = torch.arange(q.shape[1], device=q.device)[None]
        mass = self._kernels.block_mass(q, k, lse, heads, grid, scale=scale)[0].float()
        if not bool(torch.isfinite(mass).all()):
            raise NonFiniteAttentionError(
                f"attention of layer {layer} holds NaN or infinity",
                hint="try bfloat16 or float32 in place of float16",
            )
        self._observe(self.prompt, inputs, mass)
        return output


def write_with_patterns(
    source: Path,
    profile: Profile,
    patterns: HeadPatterns,
    target: Path,
    *,
    settings: str | None = None,
    overwrite: bool,
) -> Profile:
    """The profile of folder `source` with other head patterns, as a new folder; its tables come
    along. Returns it as published."""
    changed = dataclasses.replace(profile, head_patterns=patterns)
    return rewrite_profile(source, profile, changed, target, settings=settings, overwrite=overwrite)
