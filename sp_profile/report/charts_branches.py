"""Which way each head took in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from sp_profile.eval.branches import MethodBranches
from sp_profile.eval.results import EvalSummary
from sp_profile.figures.palette import (
    ASSIGNMENT_COLOURS,
    ASSIGNMENT_LETTERS,
    GREEN,
    GREY,
    OKABE_ITO,
    SKY,
)
from sp_profile.report.chart import Chart, class_map, map_height
from sp_profile.report.data_types import ReportData
from sp_profile.report.tables import Table
from sp_profile.report.wording import NOTHING

_MAPS = 6
_COLOURS = {**ASSIGNMENT_COLOURS, "shared": GREEN, "pivot": SKY, "dense": GREY}
_LETTERS = {**ASSIGNMENT_LETTERS, "shared": "b", "pivot": "P"}


def branch_charts(data: ReportData) -> Iterator[Chart]:
    """The commonest branch of each head, for methods whose heads differ; the first few of them."""
    if data.evaluation is None:
        return
    overview = data.evaluation.overview
    names = {method.label: method.name for method in overview.methods}
    model = data.profile.model
    mixed = [one for one in overview.branches if len(one.branches) > 1]
    for number, method in enumerate(mixed[:_MAPS]):
        if len(method.branches[0].counts) != len(data.refs):
            continue
        order = [branch.name for branch in method.branches]
        common, hover = _commonest(method, data)
        key = ", ".join(f"{_letter(order[n])} {_said(order[n])}" for n in sorted(set(common)))
        yield Chart(
            name=f"branches-{number}",
            title=f"Branches under {names[method.method]}",
            caption=f"The branch that each head took most often, over {method.prefills:,} "
            f"prefills: {key}.",
            figure=class_map(
                common,
                model.full_layers,
                model.num_heads,
                colours=[_colour(name, place) for place, name in enumerate(order)],
                letters=[_letter(order[n]) for n in common],
                hover=hover,
            ),
            height=map_height(len(model.full_layers)),
            picks=True,
        )


def branch_table(summary: EvalSummary) -> Table | None:
    """Share of each branch, by method; None where the evaluation recorded none."""
    methods = summary.overview.branches
    if not methods:
        return None
    names = {method.label: method.name for method in summary.overview.methods}
    branches = list(dict.fromkeys(b.name for method in methods for b in method.branches))
    rows = []
    for method in methods:
        counts = {branch.name: sum(branch.counts) for branch in method.branches}
        total = sum(counts.values())
        shares = (f"{100 * counts[b] / total:.1f}" if b in counts else NOTHING for b in branches)
        rows.append((names[method.method], f"{method.prefills:,}", *shares))
    return Table(
        caption="Branches that heads took, % of heads over all prefills",
        columns=("method", "prefills", *map(_said, branches)),
        rows=tuple(rows),
    )


def _commonest(method: MethodBranches, data: ReportData) -> tuple[list[int], list[str]]:
    """The commonest branch of each head, as a place in `method.branches`, and all of them."""
    common, hover = [], []
    for index, ref in enumerate(data.refs):
        counts = [branch.counts[index] for branch in method.branches]
        common.append(counts.index(max(counts)))
        shares = ", ".join(
            f"{_said(branch.name)} {100 * count / max(sum(counts), 1):.0f} %"
            for branch, count in zip(method.branches, counts, strict=True)
            if count
        )
        hover.append(f"layer {ref.layer}, head {ref.head}: {shares}")
    return common, hover


def _letter(name: str) -> str:
    return _LETTERS.get(name, name[:1])


def _colour(name: str, place: int) -> str:
    return _COLOURS.get(name, OKABE_ITO[place % len(OKABE_ITO)])


def _said(name: str) -> str:
    return name.replace("_", "-")
