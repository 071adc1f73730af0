"""Negative log-likelihood in slices, and the numbers of the agreement task."""

from __future__ import annotations

import math

import pytest
import torch

from sp_profile.agreement import measure_agreement
from sp_profile.scoring import likelihood as likelihood_module
from sp_profile.scoring.likelihood import agreement_score, nll
from sp_runtime.errors import UsageError


@pytest.fixture
def text():
    """(hidden [50, 8], head, ids)"""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(50, 8, generator=generator)
    weight = torch.randn(11, 8, generator=generator)
    ids = torch.randint(0, 11, (50,), generator=generator)
    return hidden, lambda states: (states @ weight.T).float(), ids


def test_is_the_cross_entropy_of_the_next_token(text):
    hidden, head, ids = text
    found = nll(hidden, head, ids)
    expected = torch.nn.functional.cross_entropy(head(hidden[:-1]).double(), ids[1:])
    assert found.tokens == 49
    assert found.mean == pytest.approx(float(expected), rel=1e-6)
    assert found.score == -found.mean
    assert found.perplexity == pytest.approx(math.exp(float(expected)), rel=1e-6)


@pytest.mark.parametrize("positions", [1, 7, 48, 49, 50])
def test_slices_do_not_matter_and_are_small(text, monkeypatch, positions):
    hidden, head, ids = text
    seen = []

    def watched(states):
        seen.append(states.shape[0])
        return head(states)

    whole = nll(hidden, head, ids)
    monkeypatch.setattr(likelihood_module, "_SLICE_BYTES", 4 * 11 * positions)
    sliced = nll(hidden, watched, tuple(ids.tolist()))
    assert sliced.mean == pytest.approx(whole.mean, rel=1e-6)
    assert max(seen) <= positions
    assert sum(seen[1:]) == 49


def test_uniform_model_has_the_perplexity_of_its_vocabulary():
    loss = nll(torch.zeros(5, 2), lambda states: torch.zeros(states.shape[0], 17), [1, 2, 3, 4, 5])
    assert loss.perplexity == pytest.approx(17)


def test_what_does_not_fit_is_refused(text):
    hidden, head, ids = text
    with pytest.raises(UsageError, match="50 hidden states for 49 tokens"):
        nll(hidden, head, ids[1:])
    with pytest.raises(UsageError, match="two tokens or more"):
        nll(hidden[:1], head, ids[:1])


@pytest.mark.parametrize(("equal", "expected"), [(True, 1.0), (False, 0.0), (None, None)])
def test_agreement_in_four_numbers(text, equal, expected):
    hidden, head, _ = text
    agreement = measure_agreement(head, hidden, hidden + 0.1, generated_equal=equal)
    found = agreement_score(agreement)
    assert (found.kl, found.kl_last) == (agreement.kl_mean, agreement.kl_last)
    assert found.score == found.top1 == agreement.top1
    assert found.equal == expected
