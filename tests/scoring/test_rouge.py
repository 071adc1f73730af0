"""ROUGE-Lsum against cases worked out by hand, and properties."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.scoring.rouge import _common_positions, rouge_lsum

lines = st.lists(
    st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat"]), max_size=6).map(" ".join),
    max_size=3,
).map("\n".join)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("police killed the gunman", "police killed the gunman", 1),
        # common subsequence "police the gunman": 3 of 4 and 4
        ("police kill the gunman", "police killed the gunman", 0.75),
        # "the gunman" or "police ..": length 2
        ("the gunman kill police", "police killed the gunman", 0.5),
        # Lin 2004, section 3.2: w1 w2 w3 w4 w5 against w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5: the
        # union is w1 w2 w3 w5, 4 of 5 on one side and of 10 on the other.
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * 4 / 15),
        # A token of the prediction counts once, although both lines of the answer hold it.
        ("cat", "cat\ncat", 2 * 1 / 3),
        ("Don't SHOUT", "don t shout", 1),  # runs of letters and digits, in lower case
        ("", "something", 0),
        ("...", "something", 0),
    ],
)
def test_by_hand(prediction, answer, expected):
    assert rouge_lsum(prediction, (answer,)) == pytest.approx(expected)


def test_best_answer_counts():
    assert rouge_lsum("a cat", ("a dog", "a cat")) == 1


@given(lines)
def test_a_text_is_its_own_best_summary(text):
    assert rouge_lsum(text, (text,)) == (1 if text.split() else 0)


@given(lines, lines)
def test_range_and_longer_predictions(prediction, answer):
    value = rouge_lsum(prediction, (answer,))
    assert 0 <= value <= 1
    if value:
        assert rouge_lsum(prediction + "\nunknown words here", (answer,)) < value


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_common_subsequence_is_a_longest_one(left, right):
    left, right = [str(n) for n in left], [str(n) for n in right]
    found = [left[place] for place in sorted(_common_positions(left, right))]

    def within(part, whole):
        rest = iter(whole)
        return all(token in rest for token in part)

    assert within(found, right)
    longest = max(
        size
        for size in range(len(left) + 1)
        for part in itertools.combinations(left, size)
        if within(part, right)
    )
    assert len(found) == longest
