"""Built-in tasks of an exact number of tokens, made from code and word lists alone.

The tasks have the form of RULER (arXiv 2404.06654): needles and chains of variables in noise,
needles among needles, one needle or several in prose, common words of a list, and key-value
retrieval from JSON. Prompts unlike each other matter: what a plan was chosen on prompts of few
kinds for, it does not keep on others.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from sp_profile.prompts import PromptText, encode
from sp_profile.tasks.stories import sentence
from sp_profile.words import ADJECTIVES, NOUNS
from sp_runtime.errors import UsageError

Task = Literal[
    "niah_noise", "niah_prose", "niah_multikey", "niah_multivalue", "json_kv", "variable_tracking",
    "common_words",
]  # fmt: skip
Split = Literal["calibration", "heldout"]
TASKS: tuple[str, ...] = get_args(Task)
SPLITS: tuple[str, ...] = get_args(Split)

_CHAIN = 5
_VALUES = 4
_COMMON, _TIMES = 10, 20  # words asked for, and how often each occurs
_TOLERANCE = 8
_NOISE = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sketch:
    """A task without its length: `text(units, padding)` is the prompt with that much filling."""

    text: Callable[[int, str], str]
    answers: tuple[str, ...]
    answer_prefix: str


def make_prompt(
    task: str,
    tokens: int,
    tokenizer: Any,
    *,
    chat_template: bool,
    seed: int = 0,
    index: int = 0,
    split: Split = "calibration",
) -> PromptText:
    """One prompt of exactly `tokens` tokens, chat template and answer prefix included.

    The same arguments give the same prompt. Prompts of the two splits share no key and no seed.
    With a tokenizer in which no filling word adds one token the prompt is up to 8 tokens shorter.

    Raises UsageError for an unknown task or split, and for a length that the task cannot have.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", hint=f"use one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", hint=f"use one of {', '.join(SPLITS)}")
    name = f"{task}-{tokens}-{index}"
    rng = _rng(f"{split}/{seed}/{task}/{tokens}/{index}")
    sketch = _SKETCHES[task](rng, _keys(rng, split))
    padding = [rng.choice(NOUNS) for _ in range(256)]

    def prompt(units: int, words: int) -> PromptText:
        filler = f"Notes: {' '.join(padding[:words])}.\n" if words else ""
        return PromptText(
            text=sketch.text(units, filler),
            name=name,
            task=task,
            answers=sketch.answers,
            answer_prefix=sketch.answer_prefix,
        )

    def length(units: int, words: int) -> int:
        return len(encode(prompt(units, words), tokenizer, chat_template=chat_template))

    def fits(units: int, words: int) -> bool:
        return length(units, words) <= tokens

    smallest = length(0, 0)
    if smallest > tokens:
        raise UsageError(
            f"task {task} takes at least {smallest} tokens with this tokenizer, not {tokens}"
        )
    units = _largest(lambda count: fits(count, 0))
    # A unit less leaves room for the words that introduce the padding.
    for count in range(units, max(units - 3, -1), -1):
        words = _largest(partial(fits, count), len(padding))
        if length(count, words) == tokens:
            return prompt(count, words)
    words = _largest(partial(fits, units), len(padding))
    missing = tokens - length(units, words)
    if missing > _TOLERANCE:
        raise UsageError(f"task {task} cannot be made {tokens} tokens long: {missing} are missing")
    return prompt(units, words)


def _largest(fits: Callable[[int], bool], limit: int | None = None) -> int:
    """The largest count that fits, for a condition that holds up to some count; 0 fits."""
    low, step = 0, 1
    while (limit is None or low + step <= limit) and fits(low + step):
        low, step = low + step, step * 2
    while step > 1:
        step //= 2
        if (limit is None or low + step <= limit) and fits(low + step):
            low += step
    return low


def _rng(name: str) -> random.Random:
    """A generator named by a string; the same on every platform and Python release."""
    digest = hashlib.sha256(f"sp-profile/tasks/1/{name}".encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _keys(rng: random.Random, split: str) -> Callable[[], str]:
    """A source of distinct adjective-noun keys; each split has its own half of the nouns."""
    half = len(NOUNS) // 2
    nouns = NOUNS[:half] if split == "calibration" else NOUNS[half:]
    names = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in nouns]
    rng.shuffle(names)
    taken = iter(range(1 << 30))

    def draw() -> str:
        number = next(taken)
        again, place = divmod(number, len(names))
        return names[place] if not again else f"{names[place]}-{again}"

    return draw


def _number(rng: random.Random) -> str:
    return str(rng.randrange(1_000_000, 10_000_000))


def _needle(key: str, value: str) -> str:
    return f"One of the special magic numbers for {key} is: {value}."


def _noise(count: int) -> list[str]:
    return [_NOISE[number % len(_NOISE)] for number in range(count)]


def _insert(sentences: list[str], needles: list[tuple[float, str]]) -> str:
    """The needles at their depths in [0, 1), in the order of their depths."""
    result, start = [], 0
    for depth, needle in needles:
        place = int(depth * (len(sentences) + 1))
        result += [*sentences[start:place], needle]
        start = place
    return " ".join(result + sentences[start:])


def _prose(rng: random.Random) -> Callable[[int], list[str]]:
    """The first so many sentences of one story."""
    story: list[str] = []

    def first(count: int) -> list[str]:
        while len(story) < count:
            story.append(sentence(rng))
        return story[:count]

    return first


