"""Methods at equal mean recall on the evaluation's own prompts, from its recall pass, paired."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from plan_evaluation import PlanEvaluation
from report_text import interval, number, table, verdict

from sp_profile.curves import ORACLE
from sp_profile.eval.recalls import PairedRecalls, RecallDraws, estimate
from sp_profile.eval.statistics import Matrix
from sp_profile.eval.summary import MethodInfo
from sp_profile.plan_curves import PLAN
from sp_profile.tune_types import BALANCED

RECALL = 0.95
BASE = "vertical_slash"
PEERS = (BASE, "flexprefill", "xattention")
BY_ROWS = "own exact mask, each row by itself"
CEILINGS = (ORACLE, BY_ROWS)
_OF_A_SWEEP = re.compile(r"(r[0-9]+|upper)?")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A method's settings at one length, and what it costs where its mean recall is RECALL.

    low, high: the mean recalls that the settings reach. cost, tail: blocks with estimates over
    causal blocks, and the tenth percentile of recall; float64 [1 + resamples], the figure itself
    first, NaN where the settings do not reach the recall on both sides.
    """

    name: str
    settings: int
    low: float
    high: float
    cost: Matrix
    tail: Matrix


def recall_report(data: PlanEvaluation) -> Iterator[str]:
    """Markdown: what every method keeps, and the sweeps at equal recall."""
    if data.recalls is None or data.summary.recalls is None:
        yield "Not measured: there was no recall pass.\n"
        return
    overview = data.summary.recalls
    yield f"Of {100 * overview.share:g} % of the heads, the same ones for every method.\n"
    yield table(
        (
            "method", "tokens", "tasks", "prompts", "heads", "recall [95 %]", "p10 [95 %]",
            "density", "estimates",
        ),
        [
            (
                f"`{row.method}`",
                str(row.length),
                str(len(row.tasks)),
                str(row.prompts),
                str(row.heads),
                interval(row.recall),
                interval(row.recall_p10),
                number(row.density),
                number(row.estimation),
            )
            for row in overview.lengths
        ],
    )  # fmt: skip
    yield (
        f"At mean recall {RECALL}, linear between a method's settings; blocks with estimates, but "
        "for those of exact masks:\n"
    )
    yield table(
        ("method", "tokens", "settings", "mean recalls", "blocks [95 %]", "p10 [95 %]"),
        [
            (
                one.name,
                str(length),
                str(one.settings),
                f"{one.low:.3f} to {one.high:.3f}",
                _figure(one.cost),
                _figure(one.tail),
            )
            for length in data.recalls.lengths
            for one in sweeps(data.recalls, length).values()
        ],
    )


def recall_targets(data: PlanEvaluation, lengths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of targets."""
    for length in lengths:
        found = {} if data.recalls is None else sweeps(data.recalls, length)
        yield from _rows(found, f"at mean recall {RECALL}, {length} tokens")


def sweeps(recalls: PairedRecalls, length: int) -> dict[str, Sweep]:
    """The plan, its peers and the ceiling, over the prompts that all of them have."""
    wanted = {name: _settings(name, recalls, length) for name in (PLAN, *PEERS, *CEILINGS)}
    labels = list(dict.fromkeys(label for found in wanted.values() for label in found))
    done = {label: len(recalls.tasks([label], length)) for label in labels}
    # A method that hardly got anywhere takes no task away from the others.
    kept = [label for label in labels if 2 * done[label] >= max(done.values())]
    drawn = dict(zip(kept, recalls.draw(kept, length), strict=False))
    found = {
        name: [drawn[label] for label in settings if label in drawn]
        for name, settings in wanted.items()
    }
    return {name: _sweep(name, draws) for name, draws in found.items() if draws}


def _settings(name: str, recalls: PairedRecalls, length: int) -> list[str]:
    """Labels of the points of a sweep; ablations and controls are no points of the plan's."""
    present = recalls.at(length)
    methods = [method for method in recalls.methods if method.label in present]
    if name == PLAN:
        plans = [m for m in methods if _is_plan(m)]
        base = next((m for m in plans if m.point.plan == BALANCED), plans[0] if plans else None)
        return [
            m.label
            for m in plans
            if base is not None and dataclasses.replace(m.point, plan=base.point.plan) == base.point
        ]
    if name in CEILINGS:
        methods = [m for m in methods if m.point.method == "sampled" and m.point.stride == 1]
        # Rows by themselves are a ceiling of their own only where whole maps are there too.
        maps = [m for m in methods if m.point.row_slack > 1]
        rows = [m for m in methods if m.point.row_slack == 1]
        if name == ORACLE:
            methods = maps or rows
        else:
            methods = rows if maps else []
        fewest = min((m.point.local_blocks for m in methods), default=0)
        methods = [m for m in methods if m.point.local_blocks == fewest]
    else:
        methods = [m for m in methods if m.point.method == name]
    return [m.label for m in methods if "%" not in m.label]


def _is_plan(method: MethodInfo) -> bool:
    """Of the first profile, or of one that differs from it in the recall it was made for."""
    profile = method.label.partition("%")[2]
    point = method.point
    return (point.method, point.rule) == ("share", "plan") and bool(_OF_A_SWEEP.fullmatch(profile))


def _sweep(name: str, draws: Sequence[RecallDraws]) -> Sweep:
    recall = np.stack([one.recall for one in draws], axis=1)
    cost = np.stack(
        [one.density + (0.0 if name in CEILINGS else one.estimation) for one in draws], axis=1
    )
    tail = np.stack([one.recall_p10 for one in draws], axis=1)
    return Sweep(
        name=name,
        settings=len(draws),
        low=float(recall[0].min()),
        high=float(recall[0].max()),
        cost=at_recall(recall, cost),
        tail=at_recall(recall, tail),
    )


def at_recall(recall: Matrix, values: Matrix, wanted: float = RECALL) -> Matrix:
    """Values at a mean recall, linear between neighbouring settings; float64 [draws, settings].

    The first row decides whether the recall lies inside the sweep; a draw that does not reach it
    goes on along its last segment, so that no draw is left out.
    """
    count = recall.shape[1]
    if count < 2 or not recall[0].min() <= wanted <= recall[0].max():
        return np.full(len(recall), np.nan)
    order = np.argsort(recall, axis=1, kind="stable")
    x, y = np.take_along_axis(recall, order, 1), np.take_along_axis(values, order, 1)
    right = np.clip((x < wanted).sum(1), 1, count - 1)[:, None]
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(table, right + side, 1)[:, 0] for side in (-1, 0)] for table in (x, y)
    )
    gap = np.where(x1 > x0, x1 - x0, np.inf)  # of equal settings, the first
    found: Matrix = y0 + (y1 - y0) * (wanted - x0) / gap
    return found


