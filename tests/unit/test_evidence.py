"""Evidence for sharing: costs against vertical-slash, verdicts of every policy."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.evidence import (
    EnablePolicy,
    EvidenceInputs,
    SharingCase,
    cluster_evidence,
    cost_at_recall,
    decide,
    parse_enable,
    sharing_case,
)
from sp_profile.similarity import Similarity
from sp_runtime.errors import UsageError

LAYERS = np.array([0, 0, 1, 2, 3, 4], dtype=np.int32)


def make_inputs(
    recall: float = 0.92, density: float = 0.1, vertical_slash: float = 0.5
) -> EvidenceInputs:
    """Six heads alike; vertical-slash costs `vertical_slash` at every recall up to 0.95."""
    heads = len(LAYERS)
    ones = np.ones((heads, heads))
    similarity = Similarity(
        mean=0.6 * ones,
        minimum=0.5 * ones,
        std=0 * ones,
        core_mean=0.4 * ones,
        prompts=1,
        task_means=(),
        length_means=(),
    )
    return EvidenceInputs(
        layers=LAYERS,
        similarity=similarity,
        recall_exact=recall * ones,
        density=np.full(heads, density),
        vertical_slash_cost=np.tile([vertical_slash, vertical_slash], (heads, 1)),
        vertical_slash_recall=np.tile([0.5, 0.95], (heads, 1)),
        row_estimate=0.02,
    )


def make_case(saving: float, recall: float = 0.95, lender: int | None = 0) -> SharingCase:
    return SharingCase(
        lender=lender,
        served=(2, 3),
        recall=recall,
        share_cost=0.24,
        vertical_slash_cost=0.21,
        borrower_vertical_slash=0.2,
        saving=saving,
    )


def test_interpolation_follows_the_frontier():
    costs = np.array([0.4, 0.2, 0.3, 0.6])
    recalls = np.array([0.7, 0.8, 0.75, 0.9])  # the first and third are beaten by the second
    assert cost_at_recall(costs, recalls, 0.1) == pytest.approx(0.2)
    assert cost_at_recall(costs, recalls, 0.85) == pytest.approx(0.4)
    assert cost_at_recall(costs, recalls, 0.95) == pytest.approx(0.8)
    assert cost_at_recall(costs, recalls, 1.0) == 1.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1.2)), max_size=6),
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_more_recall_never_costs_less(points: list[tuple[float, float]], targets: list[float]):
    recalls = np.array([recall for recall, _ in points])
    costs = np.array([cost for _, cost in points])
    found = [cost_at_recall(costs, recalls, target) for target in sorted(targets)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found))
    assert max(found) <= 1.0


def test_saving_counts_the_dense_lender_and_its_estimate():
    case = sharing_case(range(6), 0, make_inputs())
    assert case.served == (2, 3, 4, 5)  # head 1 runs in the lender's own layer
    sharing = 1 + 0.5 + 4 * 0.1 + 5 * 0.02
    assert case.share_cost == pytest.approx(sharing / 5)
    assert case.vertical_slash_cost == pytest.approx(0.5)
    assert case.saving == pytest.approx((5 * 0.5 - sharing) / 6)


def test_a_member_is_set_against_vertical_slash_at_its_own_recall():
    inputs = make_inputs()
    recall = inputs.recall_exact.copy()
    recall[2, 0] = 0.975  # half way from (0.95, 0.5) to dense
    case = sharing_case(range(6), 0, dataclasses.replace(inputs, recall_exact=recall))
    assert case.borrower_vertical_slash == pytest.approx((0.75 + 3 * 0.5) / 4)


@pytest.mark.parametrize("lender", [None, 5], ids=["no-lender", "last-layer"])
def test_nobody_served(lender: int | None):
    case = sharing_case(range(6), lender, make_inputs())
    assert (case.lender, case.served, case.saving) == (None, (), 0.0)
    for text in ("evidence", "all", "top:3"):
        (verdict,) = decide([case], parse_enable(text), 0.9)
        assert not verdict.enabled
        assert verdict.reason == "off: no member runs after one that could lend"


@pytest.mark.parametrize(
    ("inputs", "enabled", "reason"),
    [
        (make_inputs(), True, "saves 8.3 % of blocks at recall 0.92"),
        (make_inputs(recall=0.8), False, "off: recall 0.80 under the lender is below 0.90"),
        (
            make_inputs(vertical_slash=0.2),
            False,
            "off: vertical-slash is as cheap (0.20 against 0.40 blocks)",
        ),
    ],
    ids=["pays", "recall", "cheap"],
)
def test_evidence_enables_what_pays(inputs: EvidenceInputs, enabled: bool, reason: str):
    (verdict,) = decide([sharing_case(range(6), 0, inputs)], EnablePolicy(), 0.9)
    assert (verdict.enabled, verdict.reason) == (enabled, reason)


def test_all_enables_whatever_can_lend_and_still_tells_the_finding():
    cases = [make_case(0.03), make_case(-0.01), make_case(0.0, lender=None)]
    verdicts = decide(cases, parse_enable("all"), 0.9)
    assert [verdict.enabled for verdict in verdicts] == [True, True, False]
    assert verdicts[1].reason == (
        "on by request (all); vertical-slash is as cheap (0.21 against 0.24 blocks)"
    )


def test_top_takes_the_largest_savings():
    cases = [make_case(-0.02), make_case(0.01), make_case(0.03), make_case(0.01)]
    verdicts = decide(cases, parse_enable("top:2"), 0.9)
    assert [verdict.enabled for verdict in verdicts] == [False, True, True, False]
    assert verdicts[3].reason.startswith("off: not among the top:2; saves 1.0 %")


def test_record():
    inputs = make_inputs()
    case = sharing_case(range(6), 0, inputs)
    (verdict,) = decide([case], EnablePolicy(), 0.9)
    found = cluster_evidence(range(6), case, verdict, 0.85, inputs)
    assert found.jaccard_mean == pytest.approx(0.6)
    assert found.jaccard_core_mean == pytest.approx(0.4)
    assert found.recall_mean == pytest.approx(0.92)
    assert (found.recall_p10, found.lender_density) == (0.85, pytest.approx(0.1))
    assert found.reason == verdict.reason


@pytest.mark.parametrize("text", ["evidence", "all", "top:1", "top:12"])
def test_policies_read_back(text: str):
    assert str(parse_enable(text)) == text


@pytest.mark.parametrize("text", ["", "top", "top:", "top:0", "top:-1", "top:1.5", "All", "none"])
def test_unknown_policies_are_refused(text: str):
    with pytest.raises(UsageError, match="enable policy"):
        parse_enable(text)
