"""Whether sharing pays in each cluster: what its borrowers keep and what it costs, against
vertical-slash at equal recall.

Costs and densities are blocks over the causal blocks of one head; a saving is blocks over the
causal blocks of all heads of the model, so savings of several clusters add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sp_profile.clustering import served_by
from sp_profile.similarity import Similarity
from sp_runtime.errors import UsageError
from sp_runtime.patterns.cost import QK_PASS
from sp_runtime.profile import ClusterEvidence

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

# The block mass of a dense head is one more pass over its queries and keys, without values.
MASS_PASS_COST = QK_PASS


@dataclass(frozen=True, kw_only=True, slots=True)
class EnablePolicy:
    """Which clusters share: those for which the evidence speaks, all that can, or the `top` ones
    of largest saving."""

    kind: Literal["evidence", "all", "top"] = "evidence"
    top: int = 0

    def __str__(self) -> str:
        return f"top:{self.top}" if self.kind == "top" else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceInputs:
    """Means over the calibration prompts that evidence is drawn from.

    layers: int32 [LH]. recall_exact: float64 [LH, LH], recall of head a under head b's exact mask.
    density: float64 [LH], of the forced exact masks. vertical_slash_cost, vertical_slash_recall:
    float64 [LH, G] at G values of gamma. row_estimate: cost of one head's last-row estimate.
    """

    layers: Ints
    similarity: Similarity
    recall_exact: Matrix
    density: Matrix
    vertical_slash_cost: Matrix
    vertical_slash_recall: Matrix
    row_estimate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingCase:
    """One cluster's case for sharing with the lender that the runtime will use.

    lender: None if it would serve no member. recall: mean over the served members.
    share_cost, vertical_slash_cost: mean cost a head over the served members and the lender, which
    is computed densely. borrower_vertical_slash: the same over the served members alone.
    saving: over the model's causal blocks.
    """

    lender: int | None
    served: tuple[int, ...]
    recall: float
    share_cost: float
    vertical_slash_cost: float
    borrower_vertical_slash: float
    saving: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a cluster shares, and why, as a sentence for people."""

    enabled: bool
    reason: str


def parse_enable(text: str) -> EnablePolicy:
    """`evidence`, `all` or `top:K` with K >= 1; UsageError otherwise."""
    if text == "evidence":
        return EnablePolicy(kind="evidence")
    if text == "all":
        return EnablePolicy(kind="all")
    prefix, _, number = text.partition(":")
    if prefix == "top" and number.isascii() and number.isdigit() and 1 <= int(number) <= 10**6:
        return EnablePolicy(kind="top", top=int(number))
    raise UsageError(f"unknown enable policy {text!r}", hint="evidence, all or top:K")


def cost_at_recall(costs: Matrix, recalls: Matrix, target: float) -> float:
    """Cost at which a curve of (cost, recall) points, float64 [G] each, reaches `target`.

    Linear between the points that no cheaper point beats; the curve ends in dense attention
    (cost 1, recall 1), and under its lowest recall the cost of that point holds.
    """
    points = sorted([*zip(recalls.tolist(), costs.tolist(), strict=True), (1.0, 1.0)])
    frontier: list[tuple[float, float]] = []
    for recall, cost in reversed(points):
        if not frontier or cost < frontier[-1][1]:
            frontier.append((recall, cost))
    frontier.reverse()
    return float(np.interp(target, [r for r, _ in frontier], [c for _, c in frontier]))


