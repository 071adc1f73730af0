"""Running statistics whose result does not depend on the order in which prompts arrive."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

# Values are rounded to multiples of 2**-22: the sum of 2**19 squares still fits an int64.
QUANTUM_BITS = 22


class ExactMean:
    """Mean (and, if asked, spread) of equally shaped arrays with entries in [-16, 16].

    Sums are kept in fixed point, so integer addition makes them exact and independent of the
    order; the rounding of 2.4e-7 a value is far under anything a profile records.
    """

    def __init__(self, shape: tuple[int, ...], *, spread: bool = False) -> None:
        self.count = 0
        self._sum = np.zeros(shape, dtype=np.int64)
        self._squares = np.zeros(shape, dtype=np.int64) if spread else None
        self._min = np.full(shape, np.iinfo(np.int64).max) if spread else None

    def add(self, values: Floats) -> None:
        """Take one array; its shape must be the accumulator's."""
        assert values.shape == self._sum.shape, (values.shape, self._sum.shape)
        quanta = np.rint(np.asarray(values, dtype=np.float64) * 2**QUANTUM_BITS).astype(np.int64)
        self._sum += quanta
        self.count += 1
        if self._squares is not None and self._min is not None:
            np.minimum(self._min, quanta, out=self._min)
            self._squares += np.square(quanta, out=quanta)

    def mean(self) -> npt.NDArray[np.float64]:
        """float64 mean over everything added so far; 0 before the first array."""
        return self._sum / (max(self.count, 1) * 2**QUANTUM_BITS)

    def std(self) -> npt.NDArray[np.float64]:
        """float64 population standard deviation."""
        assert self._squares is not None, "made without spread"
        mean_square = self._squares / (max(self.count, 1) * 4**QUANTUM_BITS)
        return np.sqrt(np.maximum(mean_square - self.mean() ** 2, 0.0))

    def minimum(self) -> npt.NDArray[np.float64]:
        """float64 minimum; 0 before the first array."""
        assert self._min is not None, "made without spread"
        return self._min / 2**QUANTUM_BITS if self.count else np.zeros(self._min.shape)

    @staticmethod
    def pooled(parts: Iterable[ExactMean]) -> npt.NDArray[np.float64]:
        """Mean over the union of what several accumulators took; at least one must hold data."""
        held = [part for part in parts if part.count]
        assert held, "nothing to pool"
        total = held[0]._sum.copy()
        for part in held[1:]:
            total += part._sum
        return total / (sum(part.count for part in held) * 2**QUANTUM_BITS)


class Histogram:
    """Counts of values in [0, upper] by group, to steps of `step`: quantiles in bounded memory."""

    def __init__(self, groups: int, *, upper: float = 1.0, step: float = 1e-3) -> None:
        self._step = step
        self._counts = np.zeros((groups, round(upper / step) + 1), dtype=np.int64)

    def add(self, group: int, values: Floats) -> None:
        """Count every entry of `values` under `group`; entries outside the range are clipped."""
        bins = np.rint(np.asarray(values, dtype=np.float64).ravel() / self._step).astype(np.int64)
        size = self._counts.shape[1]
        self._counts[group] += np.bincount(np.clip(bins, 0, size - 1), minlength=size)

    def quantile(self, group: int, q: float) -> float:
        """The nearest-rank quantile q in [0, 1], to one step; 0 for an empty group."""
        cumulative = np.cumsum(self._counts[group])
        if not cumulative[-1]:
            return 0.0
        rank = max(int(np.ceil(q * cumulative[-1])), 1)
        return round(float(np.searchsorted(cumulative, rank)) * self._step, 9)
