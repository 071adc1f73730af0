"""Which heads lend their masks to which: a search for the lowest price, on arrays alone.

A variant of uncapacitated facility location: opening a lender costs what making its mask adds to
its own computation, serving a head costs the price of the lender's mask. Heads are numbered in
(layer, head) order and all ties go to the lowest number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

NOBODY = -1
# Gains under a millionth of a head's causal blocks are rounding.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LendingMode:
    """One way of lending: by the exact mask, or by a sampled one of one stride and gamma.

    opening: float64 [LH], price of a head that lends in this way; inf where it may not.
    price: float [LH, LH], price[b, l] is the price of head b under l's mask; inf where b may not
    borrow from l. Nobody borrows from itself.
    """

    opening: Matrix
    price: Matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """mode: int32 [LH], the lending mode of each lender, else -1. lender: int32 [LH], the lender
    of each borrower, else -1. Heads with neither compute by themselves. cost: float64 [LH]."""

    mode: Ints
    lender: Ints
    cost: Matrix


def search(own: Matrix, modes: tuple[LendingMode, ...], opened: Ints | None = None) -> Assignment:
    """Assign every head: by itself at price `own`, float64 [LH], as a lender, or as a borrower.

    Starts from everyone alone, or with the lenders in `opened`, as in `assign`; repeatedly opens
    the lender with the largest net saving (over its own price and that of all its takers) until
    none saves, then closes lenders without which the rest is as cheap, and starts over if any was
    closed. The total falls with every lender opened, so it ends; a lender never borrows.
    Deterministic. A step costs O(LH) for every head whose price it changes.
    """
    if opened is None:
        opened = np.full(len(own), NOBODY, dtype=np.int32)
    current = assign(own, modes, opened)
    while True:
        current = _open_all(own, modes, current)
        pruned = _close_useless(own, modes, current)
        if (pruned.mode == current.mode).all():
            return current
        current = pruned


def assign(own: Matrix, modes: tuple[LendingMode, ...], opened: Ints) -> Assignment:
    """The cheapest assignment for a given set of lenders, int32 [LH] (mode number or -1)."""
    lenders = np.flatnonzero(opened != NOBODY)
    cost = own.copy()
    chosen = np.full(len(own), NOBODY, dtype=np.int32)
    if len(lenders):
        price = _price(modes, opened, lenders)
        best = price.argmin(1)
        cheapest = price[np.arange(len(own)), best]
        takes = (opened == NOBODY) & (cheapest < own - _EPSILON)
        cost[takes] = cheapest[takes]
        chosen[takes] = lenders[best[takes]]
        cost[lenders] = [modes[opened[head]].opening[head] for head in lenders]
    return Assignment(mode=opened, lender=chosen, cost=cost)


def _price(modes: tuple[LendingMode, ...], opened: Ints, lenders: npt.NDArray[np.intp]) -> Matrix:
    """float64 [LH, lenders]: what every head pays each of some lenders."""
    columns = [modes[opened[head]].price[:, head] for head in lenders]
    return np.stack(columns, axis=1).astype(np.float64)


class _Gains:
    """The net saving of opening each head in each mode, kept up to date row by row."""

    def __init__(self, modes: tuple[LendingMode, ...], current: Assignment) -> None:
        self._modes = modes
        self._paid = np.where(current.mode == NOBODY, current.cost, -np.inf)
        everyone = np.arange(len(self._paid))
        self._relief = [self._of_rows(mode, everyone, self._paid) for mode in modes]

    def best(self, current: Assignment) -> tuple[int, int] | None:
        """(head, mode) of the largest net saving; None if nothing saves."""
        free = current.mode == NOBODY
        best_gain, best = _EPSILON, None
        for number, (mode, relief) in enumerate(zip(self._modes, self._relief, strict=True)):
            gain = np.where(free, relief - (mode.opening - current.cost), -np.inf)
            head = int(gain.argmax())
            if gain[head] > best_gain:
                best_gain, best = float(gain[head]), (head, number)
        return best

    def update(self, current: Assignment) -> None:
        """Take the changed prices of some heads; lenders count no more."""
        paid = np.where(current.mode == NOBODY, current.cost, -np.inf)
        rows = np.flatnonzero(paid != self._paid)
        for mode, relief in zip(self._modes, self._relief, strict=True):
            relief += self._of_rows(mode, rows, paid) - self._of_rows(mode, rows, self._paid)
        self._paid = paid

    def _of_rows(self, mode: LendingMode, rows: npt.NDArray[np.intp], paid: Matrix) -> Matrix:
        """float64 [LH]: what some heads would save under each lender. A lender saves nothing."""
        return np.maximum(paid[rows, None] - mode.price[rows], 0.0).sum(0, dtype=np.float64)


def _open_all(own: Matrix, modes: tuple[LendingMode, ...], current: Assignment) -> Assignment:
    """Open the lender of largest net saving until none saves."""
    gains = _Gains(modes, current)
    while (best := gains.best(current)) is not None:
        opened = current.mode.copy()
        opened[best[0]] = best[1]
        grown = assign(own, modes, opened)
        # `assign` never does worse than the relief counted, up to its own threshold.
        if grown.cost.sum() >= current.cost.sum():
            break
        gains.update(grown)
        current = grown
    return current


def _close_useless(own: Matrix, modes: tuple[LendingMode, ...], current: Assignment) -> Assignment:
    """Close lenders, lowest head first, while that lowers the total."""
    closed = True
    while closed:
        closed = False
        for head in np.flatnonzero(current.mode != NOBODY):
            opened = current.mode.copy()
            opened[head] = NOBODY
            without = assign(own, modes, opened)
            if without.cost.sum() <= current.cost.sum():
                current, closed = without, True
    return current
