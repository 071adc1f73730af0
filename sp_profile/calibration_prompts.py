"""The prompts of a calibration: identified in a first pass, made again one at a time to measure.

So the texts of a large prompt set are never all in memory (standard input excepted).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sp_profile.calibration_config import CalibrationConfig
from sp_profile.prompts import (
    STDIN,
    PromptText,
    encode,
    has_chat_template,
    iter_prompts,
    read_prompts,
)
from sp_profile.tasks import make_prompt
from sp_runtime.errors import SpError, UsageError
from sp_runtime.profile import PromptRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationPrompts:
    """records: ascending by sha256, each once; `make` yields the texts again, in their order."""

    records: tuple[PromptRecord, ...]
    chat_template: bool
    duplicates: int
    problems: tuple[SpError, ...]
    make: Callable[[], Iterator[PromptText | UsageError]]

    def todo(self, finished: frozenset[str]) -> Iterator[tuple[PromptRecord, PromptText]]:
        """Prompts that are not in `finished`, in the order given.

        Raises UsageError if the files have changed since they were identified.
        """
        wanted = {r.sha256: r for r in self.records if r.sha256 not in finished}
        for prompt in self.make():
            if not wanted:
                return
            if isinstance(prompt, PromptText):
                record = wanted.pop(prompt.sha256(self.chat_template), None)
                if record is not None:
                    yield record, prompt
        if wanted:
            raise UsageError(
                f"{len(wanted)} prompts are no longer what they were when the run began",
                hint="do not change prompt files while they are measured",
            )


def collect_prompts(
    config: CalibrationConfig, tokenizer: Any, max_tokens: int
) -> CalibrationPrompts:
    """Read or make every prompt once; raises UsageError at the first problem, or with
    `config.keep_going` only if no prompt is left."""
    chat = has_chat_template(tokenizer) if config.chat_template is None else config.chat_template
    make = _source(config, tokenizer, chat)
    records: dict[str, PromptRecord] = {}
    problems: list[SpError] = []
    duplicates = 0
    for prompt in make():
        try:
            if not isinstance(prompt, PromptText):
                raise prompt
            ids = encode(prompt, tokenizer, chat_template=chat, max_tokens=max_tokens)
        except UsageError as error:
            if not config.keep_going:
                raise
            problems.append(error)
            continue
        sha256 = prompt.sha256(chat)
        duplicates += sha256 in records
        records.setdefault(sha256, PromptRecord(sha256=sha256, tokens=len(ids), task=prompt.task))
    if not records:
        raise problems[0] if problems else UsageError("no prompts were given")
    return CalibrationPrompts(
        records=tuple(records[sha256] for sha256 in sorted(records)),
        chat_template=chat,
        duplicates=duplicates,
        problems=tuple(problems),
        make=make,
    )


def _source(
    config: CalibrationConfig, tokenizer: Any, chat: bool
) -> Callable[[], Iterator[PromptText | UsageError]]:
    if not config.prompts:
        return lambda: _built_in(config, tokenizer, chat)
    if STDIN in config.prompts:
        read = read_prompts(config.prompts, keep_going=config.keep_going)
        return lambda: iter((*read.prompts, *_usage_errors(read.problems)))
    return lambda: iter_prompts(config.prompts)


def _usage_errors(problems: tuple[SpError, ...]) -> tuple[UsageError, ...]:
    return tuple(problem for problem in problems if isinstance(problem, UsageError))


def _built_in(config: CalibrationConfig, tokenizer: Any, chat: bool) -> Iterator[PromptText]:
    for length in config.lengths:
        for task in config.tasks:
            for index in range(config.samples):
                yield make_prompt(
                    task, length, tokenizer, chat_template=chat, seed=config.seed, index=index
                )