def _rows(found: dict[str, Sweep], where: str) -> Iterator[tuple[str, ...]]:
    plan, base = found.get(PLAN), found.get(BASE)
    for peer in PEERS:
        other = found.get(peer)
        text, share = "-", None
        if plan is not None and other is not None and _known(plan.cost, other.cost):
            ratio = plan.cost / other.cost
            share = float(ratio[0])
            text = f"{plan.cost[0]:.3f} / {other.cost[0]:.3f} = {_figure(ratio, 2)}"
        yield (
            f"blocks of the plan / {peer}'s, {where}",
            "0.90",
            "0.75",
            text,
            verdict(share, 0.90, 0.75, less=True),
        )
    for peer in PEERS:
        other = found.get(peer)
        text, gain = "-", None
        if plan is not None and other is not None and _known(plan.tail, other.tail):
            above = plan.tail - other.tail
            gain = float(above[0])
            text = f"{plan.tail[0]:.3f} - {other.tail[0]:.3f} = {_figure(above)}"
        asked = peer == BASE
        yield (
            f"tenth percentile of recall above {peer}'s, {where}",
            "0.03" if asked else "-",
            "0.08" if asked else "-",
            text,
            verdict(gain, 0.03, 0.08, less=False) if asked else "",
        )
    yield _realised(plan, base, found.get(ORACLE), where)
    if BY_ROWS in found:
        yield _realised(plan, base, found[BY_ROWS], f"{where}, of masks made row by row")


def _realised(
    plan: Sweep | None, base: Sweep | None, ceiling: Sweep | None, where: str
) -> tuple[str, ...]:
    """How much of what exact masks save against vertical-slash the plan saves."""
    text, share = "-", None
    if plan is not None and base is not None and ceiling is not None:
        costs = (plan.cost, base.cost, ceiling.cost)
        if _known(*costs) and base.cost[0] > ceiling.cost[0]:
            realised = (base.cost - plan.cost) / (base.cost - ceiling.cost)
            share = float(realised[0])
            text = (
                f"({base.cost[0]:.3f} - {plan.cost[0]:.3f}) / "
                f"({base.cost[0]:.3f} - {ceiling.cost[0]:.3f}) = {_figure(realised, 2)}"
            )
    return (
        f"share of the ceiling's saving that the runtime realises, {where}",
        "0.70",
        "0.90",
        text,
        verdict(share, 0.70, 0.90, less=False),
    )


def _known(*values: Matrix) -> bool:
    return not any(np.isnan(value[0]) for value in values)


def _figure(draws: Matrix, digits: int = 3) -> str:
    return interval(estimate(draws) if _known(draws) else None, digits)
