"""Haystacks: RULER's noise sentences, and prose from a text file that the user names."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

# RULER (arXiv 2404.06654), scripts/data/synthetic/niah.py, Apache-2.0.
NOISE = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again.",
)  # fmt: skip
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")
_TITLES = frozenset({"Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Prof.", "Rev.", "Capt.", "e.g.", "i.e."})


def noise_unit(number: int) -> str:
    """What sentence `number` adds to `noise_lines`."""
    return ("\n" if number % len(NOISE) == 0 else " ") + NOISE[number % len(NOISE)]


def noise_lines(sentences: int) -> list[str]:
    """Lines of the five noise sentences; the last one holds what is left of them."""
    whole, rest = divmod(sentences, len(NOISE))
    lines = [" ".join(NOISE)] * whole
    return [*lines, " ".join(NOISE[:rest])] if rest else lines


def insert_lines(lines: list[str], needles: list[str], depths: list[float]) -> str:
    """The needles as lines of their own at their depths in [0, 1), ascending."""
    result, start = [], 0
    for needle, depth in zip(needles, depths, strict=True):
        place = int(depth * (len(lines) + 1))
        result += [*lines[start:place], needle]
        start = place
    return "\n".join(result + lines[start:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Essay:
    """Prose as words and sentences, read in a circle.

    words: of the whole text. starts: ascending, the word that each sentence begins with.
    """

    words: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Essay:
        """Split at white space, and into sentences after `.`, `!` and `?`."""
        words = tuple(text.split())
        ends = (
            number + 1
            for number, word in enumerate(words)
            if _SENTENCE_END.search(word) and word not in _TITLES
        )
        starts = sorted({0, *ends} - {len(words)})
        return cls(words=words, starts=tuple(starts))

    def unit(self, start: int, number: int) -> str:
        """Word `number` after sentence `start`, with the space before it."""
        return " " + self.words[(self.starts[start] + number) % len(self.words)]

    def random_start(self, rng: random.Random) -> int:
        """A sentence to begin with."""
        return rng.randrange(len(self.starts))

    def sentences(self, start: int, words: int) -> list[str]:
        """So many words from sentence `start` on, as sentences; the last one may be cut."""
        found: list[str] = []
        while words > 0:
            first = self.starts[start]
            following = self.starts[start + 1] if start + 1 < len(self.starts) else len(self.words)
            taken = self.words[first : min(following, first + words)]
            found.append(" ".join(taken))
            words -= len(taken)
            start = (start + 1) % len(self.starts)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """Texts one after the other, cut anywhere between two words.

    texts: words of each, separated by single spaces (words may hold line breaks).
    ends: number of words up to the end of each.
    """

    texts: tuple[tuple[str, ...], ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, texts: list[str]) -> Pages:
        """Empty texts are left out."""
        split = tuple(tuple(text.split(" ")) for text in texts if text.strip())
        return cls(texts=split, ends=tuple(accumulate(map(len, split))))

    def page_of(self, word: int) -> tuple[int, int]:
        """(text, place in it) of word number `word`."""
        page = bisect_left(self.ends, word + 1)
        return page, word - (self.ends[page - 1] if page else 0)

    def first(self, words: int) -> list[str]:
        """The texts of so many words; the last one may be cut."""
        if words == 0:
            return []
        page, place = self.page_of(words - 1)
        return [" ".join(text) for text in self.texts[:page]] + [
            " ".join(self.texts[page][: place + 1])
        ]
