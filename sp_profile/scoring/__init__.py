"""Scores of predictions, each as its benchmark defines it; `likelihood` has those of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Protocol

from sp_profile.scoring.f1 import qa_f1, qa_f1_zh
from sp_profile.scoring.infinitebench import (
    choice,
    code_choice,
    first_integer,
    first_number,
    name_match,
    word_match,
)
from sp_profile.scoring.metrics import METRIC_NAMES, MetricName
from sp_profile.scoring.rouge import rouge_lsum
from sp_profile.scoring.string_match import string_match_all, string_match_part
from sp_runtime.errors import UsageError

__all__ = [
    "METRIC_NAMES",
    "TEXT_METRICS",
    "MetricName",
    "Reference",
    "score",
]

TEXT_METRICS: MappingProxyType[str, Callable[[str, Sequence[str]], float]] = MappingProxyType(
    {
        "string_match_all": string_match_all,
        "string_match_part": string_match_part,
        "first_integer": first_integer,
        "first_number": first_number,
        "word_match": word_match,
        "name_match": name_match,
        "choice": choice,
        "code_choice": code_choice,
        "qa_f1": qa_f1,
        "qa_f1_zh": qa_f1_zh,
        "rouge_lsum": rouge_lsum,
    }
)
"""What compares a prediction with the answers of its prompt."""


class Reference(Protocol):
    """Anything that has the right answers, such as an `EvalPrompt`."""

    @property
    def answers(self) -> tuple[str, ...]: ...


def score(metric: str, prediction: str, prompt: Reference) -> float:
    """How right a prediction is, in [0, 1].

    Raises UsageError for an unknown metric, for one that is not computed from text (nll and
    agreement are in `sp_profile.scoring.likelihood`), and for a prompt without answers.
    """
    compare = TEXT_METRICS.get(metric)
    if compare is None:
        raise UsageError(f"metric {metric!r} does not compare texts", hint=", ".join(TEXT_METRICS))
    if not prompt.answers:
        raise UsageError(f"metric {metric} needs the right answers, and the prompt has none")
    return compare(prediction, prompt.answers)
