"""The choice of a plan: the assignment of every head that is cheapest at a price of lost recall.

A head pays what it computes, plus `price` for each unit of its mean recall under 1, plus
`tail price` for each prompt on which it lies under the wanted tenth percentile; a layer pays for
every kind of estimate that its heads need (`plan_kinds`). With the prices given, lenders and
borrowers are a facility-location problem (`plan_search`); the price is raised until the mean recall
reaches the target, the tail price until the tenth percentile does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.candidates import PEERS
from sp_profile.evidence import MASS_PASS_COST
from sp_profile.plan_data import Floats, Ints, PlanTables, Rows
from sp_profile.plan_kinds import Kinds
from sp_profile.plan_reference import TAIL, reference
from sp_profile.plan_search import NOBODY, Assignment, LendingMode, assign, search
from sp_profile.plan_types import Outcome, PlanSettings

Matrix = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_PRICE = 4096.0
_MARGIN = 0.005  # between the wanted percentile and the target: heads may be all alike
_ROOM = 0.0005  # above the wanted percentile, so that other prompts reach it as well
_EPSILON = 1e-9
# Of bisection, after bracketing by factors of 4 or around a hint.
_STEPS, _CLOSE, _NEAR = 12, 5e-3, 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """recall: blocks for a unit of recall lost. tail: blocks for a prompt under the tail."""

    recall: float = 0.0
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
        for name in settings.without:
            eligible[:, tables.columns(name)] = False
        eligible[:, -1] = True
        self._eligible = eligible
        self.kinds = Kinds(tables.candidates, tables.layers, settings.kind_prices)
        self.goal = tail_goal(tables, settings)
        self.tail = self.goal + _ROOM
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
        short = self._share_under() if prices.tail else None
        own = self._cost + prices.recall * (1 - self._recall)
        if short is not None:
            own += prices.tail * short[0]
        own = np.where(self._eligible, own, np.inf)
        modes, columns = [], []
        for number, lending in enumerate(tables.lending):
            if lending.column is None:
                columns.append(own.shape[1] - 1)
                opening = np.full(len(own), 1.0 + MASS_PASS_COST + self._guard)
            else:
                columns.append(lending.column)
                opening = own[:, lending.column] + self._guard
            price = self._lost[number] * np.float32(prices.recall)
            if short is not None:
                price += short[1][number] * np.float32(prices.tail)
            price += self._borrowed[number]
            modes.append(LendingMode(opening=opening, price=price))
        found, own = self._search(own, tuple(modes), columns)
        option = own.argmin(1).astype(np.int32)
        for number, column in enumerate(columns):
            option[found.mode == number] = column
        return Choice(option=option, mode=found.mode, lender=found.lender)

    def _search(
        self, own: Matrix, modes: tuple[LendingMode, ...], columns: list[int]
    ) -> tuple[Assignment, Matrix]:
        """Lenders and menus of lowest price, and what heads pay by themselves under these menus.

        Menus are exact for given lenders; both are improved in turn, beginning with every kind of
        estimate in every layer, until the total falls no more.
        """
        kinds = self.kinds
        if not kinds.priced:
            return search(own.min(1), modes), own
        menus, opened, least = kinds.full(), None, np.inf
        best: tuple[Assignment, Matrix] | None = None
        while True:
            offered = kinds.offered(menus)
            paid = np.where(offered, own, np.inf)
            usable = tuple(
                dataclasses.replace(mode, opening=np.where(offered[:, k], mode.opening, np.inf))
                for mode, k in zip(modes, columns, strict=True)
            )
            opened = search(paid.min(1), usable, opened).mode
            menus = kinds.best(own, modes, columns, opened)
            paid = np.where(kinds.offered(menus), own, np.inf)
            found = assign(paid.min(1), modes, opened)
            total = float(found.cost.sum()) + kinds.price(menus)
            if best is not None and total >= least - _EPSILON:
                return best
            least, best = total, (found, paid)

    def _share_under(self) -> tuple[Matrix, Floats]:
        """Share of the prompts that lie under the tail, float [LH, K + 1] and [M, LH, LH]."""
        if self._short is None:
            tables = self.tables
            own = under(tables.recall[self.rows].astype(np.float64), self.tail)
            total = np.zeros(tables.lent_recall.shape[1:], dtype=np.float32)
            where = self._pairs  # what cannot be borrowed anyway is most of it
            sums = np.zeros(int(where.sum()), dtype=np.float32)
            for row in self.rows:
                sums += under(tables.lent_recall[row][where].astype(np.float32), self.tail)
            total[where] = sums / len(self.rows)
            self._short = (own.mean(0), total)
        return self._short

    _short: tuple[Matrix, Floats] | None = None

    def tail_gap(self, choice: Choice) -> float:
        """How far the tenth percentile lies above the wanted one."""
        _, recall = evaluate(self.tables, self.rows, choice, self.settings)
        return float(np.quantile(recall, TAIL)) - self.goal

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


def under(recall: npt.NDArray, tail: float) -> npt.NDArray:
    """What a recall counts in the tail: 1 under it, else 0.

    Counting makes the percentile; what lies under it is held up by the floors.
    """
    counted: npt.NDArray = (recall < tail).astype(recall.dtype)
    return counted


def tail_goal(tables: PlanTables, settings: PlanSettings) -> float:
    """The wanted tenth percentile of recall: vertical-slash's at the target, and `tail_gain`.

    0 where there is no target, no gain is asked for, or vertical-slash does not reach the target.
    """
    target = settings.target_recall
    if target is None or not settings.tail_gain:
        return 0.0
    found = reference(tables, tables.everyone, "vertical_slash", target).recall_p10
    return 0.0 if found is None else min(found + settings.tail_gain, target - _MARGIN)


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
