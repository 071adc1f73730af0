"""InfiniteBench's scores against cases worked out by hand."""

from __future__ import annotations

import pytest

from sp_profile.scoring.f1 import qa_f1, qa_f1_zh
from sp_profile.scoring.infinitebench import (
    choice,
    code_choice,
    first_integer,
    first_number,
    name_match,
    word_match,
)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        (" 71432.", "71432", 1),
        ("The pass key is 71432, not 5", "71432", 1),
        ("First 5, then 71432", "71432", 0),
        ("071432", "71432", 0),  # digit for digit
        ("714 32", "71432", 0),
        ("none", "71432", 0),
    ],
)
def test_first_integer(prediction, answer, expected):
    assert first_integer(prediction, (answer,)) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("It is 42.", "42", 1),
        ("42.9", "42", 1),  # the fraction is dropped for a whole number
        ("42.5 or 7", "42.5", 1),
        ("42", "42.0", 1),
        ("42", "42.5", 0),
        ("-42", "42", 1),  # signs are not read
        ("none", "0", 0),
    ],
)
def test_first_number(prediction, answer, expected):
    assert first_number(prediction, (answer,)) == expected


def test_word_match_is_by_whole_words():
    uuid = "0b6c7a6e-1111-4222-8333-444455556666"
    assert word_match(f'"{uuid}".', (uuid,)) == 1
    assert word_match(f"The value is:{uuid}", (uuid,)) == 1
    assert word_match(f"{uuid}7", (uuid,)) == 0


def test_name_match_ignores_the_case_of_the_prediction():
    assert name_match("It is Marlow.", ("MARLOW", "JOHN")) == 1
    assert name_match("john", ("MARLOW", "JOHN")) == 0  # the first name counts
    assert name_match("MARLOWE", ("MARLOW",)) == 0


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", 1),
        ("B. The garden", 1),
        ("  B", 1),
        ("C", 0),
        ("The garden", 1),  # the option's text alone
        ("I think the answer is: B", 1),
        ("so the answer is B, not C", 1),
        ("so the answer is C, not B", 0),
        ("the answer is The garden", 1),
        ("it must be B", 1),
        ("it must be C or B", 0),
        ("the answer is", 0),
        ("I cannot say", 0),
        ("", 0),
    ],
)
def test_choice(prediction, expected):
    assert choice(prediction, ("The garden", "B")) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B. parse_row", 1),
        ("B: parse_row", 1),
        ("B", 0),  # the benchmark wants the mark behind it
        ("C.", 0),
        ("The correct answer is: B", 1),
        ("answer is: parse_row", 1),
        ("The error is: `parse_row`", 1),
        ("Answer is: Option B", 1),
        ("answer is:B", 0),  # the character after the lead is skipped
        ("answer is: C", 0),
        ("", 0),
    ],
)
def test_code_choice(prediction, expected):
    assert code_choice(prediction, ("parse_row", "B")) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The old harbour!", ("an old harbour",), 1),
        ("old harbour wall", ("the harbour",), 0.5),  # 1 common of 3 and 1
        ("the", ("a",), 0),  # articles are no words
        ("red red", ("red",), 2 / 3),  # precision 1/2, recall 1
        ("cat", ("dog", "a black cat"), 2 / 3),  # the better of the two
    ],
)
def test_f1_of_words(prediction, answers, expected):
    assert qa_f1(prediction, answers) == pytest.approx(expected)


def test_f1_of_characters():
    # Two of three characters are common, on both sides.
    assert qa_f1_zh("\u738b\u5c0f\u660e\u3002", ("\u738b\u5c0f\u7ea2",)) == pytest.approx(2 / 3)
    assert qa_f1_zh("\u300c A B \u300d", ("ab",)) == 1
    assert qa_f1_zh("\u3002", ("\u738b",)) == 0
