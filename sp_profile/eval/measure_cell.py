"""One cell measured: prefill its prompts by one method, decode them in batches, score."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from sp_profile.agreement import measure_agreement
from sp_profile.eval.branches import BranchTally
from sp_profile.eval.cells import Cell, CellResult, Environment, HeadRecall, PromptRow
from sp_profile.eval.decode import cache_bytes, decode_greedily
from sp_profile.eval.forward import Forward, NonFiniteLogitsError, Prefilled
from sp_profile.eval.prompt_store import StoredPrompt
from sp_profile.eval.quoted import quote
from sp_profile.memory import OUT_OF_MEMORY, release_memory
from sp_profile.scoring import score
from sp_profile.scoring.likelihood import agreement_score, nll
from sp_runtime.audit import Audit
from sp_runtime.errors import ResourceError
from sp_runtime.operating_point import OperatingPoint

_CACHE_SHARE = (
    0.4  # of a process's memory; weights, activations and one stacked layer need the rest
)
_MAX_BATCH = 64
_PRIMED_BY = 1  # warm-up runs of a length class before a time is taken on a GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    """How cells are measured.

    timed: take times; untimed: why not, or "". decode: False in a timing or recall pass. sharing:
    processes that share the device's memory. audit: share of the heads whose recall is measured.
    """

    timed: bool
    untimed: str
    decode: bool
    include_text: bool
    sharing: int
    environment: Environment
    audit: float | None = None


class CellMeasurer:
    """Measures cells on one model, several forwards by method; memory is freed between cells."""

    def __init__(
        self,
        forwards: dict[str, Forward],
        tokenizer: Any,
        stop: frozenset[int],
        settings: MeasureSettings,
    ) -> None:
        self._forwards = forwards
        self._tokenizer = tokenizer
        self._stop = stop
        self._settings = settings
        self._warm: set[tuple[str, int]] = set()
        self._cache_share = _CACHE_SHARE
        self._tally = BranchTally()

    def measure(self, cell: Cell, prompts: Sequence[StoredPrompt]) -> CellResult:
        """The cell's rows.

        Raises NonFiniteLogitsError, ResourceError where one prompt alone is too much, and what
        `attach` raises.
        """
        settings = self._settings
        forward = self._forwards[cell.method.profile]
        try:
            warmup, rows = self._attempt(forward, cell, prompts)
        except OUT_OF_MEMORY as error:
            raise ResourceError(
                f"{cell}: out of memory on {forward.device}",
                hint="start fewer processes on a device, or use --dtype bfloat16; what is finished "
                "is kept",
            ) from error
        finally:
            if forward.device.type == "cuda":
                torch.cuda.empty_cache()
        return CellResult(
            id=cell.id,
            method=cell.method.label,
            task=cell.task,
            length=cell.length,
            metric=prompts[0].metric,
            environment=settings.environment,
            warmup_runs=warmup,
            untimed=settings.untimed,
            rows=rows,
            branches=self._tally.result(),
        )

    def _attempt(
        self, forward: Forward, cell: Cell, prompts: Sequence[StoredPrompt]
    ) -> tuple[int, tuple[PromptRow, ...]]:
        """Warm-up runs and rows; once more with half the batch where the memory did not suffice."""
        try:
            return self._measured(forward, cell, prompts)
        except OUT_OF_MEMORY:
            self._cache_share /= 2
        # Outside of the handler, whose traceback holds on to the caches.
        release_memory()
        return self._measured(forward, cell, prompts)

    def _measured(
        self, forward: Forward, cell: Cell, prompts: Sequence[StoredPrompt]
    ) -> tuple[int, tuple[PromptRow, ...]]:
        warmup = self._warm_up(forward, cell, prompts[0])
        self._tally = BranchTally()
        return warmup, tuple(self._rows(forward, cell, prompts))

    def _warm_up(self, forward: Forward, cell: Cell, prompt: StoredPrompt) -> int:
        """Run the first prompt once where times are taken on a GPU; a method and length once."""
        if not self._settings.timed or forward.device.type != "cuda":
            return 0
        key = (cell.method.label, (len(prompt.token_ids) - 1).bit_length())
        if key not in self._warm:
            self._warm.add(key)
            self._prefill(forward, cell, prompt, timed=True)
        return _PRIMED_BY

    def _rows(
        self, forward: Forward, cell: Cell, prompts: Sequence[StoredPrompt]
    ) -> Iterator[PromptRow]:
        if not self._settings.decode or prompts[0].metric == "nll":
            for prompt in prompts:
                yield self._without_decoding(forward, cell, prompt)
            return
        if prompts[0].metric == "agreement":
            for prompt in prompts:
                yield self._agreement(forward, cell, prompt)
            return
        # Equal token counts and limits decode together, in the order of the prompts.
        for _, same in groupby(prompts, lambda p: (len(p.token_ids), p.max_new_tokens)):
            yield from self._decoded(forward, cell, list(same))

    def _without_decoding(self, forward: Forward, cell: Cell, prompt: StoredPrompt) -> PromptRow:
        settings = self._settings
        with_loss = settings.decode and prompt.metric == "nll"
        done = self._prefill(forward, cell, prompt, timed=settings.timed, every_position=with_loss)
        value = None
        if with_loss:
            ids = torch.as_tensor(prompt.token_ids, device=forward.device).long()
            value = nll(done.hidden, forward.head, ids).score
            if not math.isfinite(value):
                raise NonFiniteLogitsError(f"the likelihood of prompt {prompt.index} is not finite")
        return self._row(prompt, done, value, ())

    def _agreement(self, forward: Forward, cell: Cell, prompt: StoredPrompt) -> PromptRow:
        """One of the user's own prompts, computed densely beside it."""
        done = self._prefill(forward, cell, prompt, timed=self._settings.timed, every_position=True)
        dense_cell = replace(
            cell, method=replace(cell.method, point=OperatingPoint(method="dense"))
        )
        dense = self._prefill(forward, dense_cell, prompt, timed=False, every_position=True)
        ours, theirs = decode_greedily(
            forward.decoder,
            forward.head,
            [done.cache, dense.cache],
            [done.first_token, dense.first_token],
            max_new_tokens=prompt.max_new_tokens,
            stop=self._stop,
        )
        measured = agreement_score(
            measure_agreement(
                forward.head, dense.hidden, done.hidden, generated_equal=ours == theirs
            )
        )
        return replace(
            self._row(prompt, done, measured.score, ours),
            kl=measured.kl,
            kl_last=measured.kl_last,
            equal=measured.equal,
        )

    def _decoded(
        self, forward: Forward, cell: Cell, prompts: list[StoredPrompt]
    ) -> Iterator[PromptRow]:
        """Rows of prompts of one length: prefill a batch, stack its caches, decode it."""
        limit = 1  # the first prompt's cache tells how many fit
        start = 0
        held: list[Prefilled] = []
        while start < len(prompts):
            held.append(
                self._prefill(forward, cell, prompts[start + len(held)], timed=self._settings.timed)
            )
            if len(held) == 1:
                limit = self._batch(held[0], forward.device)
            if len(held) < min(limit, len(prompts) - start):
                continue
            batch = prompts[start : start + len(held)]
            answers = decode_greedily(
                forward.decoder,
                forward.head,
                [done.cache for done in held],
                [done.first_token for done in held],
                max_new_tokens=batch[0].max_new_tokens,
                stop=self._stop,
            )
            for prompt, done, answer in zip(batch, held, answers, strict=True):
                text = self._text(answer)
                yield self._row(prompt, done, score(prompt.metric, text, prompt), answer)
            start += len(held)
            held = []

    def _prefill(
        self,
        forward: Forward,
        cell: Cell,
        prompt: StoredPrompt,
        *,
        timed: bool,
        every_position: bool = False,
    ) -> Prefilled:
        ids = torch.as_tensor(prompt.token_ids, device=forward.device).long()[None]
        share = self._settings.audit
        return forward.prefill(
            cell.method.point,
            ids,
            timed=timed,
            every_position=every_position,
            audit=None if share is None else prompt_audit(share, prompt.sha256),
        )

    def _batch(self, done: Prefilled, device: torch.device) -> int:
        """How many caches of this size are held at once."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
        else:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        budget = self._cache_share * memory / self._settings.sharing
        return max(1, min(_MAX_BATCH, int(budget // max(cache_bytes(done.cache), 1))))

    def _row(
        self,
        prompt: StoredPrompt,
        done: Prefilled,
        value: float | None,
        answer: tuple[int, ...],
    ) -> PromptRow:
        self._tally.add(done.branches)
        kept = self._settings.include_text and prompt.max_new_tokens > 0 and value is not None
        return PromptRow(
            index=prompt.index,
            prompt_sha256=prompt.sha256,
            score=value,
            density=done.density,
            estimation=done.estimation,
            path=done.path,
            new_tokens=len(answer),
            timing=done.timing,
            text=quote(self._text(answer)) if kept else None,
            recalls=tuple(
                HeadRecall(layer=one.layer, head=one.head, branch=one.branch, recall=one.recall)
                for one in done.audits
            ),
        )

    def _text(self, tokens: tuple[int, ...]) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def prompt_audit(share: float, prompt_sha256: str) -> Audit:
    """An audit whose heads follow from the prompt alone: the same ones for every method."""
    return Audit(share, seed=int(prompt_sha256[:15], 16))
