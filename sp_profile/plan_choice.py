"""The choice of a plan: the assignment of every head that is cheapest at a price of lost recall.

A head pays what it computes, plus `price` for each unit of its mean recall under 1, plus
`tail_price` for each unit by which single prompts lie under `tail`. With the prices given, lenders
and borrowers are a facility-location problem (`plan_search`); the price is raised until the mean
recall reaches the target, the tail price until the tenth percentile does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.candidates import PEERS
from sp_profile.evidence import MASS_PASS_COST
from sp_profile.plan_data import Floats, Ints, PlanTables, Rows
from sp_profile.plan_search import NOBODY, LendingMode, search
from sp_profile.plan_types import Outcome, PlanSettings

Matrix = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TAIL = 0.1
MAX_PRICE = 4096.0
# Of bisection, after bracketing by factors of 4 or around a hint.
_STEPS, _CLOSE, _NEAR = 12, 2e-3, 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """recall, tail_recall: blocks for a unit of recall lost; tail: recall under which the second
    one counts."""

    recall: float = 0.0
    tail_recall: float = 0.0
    tail: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """option: int32 [LH], the column of what a head computes by itself. mode: int32 [LH], number of
    the mask that it lends, or -1. lender: int32 [LH], whose mask it borrows, or -1."""

    option: Ints
    mode: Ints
    lender: Ints


class Problem:
    """One set of prompts with its floors: means that do not depend on the prices."""

    def __init__(
        self,
        tables: PlanTables,
        rows: Rows,
        settings: PlanSettings,
        *,
        columns: list[int] | None = None,
        allowed: Bools | None = None,
    ) -> None:
        """columns: candidates that may be chosen, dense always; None: all.

        allowed: bool [LH, LH], entry [b, l] whether b may borrow from l; None: under layer order.
        """
        self.tables, self.rows, self.settings = tables, rows, settings
        self._cost = _mean(tables.cost, rows)
        self._recall = _mean(tables.recall, rows)
        floor, slack = settings.floor, settings.task_slack
        tasks = [tables.of_task(rows, task) for task in tables.tasks]
        tasks = [part for part in tasks if len(part)]
        eligible = self._recall >= floor
        for part in tasks:
            eligible &= _mean(tables.recall, part) >= floor - slack
        if columns is not None:
            eligible[:, [k for k in range(eligible.shape[1] - 1) if k not in columns]] = False
        peers = [k for k, one in enumerate(tables.candidates) if one.assignment in PEERS]
        eligible[:, peers] = False
        eligible[:, -1] = True
        self._eligible = eligible
        self._density = _mean(tables.lent_density, rows)
        self._lent = _mean(tables.lent_recall, rows)
        self._lost = (1 - self._lent).astype(np.float32)
        self._guard = float(tables.row_estimate[rows].mean()) if settings.guarded else 0.0
        self._pairs = self._permitted(allowed) & (self._lent >= floor)
        for part in tasks:
            self._pairs &= _mean(tables.lent_recall, part) >= floor - slack
        self._borrowed = self._borrowed_cost()

    def _permitted(self, allowed: Bools | None) -> Bools:
        """bool [M, LH, LH], without regard to recall."""
        tables, settings = self.tables, self.settings
        layers, size = tables.layers, len(tables.layers)
        earlier = layers[None, :] < layers[:, None]
        same = (layers[None, :] == layers[:, None]) & ~np.eye(size, dtype=bool)
        pairs = np.zeros((len(tables.lending), size, size), dtype=bool)
        if settings.lending:
            for number, lending in enumerate(tables.lending):
                sampled = lending.column is not None
                pairs[number] = earlier | same if sampled and settings.same_layer else earlier
        return pairs if allowed is None else pairs & allowed

    def _borrowed_cost(self) -> Floats:
        """float32 [M, LH, LH]: what a borrower computes; inf where it may not borrow."""
        cost = np.where(self._pairs, self._density[:, None, :] + self._guard, np.inf)
        return cost.astype(np.float32)

    def forbid(self, borrowers: npt.NDArray[np.intp], lenders: npt.NDArray[np.intp]) -> None:
        """Take some borrowings away for good."""
        self._pairs[:, borrowers, lenders] = False
        self._borrowed = self._borrowed_cost()

    def keep_only(self, borrowers: npt.NDArray[np.intp], lenders: npt.NDArray[np.intp]) -> None:
        """Take every borrowing but these away for good."""
        kept = np.zeros(self._pairs.shape[1:], dtype=bool)
        kept[borrowers, lenders] = True
        self._pairs &= kept
        self._borrowed = self._borrowed_cost()

    def choose(self, prices: Prices) -> Choice:
        """The assignment of lowest price."""
        tables = self.tables
        short = self._shortfall(prices)
        own = self._cost + prices.recall * (1 - self._recall)
        if prices.tail_recall:
            own += prices.tail_recall * short[0]
        own = np.where(self._eligible, own, np.inf)
        modes = []
        for number, lending in enumerate(tables.lending):
            if lending.column is None:
                opening = np.full(len(own), 1.0 + MASS_PASS_COST + self._guard)
            else:
                opening = own[:, lending.column] + self._guard
            price = self._lost[number] * np.float32(prices.recall)
            if prices.tail_recall:
                price += short[1][number] * np.float32(prices.tail_recall)
            price += self._borrowed[number]
            modes.append(LendingMode(opening=opening, price=price))
        found = search(own.min(1), tuple(modes))
        option = own.argmin(1).astype(np.int32)
        for number, lending in enumerate(tables.lending):
            column = own.shape[1] - 1 if lending.column is None else lending.column
            option[found.mode == number] = column
        return Choice(option=option, mode=found.mode, lender=found.lender)

    def _shortfall(self, prices: Prices) -> tuple[Matrix, Floats]:
        """Mean of what single prompts lie under the tail, float [LH, K + 1] and [M, LH, LH]."""
        tables, tail = self.tables, prices.tail
        if not prices.tail_recall:
            return np.zeros(0), np.zeros(0, dtype=np.float32)
        if self._tail != tail:
            own = np.maximum(tail - tables.recall[self.rows].astype(np.float64), 0).mean(0)
            total = np.zeros(tables.lent_recall.shape[1:], dtype=np.float32)
            where = self._pairs  # what cannot be borrowed anyway is most of it
            sums = np.zeros(int(where.sum()), dtype=np.float32)
            for row in self.rows:
                sums += np.maximum(tail - tables.lent_recall[row][where].astype(np.float32), 0)
            total[where] = sums / len(self.rows)
            self._short, self._tail = (own, total), tail
        return self._short

    _tail: float | None = None
    _short: tuple[Matrix, Floats]

    def reach(
        self, target: float | None, prices: Prices, *, hint: float | None = None
    ) -> tuple[Choice, Prices]:
        """The choice at the lowest price of recall whose mean recall reaches the target.

        hint: a price of recall near which to look first. Where only dense attention reaches the
        target, the choice at the highest price.
        """
        if target is None:
            paid = dataclasses.replace(prices, recall=0.0)
            return self.choose(paid), paid
        found: dict[float, tuple[Choice, Prices]] = {}

        def reached(price: float) -> bool:
            paid = dataclasses.replace(prices, recall=price)
            found[price] = self.choose(paid), paid
            return self.mean_recall(found[price][0]) >= target - 1e-9

        low, high = 0.0, 1.0
        if hint:
            low, high = hint / _NEAR, hint * _NEAR
        if low and reached(low):
            low, high = 0.0, low
        elif not reached(high):
            while high < MAX_PRICE:
                low, high = high, 4 * high
                if reached(high):
                    break
        if low == 0.0 and reached(0.0):
            high = 0.0
        for _ in range(_STEPS):
            if high - low < _CLOSE * high or not high:
                break
            middle = (low + high) / 2
            if reached(middle):
                high = middle
            else:
                low = middle
        return found[high]

    def mean_recall(self, choice: Choice) -> float:
        """Over heads, on the prompts of the problem."""
        heads = np.arange(len(choice.option))
        recall = self._recall[heads, choice.option]
        borrowers, lenders, modes = edges(choice)
        recall[borrowers] = self._lent[modes, borrowers, lenders]
        return float(recall.mean())


def edges(
    choice: Choice,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """intp [E] each: borrowers, ascending, their lenders, and which mask these lend."""
    borrowers = np.flatnonzero(choice.lender != NOBODY)
    lenders = choice.lender[borrowers].astype(np.intp)
    return borrowers, lenders, choice.mode[lenders].astype(np.intp)


def evaluate(
    tables: PlanTables, rows: Rows, choice: Choice, settings: PlanSettings
) -> tuple[Matrix, Matrix]:
    """float64 [rows, LH] each: cost and recall of a choice on some prompts."""
    heads = np.arange(len(choice.option))
    cost = tables.cost[rows][:, heads, choice.option].astype(np.float64)
    recall = tables.recall[rows][:, heads, choice.option].astype(np.float64)
    guard = tables.row_estimate[rows][:, None] if settings.guarded else np.zeros((len(rows), 1))
    lends = choice.mode != NOBODY
    cost[:, lends] += guard
    dense = lends & (choice.option == len(tables.candidates))
    cost[:, dense] += MASS_PASS_COST
    borrowers, lenders, modes = edges(choice)
    # Fancy indices apart from a slice come first, so the result is [E, rows] turned around.
    cost[:, borrowers] = tables.lent_density[rows][:, modes, lenders] + guard
    recall[:, borrowers] = tables.lent_recall[rows][:, modes, borrowers, lenders]
    return cost, recall


def outcome_of(cost: Matrix, recall: Matrix) -> Outcome:
    """Means and tail of [prompts, LH] values."""
    return Outcome(
        prompts=len(cost),
        cost=float(cost.mean()),
        recall=min(float(recall.mean()), 1.0),
        recall_p10=float(np.quantile(recall, TAIL)),
    )


def _mean(values: npt.NDArray, rows: Rows) -> Matrix:
    """Mean over some prompts, float64 and summed in their order."""
    total = np.zeros(values.shape[1:], dtype=np.float64)
    for row in rows:
        total += values[row]
    return total / len(rows)
