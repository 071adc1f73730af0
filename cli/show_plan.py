"""The tables of `sp-profile show`: what each head is to compute, and the operating points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .output import Output
from .show_panel import colour_depth

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.text import Text

    from sp_runtime.profile import HeadPlan, Plan, Profile

_KEY_WIDTH = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """How the map shows an assignment: its colour, or its letter without colours."""

    assignment: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        from sp_profile.figures import palette

        colours = colour_depth(console)
        if colours is None:
            yield Text(palette.ASSIGNMENT_LETTERS[self.assignment])
        else:
            full = colours == "truecolor"
            of = palette.ASSIGNMENT_COLOURS if full else palette.ASSIGNMENT_COLOURS_256
            yield Text(" " * _KEY_WIDTH, f"on {of[self.assignment]}")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(_KEY_WIDTH, _KEY_WIDTH)


def print_plan(output: Output, plan: Plan) -> None:
    """How many heads have each assignment, at what cost; the key to the map of assignments."""
    groups: dict[str, list[HeadPlan]] = {}
    for head in plan.heads:
        groups.setdefault(head.assignment, []).append(head)
    output.line()
    output.line(f"plan for {_aim(plan)}, as predicted:")
    rows = [
        (Key(assignment=name), name, *_means(heads))
        for name, heads in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    columns = ("map", "assignment", "heads", "cost", "recall")
    output.table(columns, [*rows, ("", "all heads", *_means(plan.heads))], left=(0, 1))
    output.line("cost: blocks with estimation / causal blocks")
    output.line("recall: attention mass kept")


def print_plans(output: Output, profile: Profile) -> None:
    """The named plans beside the profile's own one; nothing without any."""
    if not profile.plans:
        return
    output.line()
    output.line("further plans (--plan NAME)")
    rows = [(named.name, _aim(named.plan), *_means(named.plan.heads)) for named in profile.plans]
    output.table(("name", "for", "heads", "cost", "recall"), rows, left=(0, 1))


def _aim(plan: Plan) -> str:
    """What a plan was chosen for."""
    if plan.target_recall is not None:
        return f"a mean recall of {plan.target_recall:g}"
    return f"a recall of at least {plan.recall_floor:g}"


def print_head_patterns(output: Output, profile: Profile) -> None:
    """The patterns of single heads that other methods use, counted."""
    patterns = profile.head_patterns
    if patterns is None:
        return
    if patterns.minference is not None:
        table = patterns.minference
        counts = Counter((head.kind, head.vertical, head.slash) for head in table.heads)
        output.line()
        output.line(f"patterns of method minference: {table.source}")
        rows = [
            (kind, str(vertical), str(slash) if slash else "-", str(count))
            for (kind, vertical, slash), count in sorted(counts.items())
        ]
        output.table(("pattern", "v", "s", "heads"), rows)
    if patterns.moa is not None:
        windows = patterns.moa
        scaled = Counter((head.alpha, head.beta) for head in windows.heads)
        output.line()
        output.line(
            f"windows of method moa: {windows.source}; mean density {windows.density:g}, sink "
            f"{windows.sink} tokens"
        )
        cells = [(str(a), f"{b:g}", str(count)) for (a, b), count in sorted(scaled.items())]
        output.table(("alpha", "beta", "heads"), cells, left=())


def print_points(output: Output, profile: Profile) -> None:
    """The named operating points; the plan of one that names a plan in brackets."""
    from sp_runtime.method_spec import method_name

    output.line()
    output.line("operating points")
    rows = [
        (
            named.name,
            method_name(named.point) + (f" ({named.point.plan})" if named.point.plan else ""),
            f"{named.point.gamma:g}",
            f"{named.point.tau:g}",
            f"{named.point.delta:g}",
            str(named.point.min_budget),
            str(named.point.min_tokens),
        )
        for named in profile.points
    ]
    columns = ("name", "method", "gamma", "tau", "delta", "budget", "tokens")
    output.table(columns, rows, left=(0, 1))
    output.line("budget: least tokens of vertical-slash")
    output.line("tokens: shorter prompts are dense")


def mean_cost(heads: Sequence[HeadPlan]) -> float:
    """Of the plan; 0 without heads."""
    return sum(head.cost for head in heads) / max(len(heads), 1)


def mean_recall(heads: Sequence[HeadPlan]) -> float:
    """Of the plan; 0 without heads."""
    return sum(head.recall for head in heads) / max(len(heads), 1)


def _means(heads: Sequence[HeadPlan]) -> tuple[str, str, str]:
    return str(len(heads)), f"{mean_cost(heads):.3f}", f"{mean_recall(heads):.3f}"
