"""InfiniteBench's scores (arXiv 2402.13718, src/compute_scores.py), from their definitions.

Where the benchmark's script and the copy of it that MInference and FlexPrefill run differ, the
copy is followed: the prediction is stripped first, and an empty one is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sp_profile.scoring.text import words_without

_LETTERS = "ABCD"
_MARKS = ":\"'.,?!{}"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_CHOICE_LEADS = ("answer is:", "answer:", "answer is", "option is")
_CODE_LEADS = ("answer is:", "is:", "answer:")


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of digits is one of the answers, digit for digit."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found.group() in answers)


def first_number(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first unsigned number has the value of the first answer.

    Its fraction is dropped where the answer is written as a whole number.
    """
    found = _NUMBER.search(prediction)
    if found is None:
        return 0.0
    value, answer = float(found.group()), answers[0]
    whole = answer.removeprefix("-").isdecimal()
    return float(int(value) == int(answer) if whole else value == float(answer))


def word_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if one of the answers is a word of the prediction, without punctuation."""
    return float(not set(answers).isdisjoint(words_without(prediction, _MARKS)))


def name_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first answer is a word of the prediction in upper case, without punctuation."""
    return float(answers[0] in words_without(prediction.upper(), _MARKS))


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 for the right option of four; answers: its text and its letter.

    The first character decides if it is a letter A to D; else what follows "answer is" and the
    like; else the first word that is such a letter.
    """
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in _LETTERS:
        return float(text[0] in answers)
    if text in answers:
        return 1.0
    words = " ".join(words_without(text, "\"'.,?!{}"))
    followed = _after_lead(words, _CHOICE_LEADS)
    if followed is not None:
        return float(followed.startswith(tuple(answers)))
    letter = next((word for word in words.split() if word in _LETTERS), "")
    return float(letter in answers)


def code_choice(prediction: str, answers: Sequence[str]) -> float:
    """1 for the right function of four; answers: its name and its letter.

    The letter with `.` or `:` at the very beginning decides; else what follows "answer is:" and
    the like: the letter or the name.
    """
    text = prediction.strip()
    name, letter = answers
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for word in ("Option", "option"):
        text = text.replace(word, " ")
    followed = _after_lead(" ".join(words_without(text, "`'\"-*")), _CODE_LEADS)
    return float(followed is not None and followed.startswith((letter, name)))


def _after_lead(text: str, leads: Sequence[str]) -> str | None:
    """What follows the first of the leads that occurs, and one character; None without any."""
    for lead in leads:
        place = text.find(lead)
        if place >= 0:
            return text[place + len(lead) + 1 :]
    return None
