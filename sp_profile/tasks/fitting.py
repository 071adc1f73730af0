"""Prompts of an exact number of tokens, tokenized as a whole once or twice in the usual case.

A sketch grows in units (a sentence, a word, a needle), and what they leave over is filled with a
line of single-token words. Where units repeat, their tokens are counted apart and remembered, and
tokenizing the whole only confirms the sum. Elsewhere the first tokenization tells how many tokens
are missing or too many, the units to add or remove are counted apart, and the second confirms it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sp_profile.prompts import PromptText, encode
from sp_profile.tasks.eval_prompt import EVAL_NOUNS
from sp_runtime.errors import UsageError

_PROBE_TOKENS = 1024
_NEAR_TOKENS = 512  # this near to the goal, units are counted one by one
_ATTEMPTS = 24
_WORD_ATTEMPTS = 8
# Single characters make every length reachable where no word is one token.
_CHARACTERS = tuple("abcdefgh-+=*#&")


def _notes(words: Sequence[str]) -> str:
    return f"Notes: {' '.join(words)}.\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sketch:
    """A prompt without its length.

    text: `text(units, filler)` is the user's turn with so much haystack and that filler in it;
        more units are never fewer tokens.
    unit: about the text that unit number i adds to the one before, to count its tokens.
    repeats: whether most units are the same as others.
    fill: the filler made of some words. fillers: the words it may be made of, the first
        one longer than a character.
    """

    text: Callable[[int, str], str]
    unit: Callable[[int], str]
    answers: tuple[str, ...]
    answer_prefix: str
    fill: Callable[[Sequence[str]], str] = _notes
    fillers: tuple[str, ...] = (*EVAL_NOUNS, *_CHARACTERS)
    repeats: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A prompt and its tokens; units and words: how it was made."""

    prompt: PromptText
    token_ids: tuple[int, ...]
    units: int
    words: tuple[str, ...]


