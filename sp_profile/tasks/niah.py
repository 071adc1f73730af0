"""RULER's eight needle tasks, and the key-value task of the same form.

Templates, needle and parameters are quoted from RULER (arXiv 2404.06654, github.com/NVIDIA/RULER,
scripts/synthetic.yaml and scripts/data/synthetic/{constants,niah}.py, Apache-2.0). Differences:
keys are never repeated in a prompt, and prose begins at a sentence drawn for every prompt and
starts again at its end, where RULER always takes the first words of its file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sp_profile.tasks.eval_prompt import distinct_keys
from sp_profile.tasks.fitting import Sketch
from sp_profile.tasks.haystack import Essay, insert_lines, noise_lines, noise_unit
from sp_profile.tasks.random_values import number_of_seven, uuid4

Kind = Literal["words", "numbers", "uuids"]

_TEMPLATE = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize "
    "it. I will quiz you about the {kind} afterwards.\n{context}\nWhat {are_all} the special "
    "magic {kind} for {query} mentioned in the provided text?"
)
_PREFIX = "The special magic {kind} for {query} mentioned in the provided text {are}"
_DEPTHS = tuple(round(100 * step / 39) for step in range(40))  # percent of the sentences


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedleTask:
    """keys needles of `values` values each, `queries` of the keys asked for."""

    haystack: Literal["noise", "essay", "needle"]
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask(haystack="noise"),
    "niah_single_2": NeedleTask(haystack="essay"),
    "niah_single_3": NeedleTask(haystack="essay", value="uuids"),
    "niah_multikey_1": NeedleTask(haystack="essay", keys=4),
    "niah_multikey_2": NeedleTask(haystack="needle"),
    "niah_multikey_3": NeedleTask(haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask(haystack="essay", values=4),
    "niah_multiquery": NeedleTask(haystack="essay", keys=4, queries=4),
}


def needle_sketch(task: NeedleTask, rng: random.Random, essay: Essay | None) -> Sketch:
    """A needle prompt; essay: the prose of the tasks whose haystack it is."""
    draw_key, draw_value = _source(task.key, rng), _source(task.value, rng)
    keys = [next(draw_key) for _ in range(task.keys)]
    values = [[next(draw_value) for _ in range(task.values)] for _ in keys]
    needles = [(key, value) for key, mine in zip(keys, values, strict=True) for value in mine]
    rng.shuffle(needles)
    asked = rng.sample(keys, task.queries)
    # In the order of appearance where one key has several values.
    answers = tuple(value for query in asked for key, value in needles if key == query)
    lines = [_needle(task.value, key, value) for key, value in needles]
    context, unit = _haystack(task, rng, lines, draw_key, draw_value, essay)
    words = _words_of(task, asked)

    def text(units: int, filler: str) -> str:
        return _TEMPLATE.format(context=filler + context(units), **words)

    return Sketch(
        text=text,
        unit=unit,
        answers=answers,
        answer_prefix=_PREFIX.format(**words),
        repeats=task.haystack != "needle",
    )


def json_kv_sketch(rng: random.Random) -> Sketch:
    """Key-value retrieval from one JSON object of uuid pairs; units are pairs."""
    key, value, depth = uuid4(rng), uuid4(rng), rng.random()
    others: list[str] = []

    def unit(number: int) -> str:
        while len(others) <= number:
            others.append(f'"{uuid4(rng)}": "{uuid4(rng)}"')
        return f" {others[number]},"

    def text(units: int, filler: str) -> str:
        if units:
            unit(units - 1)
        place = int(depth * (units + 1))
        pairs = [*others[:place], f'"{key}": "{value}"', *others[place:units]]
        return (
            "Extract the value corresponding to the specified key in the JSON object below.\n"
            f"{filler}\n{{{', '.join(pairs)}}}\n\n"
            f'Key: "{key}"'
        )

    prefix = 'The value associated with the specified key is: "'
    return Sketch(text=text, unit=unit, answers=(value,), answer_prefix=prefix)


def _needle(kind: Kind, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def _source(kind: Kind, rng: random.Random) -> Iterator[str]:
    if kind == "words":
        return distinct_keys(rng)
    draw = number_of_seven if kind == "numbers" else uuid4
    return iter(lambda: draw(rng), "")


def _words_of(task: NeedleTask, asked: list[str]) -> dict[str, str]:
    """What the template says: singular for a single answer, as in RULER."""
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    if task.queries * task.values == 1:
        kind = task.value.removesuffix("s")
        return {"some": "A", "kind": kind, "are": "is", "are_all": "is", "query": query}
    return {"some": "Some", "kind": task.value, "are": "are", "are_all": "are all", "query": query}


def _haystack(
    task: NeedleTask,
    rng: random.Random,
    needles: list[str],
    draw_key: Iterator[str],
    draw_value: Iterator[str],
    essay: Essay | None,
) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """(context, unit): the haystack of so many units with the needles in it, and one unit."""
    if task.haystack == "essay":
        assert essay is not None
        return _in_essay(essay, rng, needles)
    depths = sorted(rng.random() for _ in needles)
    if task.haystack == "noise":
        return lambda units: insert_lines(noise_lines(units), needles, depths), noise_unit
    others: list[str] = []

    def unit(number: int) -> str:
        while len(others) <= number:
            others.append(_needle(task.value, next(draw_key), next(draw_value)))
        return f"\n{others[number]}"

    def context(units: int) -> str:
        if units:
            unit(units - 1)
        return insert_lines(others[:units], needles, depths)

    return context, unit


def _in_essay(
    essay: Essay, rng: random.Random, needles: list[str]
) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """Needles between sentences at distinct depths of RULER's forty; units are words."""
    start = essay.random_start(rng)
    depths = sorted(rng.sample(_DEPTHS, len(needles)))

    def context(units: int) -> str:
        sentences = essay.sentences(start, units)
        result, first = [], 0
        for needle, depth in zip(needles, depths, strict=True):
            place = len(sentences) * depth // 100
            result += [*sentences[first:place], needle]
            first = place
        return " ".join(result + sentences[first:])

    return context, lambda number: essay.unit(start, number)
