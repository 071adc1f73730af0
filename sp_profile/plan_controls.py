"""Controls: the planner without one of its parts, or with chance in its place.

Every control and the planner itself choose on one half of the prompts and are measured on the
other half, both ways, at a few targets around the wanted one; `cost` is where the measured curve
passes the wanted mean recall. So differences of recall are paid in blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sp_profile.candidates import PEERS
from sp_profile.clustering import Ints, cluster_heads
from sp_profile.plan_choice import Bools, Choice, Prices, Problem, edges, evaluate, outcome_of
from sp_profile.plan_data import PlanTables, Rows
from sp_profile.plan_kinds import FREE
from sp_profile.plan_search import NOBODY
from sp_profile.plan_solver import Solution, halves_of, solve, solve_at
from sp_profile.plan_types import Outcome, PlanSettings
from sp_profile.similarity import Similarity
from sp_runtime.errors import UsageError

_STEPS = (-0.02, 0.0, 0.02)  # targets around the wanted recall
_CLUSTER_DISTANCE, _MIN_CLUSTER = 0.5, 5

Pairs = list[tuple[Rows, Rows]]
Chooser = Callable[[Rows, PlanSettings, Prices], Choice]


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """One control at the wanted mean recall, on held-out prompts.

    cost: blocks there; None where its curve does not pass that recall. ratio: over the planner's.
    recall_p10: where the target is the wanted recall. what: a sentence for people.
    """

    name: str
    cost: float | None
    ratio: float | None
    recall_p10: float
    what: str


def run_controls(
    tables: PlanTables, similarity: Similarity, settings: PlanSettings
) -> tuple[Control, ...]:
    """The planner and its controls, the planner first.

    Raises UsageError without a target, or where some task has a single prompt.
    """
    halves = halves_of(tables)
    if settings.target_recall is None:
        raise UsageError("controls compare at a mean recall", hint="give --target-recall")
    if halves is None:
        raise UsageError(
            "controls need held-out prompts, and some task has a single one",
            hint="calibrate with more --samples or lengths, or lower --min-length",
        )
    prices = solve(Problem(tables, tables.everyone, settings)).prices
    bench = _Bench(tables=tables, settings=settings, prices=prices)
    both: Pairs = [halves, halves[::-1]]
    plain = bench.cost(bench.planner(), both)
    rows = [("plan", plain, "the planner")]
    for name, chooser, what in bench.controls(similarity):
        rows.append((name, bench.cost(chooser, both), what))
    one_task: Pairs = []
    for chosen, tested in both:
        one_task += [(tables.of_task(chosen, task), tested) for task in tables.tasks]
    rows.append(("one task", bench.cost(bench.planner(), one_task), "calibrated on one task alone"))
    return tuple(
        Control(
            name=name,
            cost=cost,
            ratio=None if cost is None or plain[0] is None else cost / plain[0],
            recall_p10=outcome.recall_p10,
            what=what,
        )
        for name, (cost, outcome), what in rows
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """Measures choosers alike: same prompts, same tail price."""

    tables: PlanTables
    settings: PlanSettings
    prices: Prices

    def cost(self, chooser: Chooser, pairs: Pairs) -> tuple[float | None, Outcome]:
        """Cost where the held-out recall passes the target, and the outcome at the target."""
        target = self.settings.target_recall
        assert target is not None
        curve, centre = [], None
        for step in _STEPS:
            settings = dataclasses.replace(
                self.settings,
                target_recall=min(target + step, 1.0),
                recall_floor=self.settings.floor,
            )
            parts = [
                evaluate(self.tables, tested, chooser(chosen, settings, self.prices), settings)
                for chosen, tested in pairs
            ]
            cost = np.concatenate([part[0] for part in parts])
            recall = np.concatenate([part[1] for part in parts])
            curve.append((float(recall.mean()), float(cost.mean())))
            if step == 0.0:
                centre = outcome_of(cost, recall)
        assert centre is not None
        curve.sort()
        recalls, costs = zip(*curve, strict=True)
        inside = recalls[0] <= target <= recalls[-1]
        return (float(np.interp(target, recalls, costs)) if inside else None), centre

    def planner(
        self, *, columns: list[int] | None = None, allowed: Bools | None = None, **changes: object
    ) -> Chooser:
        """The planner with some of its settings, candidates or pairs changed."""
        tail_gain = changes.get("tail_gain", self.settings.tail_gain)

        def choose(rows: Rows, settings: PlanSettings, prices: Prices) -> Choice:
            changed = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
            problem = Problem(self.tables, rows, changed, columns=columns, allowed=allowed)
            paid = prices if tail_gain else Prices(recall=prices.recall)
            return solve_at(problem, paid).choice

        return choose

    def controls(self, similarity: Similarity) -> list[tuple[str, Chooser, str]]:
        """(name, chooser, what it is)."""
        clustered = cluster_heads(
            similarity.mean, distance=_CLUSTER_DISTANCE, min_cluster_size=_MIN_CLUSTER
        ).labels
        shuffled = np.random.default_rng(0).permutation(clustered)
        kinds = sorted({one.assignment for one in self.tables.candidates}.difference(PEERS))
        without = [
            (
                f"no {kind}",
                self.planner(
                    columns=[
                        k for k, c in enumerate(self.tables.candidates) if c.assignment != kind
                    ]
                ),
                f"no head computes {kind}",
            )
            for kind in kinds
        ]
        return [
            ("no lending", self.planner(lending=False), "every head computes its own mask"),
            ("no same layer", self.planner(same_layer=False), "lenders of earlier layers alone"),
            (
                "no tail",
                self.planner(tail_gain=0.0, recall_floor=1e-6),
                "neither floors nor a price for the tail: the mean alone",
            ),
            (
                "free kinds",
                self.planner(kind_prices=FREE),
                "kinds of estimate cost what they compute, however many a layer has",
            ),
            *without,
            (
                "random lenders",
                self._random_lenders(),
                "as many borrowers, each of a random earlier head",
            ),
            (
                "in clusters",
                self.planner(allowed=_same_cluster(clustered)),
                "only inside the Jaccard clusters",
            ),
            (
                "in random clusters",
                self.planner(allowed=_same_cluster(shuffled)),
                "only inside random clusters of the same sizes",
            ),
            (
                "Jaccard",
                self._by_jaccard(similarity),
                "as many borrowers, lenders by largest Jaccard instead of measured recall",
            ),
        ]

    def _solved(self, rows: Rows, settings: PlanSettings, prices: Prices) -> Solution:
        return solve_at(Problem(self.tables, rows, settings), prices)

    def _random_lenders(self) -> Chooser:
        def choose(rows: Rows, settings: PlanSettings, prices: Prices) -> Choice:
            solution = self._solved(rows, settings, prices)
            borrowers, _, modes = edges(solution.choice)
            rng = np.random.default_rng(len(rows))
            layers, drawn = self.tables.layers, []
            for borrower in borrowers:
                earlier = np.flatnonzero(layers < layers[borrower])
                drawn.append(rng.choice(earlier) if len(earlier) else borrower)
            return self._lend(
                rows, settings, solution, borrowers, np.array(drawn, dtype=np.intp), modes
            )

        return choose

    def _by_jaccard(self, similarity: Similarity) -> Chooser:
        def choose(rows: Rows, settings: PlanSettings, prices: Prices) -> Choice:
            solution = self._solved(rows, settings, prices)
            borrowers, _, modes = edges(solution.choice)
            layers = self.tables.layers
            alike = np.where(layers[None, :] < layers[:, None], similarity.mean, -1.0)
            if not len(borrowers):
                return solution.choice
            best = alike.argmax(1)
            order = np.argsort(-alike.max(1), kind="stable")[: len(borrowers)]
            mode = np.full(len(order), np.bincount(modes).argmax())
            return self._lend(rows, settings, solution, np.sort(order), best[np.sort(order)], mode)

        return choose

    def _lend(
        self,
        rows: Rows,
        settings: PlanSettings,
        solution: Solution,
        borrowers: np.ndarray,
        lenders: np.ndarray,
        modes: np.ndarray,
    ) -> Choice:
        """Everyone by itself at the solution's prices, but for these borrowings."""
        alone = Problem(self.tables, rows, dataclasses.replace(settings, lending=False))
        option = alone.choose(solution.prices).option
        mode = np.full(len(option), NOBODY, dtype=np.int32)
        lender: Ints = mode.copy()
        keep = ~np.isin(borrowers, lenders)  # a lender never borrows
        borrowers, lenders, modes = borrowers[keep], lenders[keep], modes[keep]
        mode[lenders] = modes
        lender[borrowers] = lenders
        for head in np.unique(lenders):
            column = self.tables.lending[mode[head]].column
            option[head] = len(self.tables.candidates) if column is None else column
        return Choice(option=option, mode=mode, lender=lender)


def _same_cluster(labels: Ints) -> Bools:
    return (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]
