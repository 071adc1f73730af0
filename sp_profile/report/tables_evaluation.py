"""What an evaluation says in figures, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sp_profile.eval.results import EvalSummary
from sp_profile.eval.statistics import Estimate
from sp_profile.eval.summary import CellSummary, LengthSummary
from sp_profile.report.tables import Table
from sp_profile.report.wording import BETTER, NOTHING, WORSE, plural, signed


def evaluation_tables(summary: EvalSummary) -> Iterator[Table]:
    """One table a length, and one over all lengths where there are several."""
    overview = summary.overview
    names = {method.label: method.name for method in overview.methods}
    lengths = sorted({cell.length for cell in overview.cells})
    for length in lengths:
        means = {row.method: row for row in overview.lengths if row.length == length}
        cells = {(c.method, c.task): c for c in overview.cells if c.length == length}
        tasks = [task for task in summary.config.tasks if any(t == task for _, t in cells)]
        yield Table(
            caption=f"{length:,} tokens",
            columns=("method", "blocks", "score, %", "to dense, points", "TTFT, ms", *tasks),
            rows=tuple(
                (
                    names[label],
                    *_mean_cells(means.get(label)),
                    *(_score(cells.get((label, task))) for task in tasks),
                )
                for label in names
                if any((label, task) in cells for task in tasks)
            ),
        )
    overall = [row for row in overview.lengths if row.length is None]
    if overall:
        yield Table(
            caption="All lengths",
            columns=("method", "blocks", "score, %", "to dense, points", "TTFT, ms", "prompts"),
            rows=tuple(
                (names[row.method], *_mean_cells(row), f"{row.prompts:,}") for row in overall
            ),
        )


def evaluation_notes(summary: EvalSummary) -> tuple[str, ...]:
    """What a reader must know before the figures."""
    overview, config = summary.overview, summary.config
    devices = dict.fromkeys(f"{e.device} ({e.kernels} kernels)" for e in overview.environments)
    notes = [
        f"{config.model} in {config.dtype}, seed {config.seed}, chat template "
        f"{'on' if config.chat_template else 'off'}; measured on {', '.join(devices) or 'nothing'}."
    ]
    if overview.missing:
        notes.append(
            f"Unfinished: {plural(overview.missing, 'cell')} (a method on a task at a length) "
            "not evaluated yet. Means are over the tasks that every method has finished."
        )
    if overview.failed:
        reasons = Counter(failure.reason for failure in overview.failed)
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(4))
        notes.append(f"{plural(len(overview.failed), 'cell')} could not be evaluated: {told}.")
    if not overview.branches:
        notes.append("Which branch each head took was not recorded.")
    if overview.untimed:
        notes.append(f"Times were not taken: {'; '.join(overview.untimed)}.")
    notes.append(
        f"Brackets hold the {100 * overview.confidence:.0f} % interval; {WORSE} and {BETTER} mark "
        "methods whose whole interval of the difference lies under or over dense."
    )
    return tuple(notes)


def _mean_cells(row: LengthSummary | None) -> tuple[str, str, str, str]:
    if row is None:
        return (NOTHING,) * 4
    seconds = NOTHING if row.seconds is None else f"{1e3 * row.seconds.ttft:,.0f}"
    return (
        f"{row.cost:.3f}",
        _interval(row.score),
        NOTHING if row.difference is None else _difference(row.difference),
        seconds,
    )


def _interval(found: Estimate) -> str:
    return f"{100 * found.mean:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _difference(found: Estimate) -> str:
    mark = f" {WORSE}" if found.high < 0 else f" {BETTER}" if found.low > 0 else ""
    ends = f"[{signed(100 * found.low)}, {signed(100 * found.high)}]"
    return f"{signed(100 * found.mean)} {ends}{mark}"


def _score(cell: CellSummary | None) -> str:
    if cell is None:
        return NOTHING
    if cell.metric == "nll":
        return f"{cell.score.mean:.3f} nats"
    return f"{100 * cell.score.mean:.1f}"
