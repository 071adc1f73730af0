"""The tables of an evaluation as Markdown: scores, equal density, questions, targets.

    python benchmarks/plan_report.py EVAL [--curves FILE.parquet] [--profile [NAME=]PATH ...]
        [--plot FILE.png]

EVAL: a folder with summary.json and results.parquet of `sp-run eval`, finished or not, and after a
recall pass recalls.parquet. Profiles have the names that the methods call them by. The plot shows
the methods that have finished all tasks of a length.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from plan_evaluation import PlanEvaluation
from plan_questions import questions
from plan_recalls import recall_report
from plan_targets import dense_record, predictions, targets
from report_text import number, percent, table

from sp_profile.eval.methods import DENSE
from sp_profile.figures.pareto import plot_pareto


def report(data: PlanEvaluation) -> Iterator[str]:
    """The whole report, piece by piece."""
    config = data.summary.config
    devices = sorted({cell.environment.device for cell in data.whole.cells})
    yield (
        f"{config.model} on {', '.join(devices)}, {config.dtype}, seed {config.seed}, "
        f"{len(data.whole.cells)} of {len(config.cells())} cells.\n"
    )
    if data.left_out:
        yield f"Not in the means of a length, because unfinished there: {_unfinished(data)}.\n"
    for length in data.paired.lengths():
        yield f"### {length} tokens\n"
        yield from _scores(data, length)
        yield from _few(data, length)
    yield "### Equal density\n"
    yield _equal_density(data)
    yield "### Recall on the evaluation's prompts\n"
    yield from recall_report(data)
    yield from questions(data)
    yield "### Targets\n"
    yield from targets(data)
    yield "### Predicted from the calibration's prompts\n"
    yield from predictions(data)
    yield "### Dense attention against its record\n"
    yield dense_record(data)


def _scores(data: PlanEvaluation, length: int) -> Iterator[str]:
    names = {method.label: method for method in data.overview.methods}
    rows = []
    dense = data.first_token_ms(DENSE, length)
    tasks: tuple[str, ...] = ()
    for row in data.overview.lengths:
        if row.length != length:
            continue
        tasks = row.tasks
        own = data.first_token_ms(row.method, length)
        speed = "-" if own is None or dense is None else f"{dense / own:.2f}"
        rows.append(
            (
                f"`{row.method}`",
                str(names[row.method].samples),
                f"{100 * row.score.mean:.1f}",
                percent(row.difference),
                number(row.density),
                number(row.estimation),
                number(own, 1),
                speed,
            )
        )
    columns = (
        "method", "prompts", "score", "difference to dense [95 %]", "density", "estimates",
        "TTFT, ms", "speed-up",
    )  # fmt: skip
    yield table(columns, rows)
    yield f"Means over {', '.join(tasks)}; prompts of each task.\n"


def _unfinished(data: PlanEvaluation) -> str:
    """How many methods by length; tasks that all methods lack are named."""
    methods: Counter[str] = Counter()
    others = []
    for text in data.left_out:
        what, _, length = text.rpartition(" at ")
        if length.isdecimal():
            methods[length] += 1
        else:
            others.append(f"{what} at {length}")
    counted = [f"{count} methods at {length}" for length, count in methods.items()]
    return "; ".join(counted + others)


def _few(data: PlanEvaluation, length: int) -> Iterator[str]:
    """Methods that have finished some of the tasks only, each with dense on the same prompts."""
    whole = {row.method for row in data.overview.lengths if row.length == length}
    rows = []
    for method in data.finished.methods:
        found = data.difference(method.label, DENSE, (length,))
        if method.label in whole or found is None:
            continue
        rows.append(
            (
                f"`{method.label}`",
                str(method.samples),
                str(len(found.tasks)),
                f"{100 * found.mean:.1f}",
                percent(found.score),
                number(1 + found.density),
                number(found.cost - found.density),
            )
        )
    if not rows:
        return
    yield "On the tasks that they have finished, paired with dense on the same prompts:\n"
    columns = (
        "method", "prompts", "tasks", "score", "difference to dense [95 %]", "density", "estimates",
    )  # fmt: skip
    yield table(columns, rows)


def _equal_density(data: PlanEvaluation) -> str:
    """Scores of every family at equal blocks and estimates, interpolated along its sweep."""
    curves = data.equal.curves
    if not curves:
        return "No method was measured at two points.\n"
    columns = sorted({(one.length, one.density) for one in curves})
    families = list(dict.fromkeys(one.family for one in curves))
    cells = {(one.family, one.length, one.density): one for one in curves}
    return table(
        ("family", *(f"{length}: {density:g}" for length, density in columns)),
        [
            (
                family,
                *(
                    "-"
                    if (one := cells.get((family, *at))) is None
                    else f"{100 * one.score.mean:.1f}"
                    for at in columns
                ),
            )
            for family in families
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--profile", action="append", default=[], metavar="[NAME=]PATH")
    parser.add_argument("--reference", default="vertical_slash")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    profiles = {}
    for text in given.profile:
        name, sign, path = text.partition("=")
        profiles[name if sign else ""] = Path(path if sign else text)
    data = PlanEvaluation(given.folder, given.curves, profiles, given.reference)
    for piece in report(data):
        sys.stdout.write(piece + "\n")
    if given.plot is not None:
        plot_pareto(given.plot, dataclasses.replace(data.summary, overview=data.timed_overview()))


if __name__ == "__main__":
    main()
