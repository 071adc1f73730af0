"""Which heads lend their masks to which: a search for the fewest blocks, on arrays alone.

A variant of uncapacitated facility location: opening a lender costs what making its mask adds to
its own computation, serving a head costs the lender's mask density. Heads are numbered in
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
    """One way of lending: by an exact or by a sampled mask.

    opening: float64 [LH], cost of a head that lends in this way; inf where it may not.
    price: float64 [LH, LH], price[b, l] is the cost of head b under l's mask; inf where b may not
    borrow from l. A finite price requires l in an earlier layer than b.
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


def search(own: Matrix, modes: tuple[LendingMode, ...]) -> Assignment:
    """Assign every head: by itself at cost `own`, float64 [LH], as a lender, or as a borrower.

    Starts from everyone alone; repeatedly opens the lender with the largest net saving (over its
    own cost and that of all its takers) until none saves, then closes lenders without which the
    rest is as cheap, and starts over if any was closed. The total falls with every lender opened,
    so it ends; a lender never borrows. Deterministic; O(LH^2) a step.
    """
    opened = np.full(len(own), NOBODY, dtype=np.int32)
    current = assign(own, modes, opened)
    while True:
        grown = _open_best(own, modes, current)
        while grown is not None:
            current = grown
            grown = _open_best(own, modes, current)
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
        price = np.stack([modes[opened[head]].price[:, head] for head in lenders], axis=1)
        best = price.argmin(1)
        cheapest = price[np.arange(len(own)), best]
        takes = (opened == NOBODY) & (cheapest < own - _EPSILON)
        cost[takes] = cheapest[takes]
        chosen[takes] = lenders[best[takes]]
        cost[lenders] = [modes[opened[head]].opening[head] for head in lenders]
    return Assignment(mode=opened, lender=chosen, cost=cost)


def _open_best(
    own: Matrix, modes: tuple[LendingMode, ...], current: Assignment
) -> Assignment | None:
    """Open the lender of largest net saving; None if none saves."""
    free = current.mode == NOBODY
    best_gain, best = _EPSILON, None
    for number, mode in enumerate(modes):
        relief = np.maximum(current.cost[:, None] - mode.price, 0.0)
        gain = relief[free].sum(0) - (mode.opening - current.cost)
        gain[~free] = -np.inf
        head = int(gain.argmax())
        if gain[head] > best_gain:
            best_gain, best = float(gain[head]), (head, number)
    if best is None:
        return None
    opened = current.mode.copy()
    opened[best[0]] = best[1]
    result = assign(own, modes, opened)
    # `assign` never does worse than the relief counted above, up to its own threshold.
    return result if result.cost.sum() < current.cost.sum() else None


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
