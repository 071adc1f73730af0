"""RULER's aggregation tasks: the most common words of a list, and of a coded text.

Templates and parameters are quoted from RULER (arXiv 2404.06654, scripts/synthetic.yaml and
scripts/data/synthetic/{constants,common_words_extraction,freq_words_extraction}.py, Apache-2.0).
Difference: the English words come from the prose sample, where RULER takes those of a package.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sp_profile.tasks.eval_prompt import EVAL_NOUNS
from sp_profile.tasks.fitting import Sketch
from sp_profile.tasks.random_values import distinct_letters
from sp_profile.words import ADJECTIVES

_SHORT = 4096  # below this length RULER makes smaller lists
_COMMON = 10
_LIST_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list?"
)
_LIST_PREFIX = "Answer: The top 10 words that appear most often in the list are:"
_CODE_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. "
    "Please ignore the dots '....'. What are the three most frequently appeared words in the above "
    "coded text?"
)
_CODE_PREFIX = (
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
_TOKENS_A_WORD = 50  # RULER's vocabulary: one coded word for every 50 tokens of length
_ZETA = 1.6449340668482264  # zeta(2), RULER's alpha being 2
_NOISE_WORD = "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class ListSizes:
    """How often common and other words appear in the list, and in the solved example before it.

    example_words: distinct words of the example.
    """

    common: int
    other: int
    example_words: int
    example_common: int
    example_other: int


_SHORT_SIZES = ListSizes(common=6, other=1, example_words=20, example_common=3, example_other=1)
_SIZES = ListSizes(common=30, other=3, example_words=40, example_common=10, example_other=3)


def english_words(text: str) -> tuple[str, ...]:
    """Words of four to nine lower-case letters that `text` holds, sorted, each once."""
    return tuple(sorted(set(re.findall(r"(?<![\w'-])[a-z]{4,9}(?![\w'-])", text))))


def common_words_sketch(rng: random.Random, vocabulary: Sequence[str], length: int) -> Sketch:
    """Ten words appear more often than the others; units are other words."""
    sizes = _SHORT_SIZES if length < _SHORT else _SIZES
    example_words = rng.sample(vocabulary, sizes.example_words)
    example_answers = example_words[:_COMMON]
    example = example_answers * sizes.example_common
    example += example_words[_COMMON:] * sizes.example_other
    rng.shuffle(example)
    solved = (
        f"{_LIST_TEMPLATE.format(context=_numbered(example))} {_LIST_PREFIX}"
        f"{_numbered(example_answers)}\n"
    )
    source = _without_end(rng, vocabulary)
    common = [next(source) for _ in range(_COMMON)]
    entries = [(rng.random(), word) for word in common * sizes.common]
    others: list[str] = []

    def unit(number: int) -> str:
        while len(others) <= number:
            others.append(next(source))
            entries.extend((rng.random(), others[-1]) for _ in range(sizes.other))
        position = len(common) * sizes.common + number * sizes.other
        return "".join(f" {position + 1 + i}. {others[number]}" for i in range(sizes.other))

    def text(units: int, filler: str) -> str:
        if units:
            unit(units - 1)
        shown = sorted(entries[: len(common) * sizes.common + units * sizes.other])
        context = filler + _numbered([word for _, word in shown])
        return solved + _LIST_TEMPLATE.format(context=context)

    return Sketch(
        text=text,
        unit=unit,
        answers=tuple(common),
        answer_prefix=_LIST_PREFIX,
        # A filler word that is also in the list would be counted with it.
        fillers=tuple(word for word in EVAL_NOUNS if word not in common) + tuple("-+=*#&"),
    )


def coded_words_sketch(rng: random.Random, length: int) -> Sketch:
    """Words whose counts follow a zeta distribution; the first rank is `...`, which is noise.

    Units are words of the text, about.
    """
    ranks = max(length // _TOKENS_A_WORD, 8)
    vocabulary = [_NOISE_WORD, *distinct_letters(rng, ranks - 1, 6)]
    seed = rng.getrandbits(64)
    # The counts of the answers must be distinct and above that of the fifth rank.
    least = 128

    def counts(units: int) -> list[int]:
        total = units + least
        return [int(total / (rank * rank * _ZETA)) for rank in range(1, ranks + 1)]

    def unit(number: int) -> str:
        grown = zip(vocabulary, counts(number), counts(number + 1), strict=True)
        return "".join(f" {word}" * (after - before) for word, before, after in grown)

    def text(units: int, filler: str) -> str:
        pairs = zip(vocabulary, counts(units), strict=True)
        words = [word for word, count in pairs for _ in range(count)]
        random.Random(seed).shuffle(words)
        return _CODE_TEMPLATE.format(context=f"{' '.join(words)}{filler}")

    return Sketch(
        text=text,
        unit=unit,
        answers=tuple(vocabulary[1:4]),
        answer_prefix=_CODE_PREFIX,
        fill=lambda words: "".join(f" {word}" for word in words),
        fillers=(_NOISE_WORD, "....", ".", ". .", "-", "- -"),
    )


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def _without_end(rng: random.Random, vocabulary: Sequence[str]) -> Iterator[str]:
    """The vocabulary in random order, then pairs of its words with an adjective, without end."""
    words = list(vocabulary)
    rng.shuffle(words)
    yield from words
    for adjective in ADJECTIVES:
        yield from (f"{adjective}-{word}" for word in words)
    number = 0
    while True:
        number += 1
        yield from (f"{word}-{number}" for word in words)