def _single_sketch(context: Callable[[int], str], key: str, value: str) -> _Sketch:
    def text(units: int, padding: str) -> str:
        return (
            "A special magic number is hidden within the following text. Make sure to memorize "
            "it. I will quiz you about the number afterwards.\n"
            f"{padding}{context(units)}\n"
            f"What is the special magic number for {key} mentioned in the provided text?"
        )

    prefix = f"The special magic number for {key} mentioned in the provided text is"
    return _Sketch(text=text, answers=(value,), answer_prefix=prefix)


def _niah_noise(rng: random.Random, keys: Callable[[], str]) -> _Sketch:
    key, value, depth = keys(), _number(rng), rng.random()

    def context(units: int) -> str:
        return _insert(_noise(units), [(depth, _needle(key, value))])

    return _single_sketch(context, key, value)


def _niah_prose(rng: random.Random, keys: Callable[[], str]) -> _Sketch:
    key, value, depth, story = keys(), _number(rng), rng.random(), _prose(rng)

    def context(units: int) -> str:
        return _insert(story(units), [(depth, _needle(key, value))])

    return _single_sketch(context, key, value)


def _niah_multivalue(rng: random.Random, keys: Callable[[], str]) -> _Sketch:
    key, values = keys(), [_number(rng) for _ in range(_VALUES)]
    depths, story = sorted(rng.random() for _ in values), _prose(rng)
    needles = [(depth, _needle(key, value)) for depth, value in zip(depths, values, strict=True)]

    def text(units: int, padding: str) -> str:
        return (
            "Some special magic numbers are hidden within the following text. Make sure to "
            "memorize them. I will quiz you about the numbers afterwards.\n"
            f"{padding}{_insert(story(units), needles)}\n"
            f"What are all the special magic numbers for {key} mentioned in the provided text?"
        )

    prefix = f"The special magic numbers for {key} mentioned in the provided text are"
    return _Sketch(text=text, answers=tuple(values), answer_prefix=prefix)


def _niah_multikey(rng: random.Random, keys: Callable[[], str]) -> _Sketch:
    key, value, depth = keys(), _number(rng), rng.random()
    others: list[str] = []

    def context(units: int) -> str:
        while len(others) < units:
            others.append(_needle(keys(), _number(rng)))
        return _insert(others[:units], [(depth, _needle(key, value))])

    return _single_sketch(context, key, value)


def _json_kv(rng: random.Random, _: Callable[[], str]) -> _Sketch:
    key, value, depth = _uuid(rng), _uuid(rng), rng.random()
    others: list[str] = []

    def text(units: int, padding: str) -> str:
        while len(others) < units:
            others.append(f'"{_uuid(rng)}": "{_uuid(rng)}"')
        place = int(depth * (units + 1))
        pairs = [*others[:place], f'"{key}": "{value}"', *others[place:units]]
        return (
            "Extract the value corresponding to the specified key in the JSON object below.\n"
            f"{padding}\n{{{', '.join(pairs)}}}\n\n"
            f'Key: "{key}"'
        )

    prefix = 'The value associated with the specified key is: "'
    return _Sketch(text=text, answers=(value,), answer_prefix=prefix)


def _variable_tracking(rng: random.Random, _: Callable[[], str]) -> _Sketch:
    value = str(rng.randrange(10_000, 100_000))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names: list[str] = []
    while len(names) < _CHAIN:
        name = "".join(rng.choice(letters) for _ in range(5))
        if name not in names:
            names.append(name)
    sources = [value, *(f"VAR {name}" for name in names)]
    steps = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=False)]
    depths = sorted(rng.random() for _ in names)

    def text(units: int, padding: str) -> str:
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following "
            "text.\n\n"
            f"{padding}{_insert(_noise(units), list(zip(depths, steps, strict=True)))}\n"
            f"Question: Find all variables that are assigned the value {value} in the text above."
        )

    prefix = (
        "According to the chain(s) of variable assignment in the text above, "
        f"{_CHAIN} variables are assigned the value {value}, they are:"
    )
    return _Sketch(text=text, answers=tuple(names), answer_prefix=prefix)


def _common_words(rng: random.Random, keys: Callable[[], str]) -> _Sketch:
    common = [keys() for _ in range(_COMMON)]
    rare: list[str] = []
    places = [rng.random() for _ in range(_COMMON * _TIMES)]

    def text(units: int, padding: str) -> str:
        while len(rare) < units:
            rare.append(keys())
        times = min(_TIMES, 2 + units // _COMMON)  # short lists have fewer of each
        words = sorted(zip(places, common * times, strict=False))
        drawn = _insert(rare[:units], words)
        numbered = " ".join(f"{n}. {word}" for n, word in enumerate(drawn.split(), 1))
        return (
            "Below is a numbered list of words. In these words, some appear more often than "
            f"others. Memorize the ones that appear most often.\n{padding}{numbered}\n"
            f"Question: What are the {_COMMON} most common words in the above list?"
        )

    prefix = f"Answer: The top {_COMMON} words that appear most often in the list are:"
    return _Sketch(text=text, answers=tuple(common), answer_prefix=prefix)


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_SKETCHES: dict[str, Callable[[random.Random, Callable[[], str]], _Sketch]] = {
    "niah_noise": _niah_noise,
    "niah_prose": _niah_prose,
    "niah_multikey": _niah_multikey,
    "niah_multivalue": _niah_multivalue,
    "json_kv": _json_kv,
    "variable_tracking": _variable_tracking,
    "common_words": _common_words,
}
