"""The thirteen tasks of RULER (arXiv 2404.06654) as cells of prompts, and JSON key-value."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from sp_profile.tasks.cell import Cell, Drawn, fitted_prompts
from sp_profile.tasks.eval_prompt import GENERATED, EvalPrompt, eval_rng
from sp_profile.tasks.fitting import Sketch
from sp_profile.tasks.haystack import Essay
from sp_profile.tasks.niah import NEEDLE_TASKS, json_kv_sketch, needle_sketch
from sp_profile.tasks.qa import QaData, qa_sketch, question_order
from sp_profile.tasks.qa_data import read_hotpotqa, read_squad
from sp_profile.tasks.task_files import TaskFile, read_task_file
from sp_profile.tasks.variable_tracking import variable_tracking_sketch
from sp_profile.tasks.word_counts import coded_words_sketch, common_words_sketch, english_words

PROSE_SAMPLE = "prose_sample.txt"
RULER_TASKS = (*NEEDLE_TASKS, "vt", "cwe", "fwe", "qa_1", "qa_2")
JSON_KV = "json_kv"
# Tokens that RULER generates (scripts/data/synthetic/constants.py).
_NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
_NEEDLE_TOKENS = 128
_KEY_VALUE_TOKENS = 50  # InfiniteBench, src/eval_utils.py
_SPARE_WORDS = 1024


def ruler_prompts(cell: Cell) -> Iterator[EvalPrompt]:
    """The prompts of a RULER task; raises UsageError for data that cannot be used."""
    if cell.task in ("qa_1", "qa_2"):
        draw = _qa(cell)
        return fitted_prompts(
            cell, draw, metric="string_match_part", max_new_tokens=_NEW_TOKENS[cell.task]
        )
    draw = _needle(cell) if cell.task in NEEDLE_TASKS else _others(cell)
    new_tokens = _NEW_TOKENS.get(cell.task, _NEEDLE_TOKENS)
    return fitted_prompts(cell, draw, metric="string_match_all", max_new_tokens=new_tokens)


def json_kv_prompts(cell: Cell) -> Iterator[EvalPrompt]:
    """Key-value retrieval from JSON, as in InfiniteBench's Retr.KV, of an exact length."""

    def draw(index: int) -> Drawn:
        return _generated(json_kv_sketch(_rng(cell, index)))

    return fitted_prompts(cell, draw, metric="string_match_all", max_new_tokens=_KEY_VALUE_TOKENS)


def _needle(cell: Cell) -> Callable[[int], Drawn]:
    task = NEEDLE_TASKS[cell.task]
    if task.haystack != "essay":
        return lambda index: _generated(needle_sketch(task, _rng(cell, index), None))
    file, essay = _essay(cell)

    def draw(index: int) -> Drawn:
        sketch = needle_sketch(task, _rng(cell, index), essay)
        return Drawn(sketch=sketch, origin=lambda _: file.origin)

    return draw


def _others(cell: Cell) -> Callable[[int], Drawn]:
    if cell.task == "vt":
        return lambda index: _generated(variable_tracking_sketch(_rng(cell, index)))
    if cell.task == "fwe":
        return lambda index: _generated(coded_words_sketch(_rng(cell, index), cell.length))
    words = english_words(read_task_file(None, cell.task, PROSE_SAMPLE).text)
    return lambda index: _generated(common_words_sketch(_rng(cell, index), words, cell.length))


def _qa(cell: Cell) -> Callable[[int], Drawn | None]:
    file, data = _qa_data(cell)
    prose, essay = _essay(cell)
    order = question_order(data, eval_rng("questions", cell.task, cell.seed))
    room = cell.length + _SPARE_WORDS

    def draw(index: int) -> Drawn | None:
        if index >= len(order):
            return None
        question = data.questions[order[index]]
        found = qa_sketch(question, data, essay, _rng(cell, index), room)

        def origin(units: int) -> str:
            origins = (
                (file.origin,) if units <= found.document_words else (file.origin, prose.origin)
            )
            return "+".join(dict.fromkeys(origins))

        return Drawn(sketch=found.sketch, origin=lambda fitted: origin(fitted.units))

    return draw


def _qa_data(cell: Cell) -> tuple[TaskFile, QaData]:
    if cell.task == "qa_1":
        file = read_task_file(cell.data.squad, cell.task, "squad_sample.json")
        return file, read_squad(file)
    file = read_task_file(cell.data.hotpotqa, cell.task, "hotpotqa_sample.json")
    return file, read_hotpotqa(file)


def _essay(cell: Cell) -> tuple[TaskFile, Essay]:
    file = read_task_file(cell.data.essay, cell.task, PROSE_SAMPLE)
    return file, Essay.of(file.text)


def _rng(cell: Cell, index: int) -> random.Random:
    return eval_rng(cell.task, cell.seed, index, cell.length)


def _generated(sketch: Sketch) -> Drawn:
    return Drawn(sketch=sketch, origin=lambda _: GENERATED)
