"""An evaluation as tables for a person; 80 columns suffice for four lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from .output import Output

if TYPE_CHECKING:
    from sp_profile.eval.recalls import RecallOverview, RecallSummary
    from sp_profile.eval.results import EvalSummary
    from sp_profile.eval.statistics import Estimate
    from sp_profile.eval.summary import CellSummary, LengthSummary, MethodInfo, Seconds

_NAME = 30
_ABBREVIATED = (
    ("share:", ""),
    ("vertical_slash", "v-slash"),
    ("flexprefill", "flex"),
    ("min_budget", "budget"),
)


def print_summary(output: Output, summary: EvalSummary) -> None:
    """Scores by length, differences to dense, costs, and methods at equal density."""
    if output.json_mode:
        return
    config, overview = summary.config, summary.overview
    output.line(
        f"{config.model}: {len(overview.methods)} methods, {len(config.tasks)} tasks, "
        f"{config.dtype}, seed {config.seed}, chat template "
        f"{'on' if config.chat_template else 'off'}"
    )
    if overview.lengths:
        _print_scores(output, summary)
        _print_costs(output, summary)
        _print_equal_density(output, summary)
    if summary.recalls is not None:
        _print_recalls(output, summary.recalls)
    _print_tasks(output, summary)
    for reason in overview.untimed:
        output.line(f"times not taken: {reason}")
    audited = () if summary.recalls is None else summary.recalls.failed
    for failure in (*overview.failed, *audited):
        output.warn(f"{failure.method} on {failure.task} at {failure.length}: {failure.reason}")
    if overview.missing:
        output.warn(f"{overview.missing} cells are not evaluated yet")


def _print_scores(output: Output, summary: EvalSummary) -> None:
    overview = summary.overview
    lengths = sorted({row.length for row in overview.lengths if row.length is not None})
    rows = {(row.method, row.length): row for row in overview.lengths}
    whole = None if len(lengths) > 1 else lengths[0]
    table = []
    for method in overview.methods:
        row = rows.get((method.label, whole))
        scores = [rows.get((method.label, length)) for length in lengths]
        table.append(
            (
                _name(method, overview.methods),
                *("-" if one is None else f"{100 * one.score.mean:.1f}" for one in scores),
                "-" if row is None else _interval(row.difference),
            )
        )
    output.line()
    output.line("score in percent, mean over tasks; difference to dense over all lengths")
    output.table(("method", *map(str, lengths), "difference [95 %]"), table)
    most = max(method.samples for method in overview.methods)
    fewer = sorted({method.samples for method in overview.methods} - {most})
    output.line(
        f"{most} prompts a task and length"
        + (f"; *: {', '.join(map(str, fewer))}" if fewer else "")
    )


def _print_costs(output: Output, summary: EvalSummary) -> None:
    """Blocks by length, and where they were taken, times."""
    overview = summary.overview
    _print_lengths(
        output,
        overview.methods,
        overview.lengths,
        "density: blocks computed / causal blocks, and what the estimates cost, same unit",
        _blocks,
    )
    if not any(row.seconds is not None for row in overview.lengths):
        return
    times: tuple[tuple[str, Callable[[Seconds], float | None]], ...] = (
        ("time to first token, ms, medians", lambda seconds: seconds.ttft),
        ("of it inside attention, ms", lambda seconds: seconds.attention),
        ("of that before the kernel (estimates, decisions, index), ms", lambda s: s.index),
    )
    for title, value in times:
        _print_lengths(output, overview.methods, overview.lengths, title, _milliseconds(value))


def _print_recalls(output: Output, recalls: RecallOverview) -> None:
    """Recall and blocks by length, of the prompts of the recall pass."""
    if recalls.lengths:
        prompts = max(method.samples for method in recalls.methods)
        _print_lengths(
            output,
            recalls.methods,
            recalls.lengths,
            f"recall on {prompts} prompts a task and length, {recalls.share:.0%} of the heads: "
            "mean/p10",
            lambda row: f"{row.recall.mean:.3f}/{row.recall_p10.mean:.3f}".replace("0.", "."),
        )
        title = "density and estimates on these prompts"
        _print_lengths(output, recalls.methods, recalls.lengths, title, _blocks)
    if recalls.missing:
        output.warn(f"{recalls.missing} cells of the recall pass are not measured yet")


class _Row(Protocol):
    """A method at a length, or over all lengths (None)."""

    @property
    def method(self) -> str: ...
    @property
    def length(self) -> int | None: ...


_R = TypeVar("_R", bound=_Row)


def _print_lengths(
    output: Output,
    methods: Sequence[MethodInfo],
    measured: Sequence[_R],
    title: str,
    cell: Callable[[_R], str],
) -> None:
    """A table of one row a method and one column a length."""
    lengths = sorted({row.length for row in measured if row.length is not None})
    rows = {(row.method, row.length): row for row in measured}
    table = [
        (
            _name(method, methods),
            *(
                "-" if (row := rows.get((method.label, length))) is None else cell(row)
                for length in lengths
            ),
        )
        for method in methods
    ]
    output.line()
    output.line(title)
    output.table(("method", *map(str, lengths)), table)


def _blocks(row: LengthSummary | RecallSummary) -> str:
    return f"{row.density:.3f}+{row.estimation:.3f}".replace("+0", "+")


def _milliseconds(value: Callable[[Seconds], float | None]) -> Callable[[LengthSummary], str]:
    def cell(row: LengthSummary) -> str:
        seconds = None if row.seconds is None else value(row.seconds)
        return "-" if seconds is None else f"{1e3 * seconds:.1f}"

    return cell


def _print_equal_density(output: Output, summary: EvalSummary) -> None:
    equal = summary.equal_density
    if equal.reference is None:
        return
    names = {method.label: method.name for method in summary.overview.methods}
    found = [point for point in equal.matched if point.difference is not None]
    if found:
        output.line()
        output.line(
            f"against {equal.reference} at the same density (estimates included), interpolated"
        )
        table = [
            (
                _compact(names[point.method]),
                str(point.length),
                f"{point.density:.3f}",
                _interval(point.difference),
            )
            for point in found
        ]
        output.table(("method", "tokens", "density", "difference [95 %]"), table)


def _print_tasks(output: Output, summary: EvalSummary) -> None:
    """Every cell with -v; tasks whose score is a likelihood always."""
    overview = summary.overview
    cells = [
        cell
        for cell in overview.cells
        if output.verbosity >= 1 or cell.metric in ("nll", "agreement")
    ]
    if not cells:
        return
    names = {method.label: method.name for method in overview.methods}
    output.line()
    output.line("by task; ppl: log-likelihood of a token in nats; agreement: same top token, %")
    table = [
        (
            _compact(names[cell.method]),
            cell.task,
            str(cell.length),
            _score(cell),
            _interval(cell.difference, 1 if cell.metric == "nll" else 100),
        )
        for cell in cells
    ]
    output.table(("method", "task", "tokens", "score", "difference [95 %]"), table, left=(0, 1))


def _score(cell: CellSummary) -> str:
    if cell.metric == "nll":
        return f"{cell.score.mean:.4f}"
    return f"{100 * cell.score.mean:.1f}"


def _interval(estimate: Estimate | None, scale: float = 100) -> str:
    if estimate is None:
        return "-"
    digits = 1 if scale == 100 else 4
    mean, low, high = (scale * x for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _name(method: MethodInfo, methods: Sequence[MethodInfo]) -> str:
    """A method for a narrow column; a star where it has fewer prompts than others."""
    star = "*" if method.samples < max(one.samples for one in methods) else ""
    return _compact(method.name) + star


def _compact(name: str) -> str:
    for long, short in _ABBREVIATED:
        name = name.replace(long, short)
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
