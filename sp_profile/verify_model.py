"""A profile on its model: held-out prompts, sparse against dense, and recall head by head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sp_profile.models import (
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_model,
)
from sp_profile.pattern_recall import PatternRecallHandler
from sp_profile.prefill import Prefiller, encode_prompts
from sp_profile.prefill_types import EncodedPrompt, PrefillConfig, PrefillResult
from sp_profile.prompts import PromptText
from sp_profile.tasks import make_prompt
from sp_profile.verify_types import HeadRecall, ModelCheck, ModelCheckConfig, PromptCheck
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import require_match
from sp_runtime.integrations.transformers import attention_session
from sp_runtime.kernels.select import select_kernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import DEFAULT_POINT, Profile

Progress = Callable[[int, int], None]
_ANSWER_ROOM = 16  # tokens that a model may say before and after an answer


def check_model(
    profile: Profile, config: ModelCheckConfig, *, progress: Progress | None = None
) -> ModelCheck:
    """Run held-out prompts densely, sparsely, and with the pattern beside exact attention.

    Raises UsageError (no such model, lengths that the profile computes densely or the tasks cannot
    have), ProfileMismatchError before weights load, and what loading and `attach` raise.
    """
    name = config.point or DEFAULT_POINT
    point = profile.point(name)
    lengths = _lengths(profile, config, point)
    source = resolve_model(config.model, revision=config.revision)
    device = resolve_device(config.device)
    trust = config.trust_remote_code
    loaded = load_config(source, trust_remote_code=trust)
    require_match(profile.model, loaded.fingerprint, allow_weights=config.allow_weights_mismatch)
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    chat = profile.calibration.chat_template
    prompts = [
        make_prompt(
            task,
            length,
            tokenizer,
            chat_template=chat,
            seed=config.seed,
            index=index,
            split="heldout",
        )
        for length in lengths
        for task in config.tasks
        for index in range(config.samples)
    ]
    prefill = PrefillConfig(
        point=point,
        chat_template=chat,
        compare_dense=True,
        generate=_answer_tokens(prompts, tokenizer),
        kernels=config.kernels,
        warmup=0,
        include_text=True,  # to be judged here; no report holds it
        weights_sha256=loaded.fingerprint.weights_sha256,
        allow_weights_mismatch=config.allow_weights_mismatch,
    )
    context = loaded.fingerprint.max_position_embeddings
    encoded, _ = encode_prompts(prompts, tokenizer, prefill, context=context)
    dtype = config.dtype or profile.calibration.dtype
    model = load_model(source, dtype, device, config=loaded.config, trust_remote_code=trust)
    prefiller = Prefiller(model, tokenizer, prefill, profile)
    recall = _RecallMeter(model, profile, point, select_kernels(config.kernels, device).kernels)
    checks: list[PromptCheck] = []
    report = progress or (lambda done, total: None)
    report(0, len(prompts))
    for text, prompt in zip(prompts, encoded, strict=True):
        checks.append(_judge(text, prefiller.run(prompt)))
        recall.add(prompt)
        report(len(checks), len(prompts))
    promises = point.method == "share" and point.rule == "plan"
    return ModelCheck(
        point=name,
        prompts=tuple(checks),
        recall_floor=profile.plan.recall_floor if promises else None,
        recall=recall.result(),
    )


def _lengths(profile: Profile, config: ModelCheckConfig, point: OperatingPoint) -> tuple[int, ...]:
    longest = max((prompt.tokens for prompt in profile.calibration.prompts), default=0)
    lengths = config.lengths or ((longest,) if longest else ())
    if not lengths:
        raise UsageError("the profile was calibrated on no prompts", hint="say --length")
    short = min(lengths)
    if point.method == "dense" or short < point.min_tokens:
        raise UsageError(
            f"{short} tokens are computed densely at this point: there is nothing to compare",
            hint=f"use --length {point.min_tokens} or more",
        )
    return lengths


def _answer_tokens(prompts: Sequence[PromptText], tokenizer: Any) -> int:
    texts = [" ".join(prompt.answers) for prompt in prompts]
    longest = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return longest + _ANSWER_ROOM


def _judge(prompt: PromptText, result: PrefillResult) -> PromptCheck:
    assert result.agreement is not None

    def right(text: str | None) -> bool:
        assert text is not None
        return all(answer in text for answer in prompt.answers)

    return PromptCheck(
        prompt=prompt.name,
        task=prompt.task,
        tokens=result.tokens,
        path=result.sparsity.path,
        density=result.sparsity.density,
        kl_mean=result.agreement.kl_mean,
        kl_last=result.agreement.kl_last,
        top1=result.agreement.top1,
        dense_right=right(result.dense_text),
        sparse_right=right(result.text),
    )


class _RecallMeter:
    """Mean recall of every head over prompts."""

    def __init__(self, model: Any, profile: Profile, point: OperatingPoint, kernels: Any) -> None:
        size = profile.calibration.block_size
        factory = make_pattern_factory(point, profile, block_size=size)
        self._handler = PatternRecallHandler(factory, point, kernels, size)
        self._model = model
        self._profile = profile
        self._sums: dict[tuple[int, int], float] = {}
        self._prompts = 0

    @torch.inference_mode()
    def add(self, prompt: EncodedPrompt) -> None:
        """One forward of one prompt."""
        layers = frozenset(self._profile.model.full_layers)
        ids = torch.tensor([prompt.token_ids], device=self._model.device)
        with attention_session(self._model, self._handler, name="sp_recall", layers=layers):
            self._model.get_decoder()(input_ids=ids, use_cache=False)
        for layer, values in self._handler.recall().items():
            for head, value in enumerate(values):
                self._sums[layer, head] = self._sums.get((layer, head), 0.0) + value
        self._prompts += 1

    def result(self) -> tuple[HeadRecall, ...]:
        return tuple(
            HeadRecall(
                head=plan.ref,
                assignment=plan.assignment,
                promised=plan.recall,
                recall=self._sums[plan.ref] / self._prompts,
            )
            for plan in self._profile.plan.heads
        )
