"""RULER's scores (arXiv 2404.06654, scripts/eval/synthetic/constants.py, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Sequence

from sp_profile.scoring.text import printable


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that the prediction contains, whatever the case."""
    return sum(_found(prediction, answers)) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains any of the answers, whatever the case."""
    return float(any(_found(prediction, answers)))


def _found(prediction: str, answers: Sequence[str]) -> list[bool]:
    text = printable(prediction).lower()
    return [answer.lower() in text for answer in answers]
