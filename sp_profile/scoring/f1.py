"""Token F1 of question answering, over words or characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sp_profile.scoring.text import chinese_tokens, english_tokens


def qa_f1(prediction: str, answers: Sequence[str]) -> float:
    """Largest F1 of normalised words over the answers."""
    return _best(prediction, answers, english_tokens)


def qa_f1_zh(prediction: str, answers: Sequence[str]) -> float:
    """Largest F1 of normalised characters over the answers."""
    return _best(prediction, answers, chinese_tokens)


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two multisets; 0 where they share nothing."""
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer)) if common else 0.0


def _best(prediction: str, answers: Sequence[str], tokens: Callable[[str], list[str]]) -> float:
    predicted = tokens(prediction)
    return max(token_f1(predicted, tokens(answer)) for answer in answers)
