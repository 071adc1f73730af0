"""Kinds of estimate: what a layer computes once for all heads that want it, and what that costs.

Blocks count what a head computes. A further kind of estimate in a layer costs launches, and device
time that blocks do not count, however few of its heads use it. So every layer pays a price for
every kind, and the menu of kinds it pays for is chosen, among all there are, as the one of lowest
total. Legend: LH heads in (layer, head) order, L layers, K candidates, N kinds, S menus.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.candidates import Candidate
from sp_profile.plan_search import NOBODY, LendingMode
from sp_runtime.errors import UsageError

Matrix = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]

ESTIMATED = ("vertical_slash", "query_aware", "sampled")
"""Assignments that need an estimate; each stride of `sampled` is a kind of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindPrices:
    """What a layer pays for a kind of estimate, in head-blocks: shares of one head's causal blocks.

    query_aware comes on top of vertical_slash, whose estimate it needs; sampled is for each stride.
    Blocks that the estimates compute are in the candidates' costs already.

    The defaults are a thirtieth of what was timed on one H100 at 32k tokens, in a layer of 9 heads
    of 64 whose dense attention takes 2.62 ms, so that a head-block is 0.291 ms: vertical_slash, the
    device's 0.141 ms for the last-block estimate and 0.133 ms for its selection; query_aware, 0.231
    ms for its threshold search and some ten launches more of 0.02 ms each on the host; sampled, the
    gamma-mask's 0.014 ms. At a thirtieth the plan of SmolLM2-135M-32k at recall 0.95 has 2.6 kinds
    a layer instead of 3.5, for 0.8 % more blocks; the whole price leaves 1.4, for 5 %. sampled is
    dearer than a thirtieth, as strides hardly differ: with three of them to choose from, 0.02
    leaves 2.0 kinds a layer where 0.003 leaves 2.7, for 0.3 % more blocks.
    """

    vertical_slash: float = 0.03
    query_aware: float = 0.06
    sampled: float = 0.02

    def __post_init__(self) -> None:
        for name in ESTIMATED:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"the price of {name}, {value}, is not 0 or more", hint="try 0.5")

    @classmethod
    def parse(cls, words: Sequence[str]) -> KindPrices:
        """Of `0.5`, for all kinds, and `KIND=0.5`; a later word counts. The defaults for none.

        Raises UsageError.
        """
        found = cls()
        for word in words:
            name, _, text = word.rpartition("=")
            if name and name not in ESTIMATED:
                raise UsageError(f"unknown kind of estimate {name!r}", hint=", ".join(ESTIMATED))
            try:
                price = float(text)
            except ValueError:
                raise UsageError(
                    f"{word!r} is no price", hint="0.5, or query_aware=0.5 for one kind"
                ) from None
            named = [name] if name else ESTIMATED
            found = dataclasses.replace(found, **dict.fromkeys(named, price))
        return found


FREE = KindPrices(vertical_slash=0.0, query_aware=0.0, sampled=0.0)


def kinds_of(candidate: Candidate) -> tuple[str, ...]:
    """The kinds of estimate that a candidate needs."""
    if candidate.assignment == "sampled":
        return (f"sampled, stride {candidate.stride}",)
    if candidate.assignment == "query_aware":
        return ("vertical_slash", "query_aware")
    return ("vertical_slash",) if candidate.assignment == "vertical_slash" else ()


class Kinds:
    """The kinds of a set of candidates, and the menus that layers choose from."""

    def __init__(
        self, candidates: Iterable[Candidate], layers: npt.NDArray[np.int32], prices: KindPrices
    ) -> None:
        """layers: int32 [LH], ascending."""
        needs = [kinds_of(one) for one in candidates]
        self.names = tuple(sorted({name for one in needs for name in one}))
        # bool [K + 1, N]: what each column needs, dense attention, which needs nothing, last.
        rows = [[name in one for name in self.names] for one in (*needs, ())]
        self._needs = np.array(rows, dtype=bool)
        self._starts = np.flatnonzero(np.diff(layers, prepend=-1))
        self._layer = np.cumsum(np.diff(layers, prepend=layers[0]) != 0)
        every = list(itertools.product([True, False], repeat=len(self.names)))
        menus = np.array(every, dtype=bool).reshape(len(every), -1)
        # bool [S, K + 1]: whether a menu has what the column needs. The first menu has everything.
        self._offers = ~(self._needs[None] & ~menus[:, None]).any(2)
        each = [getattr(prices, name.partition(",")[0]) for name in self.names]
        self._price = menus @ np.array(each, dtype=np.float64)
        self.priced = bool(self._price.any())

    def full(self) -> Numbers:
        """intp [L]: menus with everything."""
        return np.zeros(len(self._starts), dtype=np.intp)

    def offered(self, menus: Numbers) -> Bools:
        """bool [LH, K + 1]: what every head may compute under its layer's menu."""
        return self._offers[menus][self._layer]

    def price(self, menus: Numbers) -> float:
        """Of all layers together."""
        return float(self._price[menus].sum())

    def best(
        self,
        own: Matrix,
        modes: tuple[LendingMode, ...],
        columns: Sequence[int],
        opened: npt.NDArray[np.int32],
    ) -> Numbers:
        """intp [L]: the cheapest menu of every layer, exactly, while the same heads lend.

        own: float64 [LH, K + 1], price of what a head computes. columns: of each lending mode, what
        its lender computes. opened: int32 [LH], the lending mode of each head that lends, else -1.
        """
        served = _served_at(modes, opened)
        total = np.empty((len(self._offers), len(own)))
        for menu, offers in enumerate(self._offers):
            total[menu] = np.minimum(own[:, offers].min(1), served)
            for number, column in enumerate(columns):
                lends = opened == number
                total[menu, lends] = modes[number].opening[lends] if offers[column] else np.inf
        by_layer = np.add.reduceat(total, self._starts, axis=1) + self._price[:, None]
        cheapest: Numbers = by_layer.argmin(0)
        return cheapest

    def used(self, option: npt.NDArray[np.int32], borrows: Bools) -> Bools:
        """bool [L, N]: the kinds that a choice has computed in every layer."""
        needs = self._needs[option] & ~borrows[:, None]
        used: Bools = np.logical_or.reduceat(needs, self._starts, axis=0)
        return used


def _served_at(modes: tuple[LendingMode, ...], opened: npt.NDArray[np.int32]) -> Matrix:
    """float64 [LH]: the price of borrowing from the cheapest head that lends; inf without one."""
    served = np.full(len(opened), np.inf)
    for head in np.flatnonzero(opened != NOBODY):
        np.minimum(served, modes[opened[head]].price[:, head], out=served)
    return served