class Fitter:
    """Fits the sketches of one cell; what it learns of one prompt speeds up the next."""

    def __init__(self, task: str, tokenizer: Any, *, chat_template: bool, length: int) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._length = length
        self._guess: int | None = None
        self._unit_costs: dict[str, int] = {}
        self._filler_costs: dict[tuple[str, ...], dict[str, int]] = {}

    def fit(self, sketch: Sketch, name: str, fresh_rng: Callable[[], random.Random]) -> Fitted:
        """A prompt of exactly the cell's length; raises UsageError where there is none.

        fresh_rng: makes the generator that filler words are drawn with, always the same one, so
        that they do not depend on the way to the result.
        """
        if sketch.repeats:
            first = self._sum(sketch, name, fresh_rng)
        else:
            if self._guess is None:
                self._guess = self._first_guess(sketch, name)
            first = self._guess, ()
        fitted = self._make(sketch, name, *first)
        tried = {(fitted.units, fitted.words)}
        for _ in range(_ATTEMPTS):
            if len(fitted.token_ids) == self._length:
                self._guess = fitted.units
                return fitted
            step = self._improve(sketch, fitted, tried, fresh_rng)
            if step is None:
                break
            tried.add(step)
            fitted = self._make(sketch, name, *step)
        raise UsageError(
            f"task {self._task} cannot be made exactly {self._length} tokens long "
            "with this tokenizer",
            hint="use another length",
        )

    def _make(self, sketch: Sketch, name: str, units: int, words: tuple[str, ...]) -> Fitted:
        prompt = PromptText(
            text=sketch.text(units, sketch.fill(words) if words else ""),
            name=name,
            task=self._task,
            answers=sketch.answers,
            answer_prefix=sketch.answer_prefix,
        )
        ids = encode(prompt, self._tokenizer, chat_template=self._chat_template)
        return Fitted(prompt=prompt, token_ids=ids, units=units, words=words)

    def _first_guess(self, sketch: Sketch, name: str) -> int:
        """Units by the tokens of a small prompt and of one about a thousand tokens longer."""
        smallest = self._smallest(sketch, name)
        room = self._length - smallest
        cost = max(sum(self._count(sketch.unit(i)) for i in range(8)) / 8, 0.1)
        probe = max(1, int(min(room, _PROBE_TOKENS) / cost))
        larger = len(self._make(sketch, name, probe, ()).token_ids)
        return probe * room // max(larger - smallest, 1)

    def _smallest(self, sketch: Sketch, name: str) -> int:
        """Tokens without any haystack."""
        smallest = len(self._make(sketch, name, 0, ()).token_ids)
        if smallest > self._length:
            raise UsageError(
                f"task {self._task} takes at least {smallest} tokens with this tokenizer, "
                f"not {self._length}",
                hint="use a greater length",
            )
        return smallest

    def _sum(
        self, sketch: Sketch, name: str, fresh_rng: Callable[[], random.Random]
    ) -> tuple[int, tuple[str, ...]]:
        """Units and filler words whose tokens add up to the length."""
        missing = self._length - self._smallest(sketch, name)
        units = 0
        while True:
            cost = self._remembered(sketch.unit(units))
            if cost > missing:
                break
            missing -= cost
            units += 1
        while True:
            words = self._words(sketch, missing, fresh_rng())
            if words is not None or units == 0:
                return units, words or ()
            units -= 1
            missing += self._remembered(sketch.unit(units))

    def _remembered(self, unit: str) -> int:
        cost = self._unit_costs.get(unit)
        if cost is None:
            cost = self._unit_costs[unit] = self._count(unit)
        return cost

    def _improve(
        self,
        sketch: Sketch,
        fitted: Fitted,
        tried: Collection[tuple[int, tuple[str, ...]]],
        fresh_rng: Callable[[], random.Random],
    ) -> tuple[int, tuple[str, ...]] | None:
        """Units and filler words, not tried yet, that should make up for what `fitted` lacks."""
        units = fitted.units
        missing = self._length - len(fitted.token_ids)
        if fitted.words:
            missing += self._count(sketch.fill(fitted.words))
            # Another filler in the same place: what the parts were miscounted by stays the same.
            words = self._words(sketch, missing, fresh_rng()) if missing > 0 else None
            if words is not None and (units, words) not in tried:
                return units, words
        if abs(missing) > _NEAR_TOKENS:
            return self._far(sketch, units, missing), ()
        while missing > 0:
            cost = self._count(sketch.unit(units))
            if cost > missing:
                break
            missing -= cost
            units += 1
        while True:
            words = self._words(sketch, missing, fresh_rng()) if missing >= 0 else None
            if words is not None and (units, words) not in tried:
                return units, words
            if units == 0:
                return None
            units -= 1
            missing += self._count(sketch.unit(units))

    def _far(self, sketch: Sketch, units: int, missing: int) -> int:
        """Units by what sixteen of them take on average here."""
        first = units if missing > 0 else max(units - 16, 0)
        cost = sum(self._count(sketch.unit(first + number)) for number in range(16)) / 16
        step = max(1, int(abs(missing) / max(cost, 0.1)))
        return units + step if missing > 0 else max(units - step, 0)

    def _words(self, sketch: Sketch, tokens: int, rng: random.Random) -> tuple[str, ...] | None:
        """Filler words that take so many tokens with what surrounds them; None if none do."""
        if tokens == 0:
            return ()
        costs = self._costs(sketch)
        first = sketch.fillers[0]
        goal = tokens - (self._count(sketch.fill((first,))) - costs[first])
        for _ in range(_WORD_ATTEMPTS):
            words = _sum_to(goal, costs, rng)
            if words is None:
                return None
            # Words side by side may take more or fewer tokens than they do apart.
            excess = self._count(sketch.fill(words)) - tokens
            if excess == 0:
                return words
            goal -= excess
        return None

    def _costs(self, sketch: Sketch) -> dict[str, int]:
        """Tokens that each filler word adds to a filler."""
        known = self._filler_costs.get(sketch.fillers)
        if known is None:
            first = sketch.fillers[0]
            base = self._count(sketch.fill((first,)))
            known = {
                word: self._count(sketch.fill((first, word))) - base for word in sketch.fillers
            }
            # Characters are for tokenizers in which no word is one token.
            if any(cost == 1 and len(word) > 1 for word, cost in known.items()):
                known = {word: cost for word, cost in known.items() if len(word) > 1}
            self._filler_costs[sketch.fillers] = known
        return known

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _sum_to(goal: int, costs: Mapping[str, int], rng: random.Random) -> tuple[str, ...] | None:
    """Words whose costs add up to `goal`, at least one, none twice if possible; None without any.

    Words that cost the least are preferred, so that they are many and the choice is wide.
    """
    if goal < 1:
        return None
    # last[t]: the cost of the last word of words that cost t together.
    last: list[int | None] = [0] + [None] * goal
    ascending = sorted({cost for cost in costs.values() if cost > 0})
    for total in range(1, goal + 1):
        last[total] = next(
            (cost for cost in ascending if cost <= total and last[total - cost] is not None), None
        )
    words: list[str] = []
    while goal > 0:
        step = last[goal]
        if step is None:
            return None
        same = [word for word, cost in costs.items() if cost == step]
        words.append(rng.choice([word for word in same if word not in words] or same))
        goal -= step
    return tuple(words)
