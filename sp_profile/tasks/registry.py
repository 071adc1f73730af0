"""The evaluation tasks by name and group, and the prompts of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sp_profile.tasks.cell import Cell
from sp_profile.tasks.eval_prompt import EvalPrompt, TaskData
from sp_profile.tasks.infinitebench import INFINITEBENCH_TASKS, infinitebench_prompts
from sp_profile.tasks.language_modelling import perplexity_prompts
from sp_profile.tasks.own_prompts import agreement_prompts
from sp_profile.tasks.ruler import (
    JSON_KV,
    PROSE_SAMPLE,
    RULER_TASKS,
    json_kv_prompts,
    ruler_prompts,
)
from sp_runtime.errors import UsageError, nearest

_PPL = "ppl"
_AGREEMENT = "agreement"
_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ruler": RULER_TASKS,
        # What a small model trained on retrieval can do: one answer, several values, one chain.
        "retrieval": (*RULER_TASKS[:7], "vt", JSON_KV),
        "infinitebench": INFINITEBENCH_TASKS,
        "ppl": (_PPL,),
        "agreement": (_AGREEMENT,),
    }
)


def eval_task_groups() -> Mapping[str, tuple[str, ...]]:
    """Names of the tasks of each group."""
    return _GROUPS


def eval_task_names() -> tuple[str, ...]:
    """All tasks, each once."""
    return tuple(dict.fromkeys(name for names in _GROUPS.values() for name in names))


def resolve_tasks(text: str) -> tuple[str, ...]:
    """Tasks of a comma-separated list of tasks and groups, in its order, each once.

    Raises UsageError for a name that is neither, with the nearest one.
    """
    found: dict[str, None] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        known = (name,) if name in eval_task_names() else _GROUPS.get(name)
        if known is None:
            raise _unknown(name)
        found.update(dict.fromkeys(known))
    if not found:
        raise UsageError("no tasks were given", hint=f"such as {', '.join(_GROUPS)}")
    return tuple(found)


def make_prompts(
    task: str,
    *,
    tokenizer: Any,
    length: int,
    samples: int,
    seed: int,
    chat_template: bool,
    data: TaskData | None = None,
) -> Iterator[EvalPrompt]:
    """Up to `samples` prompts of a cell, made one at a time.

    Prompts of the RULER tasks, json_kv and ppl have exactly `length` tokens, chat template and
    answer prefix included; those of infinitebench at most so many; the user's own have what they
    have, and more than `length` is refused. There are fewer than `samples` where the data hold
    fewer, and at least one. A prompt depends on (task, seed, index, length) and the data alone.

    Raises UsageError, before the first prompt, for an unknown task, missing or broken data, and a
    length that the task cannot have.
    """
    if task not in eval_task_names():
        raise _unknown(task)
    if samples < 1:
        raise UsageError(f"samples {samples} is under 1", hint="try 25")
    if length < 1:
        raise UsageError(f"length {length} is under 1", hint="in tokens")
    cell = Cell(
        task=task,
        tokenizer=tokenizer,
        length=length,
        samples=samples,
        seed=seed,
        chat_template=chat_template,
        data=data or TaskData(),
    )
    if task == _PPL:
        return perplexity_prompts(cell, PROSE_SAMPLE)
    if task == _AGREEMENT:
        return agreement_prompts(cell)
    if task == JSON_KV:
        return json_kv_prompts(cell)
    if task in INFINITEBENCH_TASKS:
        return infinitebench_prompts(cell)
    return ruler_prompts(cell)


def _unknown(name: str) -> UsageError:
    names = (*_GROUPS, *eval_task_names())
    hint = nearest(name, names) or f"use groups {', '.join(_GROUPS)} or their tasks"
    return UsageError(f"unknown evaluation task {name!r}", hint=hint)