def sharing_case(members: Sequence[int], lender: int | None, inputs: EvidenceInputs) -> SharingCase:
    """Compare a cluster that shares `lender`'s mask with vertical-slash at equal recall.

    Each served member is set against its own vertical-slash curve at its own recall, the lender
    (dense, with the pass for its block mass) at the members' mean recall: that it is exact earns
    it nothing. Sharing pays the last-row estimate of every head, as vertical-slash does. Members
    that the lender cannot serve run vertical-slash either way and do not enter.
    """
    served = () if lender is None else served_by(lender, members, inputs.layers)
    if lender is None or not served:
        return SharingCase(
            lender=None,
            served=(),
            recall=0.0,
            share_cost=0.0,
            vertical_slash_cost=0.0,
            borrower_vertical_slash=0.0,
            saving=0.0,
        )
    recalls = inputs.recall_exact[list(served), lender]
    recall = float(recalls.mean())

    def vertical_slash(head: int, target: float) -> float:
        costs, reached = inputs.vertical_slash_cost[head], inputs.vertical_slash_recall[head]
        return cost_at_recall(costs, reached, target)

    borrowers = sum(vertical_slash(head, r) for head, r in zip(served, recalls, strict=True))
    without = borrowers + vertical_slash(lender, recall)
    heads = len(served) + 1
    sharing = (
        1.0
        + MASS_PASS_COST
        + len(served) * float(inputs.density[lender])
        + heads * inputs.row_estimate
    )
    return SharingCase(
        lender=lender,
        served=served,
        recall=recall,
        share_cost=sharing / heads,
        vertical_slash_cost=without / heads,
        borrower_vertical_slash=borrowers / len(served),
        saving=(without - sharing) / len(inputs.layers),
    )


def decide(
    cases: Sequence[SharingCase], policy: EnablePolicy, recall_target: float
) -> tuple[Verdict, ...]:
    """Which clusters share.

    evidence: mean recall of the served members >= recall_target and saving > 0. all: every cluster
    with a lender. top: the K with a lender of largest saving, ties to the lower number. The last
    two are the user's wish, so the sentence still says what the evidence found.
    """
    able = [number for number, case in enumerate(cases) if case.lender is not None]
    ranked = sorted(able, key=lambda number: (-cases[number].saving, number))
    wanted = set(ranked[: policy.top] if policy.kind == "top" else able)
    return tuple(
        _verdict(case, number in wanted, policy, recall_target) for number, case in enumerate(cases)
    )


def cluster_evidence(
    members: Sequence[int],
    case: SharingCase,
    verdict: Verdict,
    recall_p10: float,
    inputs: EvidenceInputs,
) -> ClusterEvidence:
    """The record of one cluster; Jaccard means are over pairs of members, and recall_p10 is the
    tenth percentile over served members and prompts."""
    pairs = np.triu_indices(len(members), 1)
    inside = np.ix_(list(members), list(members))
    return ClusterEvidence(
        jaccard_mean=float(inputs.similarity.mean[inside][pairs].mean()),
        jaccard_core_mean=float(inputs.similarity.core_mean[inside][pairs].mean()),
        recall_mean=case.recall,
        recall_p10=recall_p10,
        lender_density=0.0 if case.lender is None else float(inputs.density[case.lender]),
        vertical_slash_density=case.borrower_vertical_slash,
        saving=case.saving,
        reason=verdict.reason,
    )


def _verdict(
    case: SharingCase, wanted: bool, policy: EnablePolicy, recall_target: float
) -> Verdict:
    if case.lender is None:
        return Verdict(enabled=False, reason="off: no member runs after one that could lend")
    against = f"{case.vertical_slash_cost:.2f} against {case.share_cost:.2f} blocks"
    if case.recall < recall_target:
        found = f"recall {case.recall:.2f} under the lender is below {recall_target:.2f}"
    elif case.saving <= 0:
        found = f"vertical-slash is as cheap ({against})"
    else:
        found = f"saves {100 * case.saving:.1f} % of blocks at recall {case.recall:.2f}"
    pays = case.saving > 0 and case.recall >= recall_target
    if policy.kind == "evidence":
        return Verdict(enabled=pays, reason=found if pays else f"off: {found}")
    if not wanted:
        return Verdict(enabled=False, reason=f"off: not among the {policy}; {found}")
    return Verdict(enabled=True, reason=f"on by request ({policy}); {found}")
