"""Intervals of paired scores: a bootstrap over prompts, and Wilson's interval for shares.

The bootstrap draws prompts with replacement, within each stratum (a task at a length) for itself,
and every column of a stratum sees the same draws: so differences between methods stay paired. The
interval is the percentile one (Efron and Tibshirani 1993, chapter 13). Draws are seeded by a name,
so the same scores give the same interval whatever was computed before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONFIDENCE = 0.95
_Z = 1.959963984540054  # normal quantile of CONFIDENCE

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Resampled means; the draws of a stratum are made once and kept."""

    def __init__(self) -> None:
        self._weights: dict[tuple[str, int], Matrix] = {}

    def means(self, scores: Matrix, name: str) -> Matrix:
        """float64 [RESAMPLES, M]: the column means of scores [n, M] over draws of n rows.

        name: of the stratum, seeds its draws; rows that belong together come in one matrix.
        """
        key = (name, scores.shape[0])
        if key not in self._weights:
            self._weights[key] = _draws(*key)
        means: Matrix = self._weights[key] @ scores
        return means

    def stratified_mean(self, strata: Sequence[tuple[str, Matrix]]) -> Estimate:
        """The mean over strata of their means; each stratum is a name and float64 [n] values."""
        mean = float(np.mean([values.mean() for _, values in strata]))
        draws = [self.means(values[:, None], name)[:, 0] for name, values in strata]
        return percentile_estimate(mean, np.mean(draws, axis=0))

    def score_estimate(self, name: str, scores: Matrix) -> Estimate:
        """Wilson's interval where every score is 0 or 1, the bootstrap otherwise; float64 [n]."""
        if np.isin(scores, (0.0, 1.0)).all():
            return share_estimate(int(scores.sum()), len(scores))
        return self.stratified_mean([(name, scores)])


def percentile_estimate(mean: float, draws: Matrix) -> Estimate:
    """The estimate of a statistic from its resamples, float64 [RESAMPLES]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(mean=mean, low=float(low), high=float(high))


def share_estimate(hits: int, count: int) -> Estimate:
    """A share of hits with Wilson's interval, which does not collapse at 0 and 1."""
    share = hits / count
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    # Rounding can put an end of the interval a little inside the share.
    return Estimate(mean=share, low=min(share, centre - half), high=max(share, centre + half))


def _draws(name: str, count: int) -> Matrix:
    """float64 [RESAMPLES, count]: how often each row is drawn, over the number of rows."""
    digest = hashlib.sha256(f"sp-eval/bootstrap/1/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    counts = generator.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    drawn: Matrix = counts / count
    return drawn
