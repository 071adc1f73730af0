"""Methods at equal density: scores interpolated along a method's own sweep, with intervals.

The abscissa is blocks computed and spent on estimates, over causal blocks. Interpolation is linear
between neighbouring points of one family (a method at several values of its settings); nothing is
extrapolated, so a method has a score only inside the range of its sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sp_profile.eval.statistics import Estimate, percentile_estimate
from sp_profile.eval.summary import LengthSummary, Overview, PairedScores

TARGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
_PREFERRED = "vertical_slash"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """Score of a family at a density, interpolated. between: the two methods that it lies between;
    difference: to the reference family at the same density; None for it, and outside its range."""

    family: str
    length: int
    density: float
    between: tuple[str, str]
    score: Estimate
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedPoint:
    """A method against the reference family at this method's own density; None outside its sweep.

    density: blocks computed and spent on estimates. difference: score minus the reference's.
    """

    method: str
    length: int
    density: float
    reference: str
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualDensity:
    """reference: the family that others are compared with; None without a sweep."""

    reference: str | None
    curves: tuple[CurvePoint, ...]
    matched: tuple[MatchedPoint, ...]


_Weights = dict[str, float]
"""A score as a weighted sum of the scores of methods, by label."""


def equal_density(
    overview: Overview, paired: PairedScores, *, reference: str | None = None
) -> EqualDensity:
    """Compare the sweeps of an evaluation at equal density, length by length.

    reference: a family; None: vertical_slash, or the one with the most points.
    """
    sweeps = _sweeps(overview)
    chosen = reference if reference is not None else _reference(sweeps)
    curves: list[CurvePoint] = []
    matched: list[MatchedPoint] = []
    for length in sorted({length for _, length in sweeps}):
        base = sweeps.get((chosen, length), []) if chosen is not None else []
        for (family, at), sweep in sweeps.items():
            if at == length:
                curves += _curve(family, sweep, base if family != chosen else [], paired)
        if chosen is None:
            continue
        for rows in (sweep for (family, at), sweep in sweeps.items() if at == length):
            for row in rows:
                if row not in base:
                    matched.append(_matched(row, base, chosen, paired))
    return EqualDensity(reference=chosen, curves=tuple(curves), matched=tuple(matched))


def _sweeps(overview: Overview) -> dict[tuple[str, int], list[LengthSummary]]:
    """The points of each family at each length, by rising density; dense is no sweep."""
    family = {method.label: method.family for method in overview.methods}
    sweeps: dict[tuple[str, int], list[LengthSummary]] = {}
    for row in overview.lengths:
        if row.length is not None and row.difference is not None:
            sweeps.setdefault((family[row.method], row.length), []).append(row)
    return {key: sorted(rows, key=lambda row: row.cost) for key, rows in sweeps.items()}


def _reference(sweeps: Mapping[tuple[str, int], Sequence[LengthSummary]]) -> str | None:
    sizes: dict[str, int] = {}
    for (family, _), rows in sweeps.items():
        sizes[family] = max(sizes.get(family, 0), len(rows))
    able = sorted(family for family, size in sizes.items() if size > 1)
    if _PREFERRED in able:
        return _PREFERRED
    return max(able, key=lambda family: sizes[family], default=None)


def _curve(
    family: str,
    sweep: Sequence[LengthSummary],
    base: Sequence[LengthSummary],
    paired: PairedScores,
) -> list[CurvePoint]:
    points = []
    for target in TARGETS:
        weights = _at(sweep, target)
        if weights is None:
            continue
        other = _at(base, target)
        difference = None if other is None else _estimate(_minus(weights, other), sweep[0], paired)
        labels = tuple(weights)
        points.append(
            CurvePoint(
                family=family,
                length=sweep[0].length or 0,
                density=target,
                between=(labels[0], labels[-1]),
                score=_estimate(weights, sweep[0], paired),
                difference=difference,
            )
        )
    return points


def _matched(
    row: LengthSummary, base: Sequence[LengthSummary], reference: str, paired: PairedScores
) -> MatchedPoint:
    weights = _at(base, row.cost)
    return MatchedPoint(
        method=row.method,
        length=row.length or 0,
        density=row.cost,
        reference=reference,
        difference=None
        if weights is None
        else _estimate(_minus({row.method: 1.0}, weights), row, paired),
    )


def _at(sweep: Sequence[LengthSummary], density: float) -> _Weights | None:
    """The two neighbours of a density in a sweep and their weights; None outside its range."""
    for low, high in pairwise(sweep):
        if low.cost <= density <= high.cost:
            span = high.cost - low.cost
            share = (density - low.cost) / span if span > 0 else 0.5
            return {low.method: 1 - share, high.method: share}
    return None


def _minus(one: _Weights, other: _Weights) -> _Weights:
    return {label: one.get(label, 0.0) - other.get(label, 0.0) for label in {**one, **other}}


def _estimate(weights: _Weights, row: LengthSummary, paired: PairedScores) -> Estimate:
    """A weighted sum of scores over the tasks of a length, on the prompts that all have seen."""
    labels = list(weights)
    factors = np.array([weights[label] for label in labels])
    length = row.length or 0
    means, draws = [], []
    for task in row.tasks:
        scores = paired.matrix(labels, task, length)
        means.append(float(scores.mean(0) @ factors))
        draws.append(paired.bootstrap.means(scores, f"{task}/{length}") @ factors)
    return percentile_estimate(float(np.mean(means)), np.mean(draws, axis=0))
