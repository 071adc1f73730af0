"""RULER's scores against cases worked out by hand, and properties."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.scoring import METRIC_NAMES, TEXT_METRICS, score
from sp_runtime.errors import UsageError

texts = st.text(max_size=30)
answers = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4).map(tuple)


def of(metric, prediction, *right):
    return score(metric, prediction, SimpleNamespace(answers=right, choices=None))


@pytest.mark.parametrize(
    ("prediction", "right", "expected_all", "expected_part"),
    [
        (" 1234567.", ("1234567",), 1, 1),
        ("It is 1234567, I think", ("1234567", "7654321"), 0.5, 1),
        ("apple, Pear; PLUM", ("Apple", "pear", "plum", "fig"), 0.75, 1),
        ("12345678", ("2345",), 1, 1),  # a substring, as RULER has it
        ("", ("a",), 0, 0),
        ("no\x00t here", ("not",), 0, 0),  # a control character becomes a line break
        ("line\tbreak", ("line\nbreak",), 1, 1),
        ("  spaced  ", ("spaced ",), 0, 0),  # the ends are stripped
    ],
)
def test_by_hand(prediction, right, expected_all, expected_part):
    assert of("string_match_all", prediction, *right) == expected_all
    assert of("string_match_part", prediction, *right) == expected_part


@given(texts, answers)
def test_part_is_whether_all_is_above_zero(prediction, right):
    share = of("string_match_all", prediction, *right)
    assert of("string_match_part", prediction, *right) == (share > 0)


@given(answers, texts)
def test_all_answers_in_the_prediction_is_one(right, more):
    clean = tuple(answer.strip() for answer in right)
    printable = tuple(a for a in clean if a and all(ord(c) > 31 for c in a))
    if printable:
        text = f"{more} {' '.join(printable)}"
        assert of("string_match_all", text, *printable) == 1


@given(st.sampled_from(sorted(TEXT_METRICS)), texts, st.integers(0, 9))
def test_every_score_is_in_the_unit_interval(metric, prediction, digit):
    right = ("B", "C") if "choice" in metric else (str(digit), "b c")
    assert 0 <= of(metric, prediction, *right) <= 1


@pytest.mark.parametrize("metric", sorted(TEXT_METRICS))
def test_empty_prediction_is_wrong(metric):
    assert of(metric, "", "7", "B") == 0


def test_metrics_that_are_no_text_and_unknown_ones_are_refused():
    assert set(METRIC_NAMES) == {*TEXT_METRICS, "nll", "agreement"}
    for metric in ("nll", "agreement", "bleu"):
        with pytest.raises(UsageError, match="does not compare texts"):
            of(metric, "a", "a")
    with pytest.raises(UsageError, match="needs the right answers"):
        of("qa_f1", "a")
