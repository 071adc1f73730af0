"""Names of the metrics."""

from __future__ import annotations

from typing import Literal, get_args

MetricName = Literal[
    "string_match_all",
    "string_match_part",
    "first_integer",
    "first_number",
    "word_match",
    "name_match",
    "choice",
    "code_choice",
    "qa_f1",
    "qa_f1_zh",
    "rouge_lsum",
    "nll",
    "agreement",
]
METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
