"""The targets that the plan is judged by, each with its figure, and dense against its record."""

from __future__ import annotations

from collections.abc import Iterator

from plan_evaluation import PlanEvaluation, at_recall
from plan_recalls import BASE, RECALL, recall_targets
from report_text import number, percent, table, verdict
from scipy.stats import beta

from sp_profile.curves import ORACLE, CurvePoint
from sp_profile.eval.methods import DENSE
from sp_profile.plan_curves import PLAN
from sp_profile.tune_types import BALANCED

_CLASSES = (16384, 32768)
_LONG = 8192
"""Tokens; the targets are about longer prompts."""
# query_aware is the other pattern that flexprefill chooses from.
_PEERS = ("vertical_slash", "query_aware", "flexprefill", "xattention")
# Exact-match accuracy of dense attention that was recorded for SmolLM2-135M-32k before, in percent,
# on 6 to 8 prompts of each task; every other retrieval task stood at 100.
_RECORD_PROMPTS = 8
_RECORD = {
    4096: {"niah_multivalue": 56, "vt": 93},
    16384: {"niah_multivalue": 50, "vt": 100},
    32000: {"niah_multivalue": 67, "vt": 96},
}


def targets(data: PlanEvaluation) -> Iterator[str]:
    """What the evaluation measured; a figure that was not measured says so."""
    lengths = tuple(length for length in data.part.config.lengths if length > _LONG)
    rows = [*recall_targets(data, lengths), *_measured_rows(data, lengths)]
    yield table(("target", "must", "goal", "measured [95 %]", ""), rows)


def predictions(data: PlanEvaluation) -> Iterator[str]:
    """What the calibration's curves say of the same targets, on prompts that no method ran on."""
    if not data.curves:
        yield "Not measured: no curves were given.\n"
        return
    rows = [row for length in _CLASSES for row in _curve_rows(data, length)]
    yield table(("target", "must", "goal", "predicted", ""), rows)


def _curve_rows(data: PlanEvaluation, length: int) -> Iterator[tuple[str, ...]]:
    def of(method: str) -> list[CurvePoint]:
        return [p for p in data.curves if p.length == length and p.method == method]

    plan = at_recall(of(PLAN), RECALL)
    where = f"at mean recall {RECALL}, up to {length} tokens"
    for peer in _PEERS:
        other = at_recall(of(peer), RECALL)
        ratio = None if plan is None or other is None else plan / other
        yield (
            f"blocks of the plan / {peer}'s, {where}",
            "0.90",
            "0.75",
            f"{number(plan)} / {number(other)} = {number(ratio, 2)}",
            verdict(ratio, 0.90, 0.75, less=True),
        )
    tail, other_tail = (at_recall(of(m), RECALL, "recall_p10") for m in (PLAN, BASE))
    gain = None if tail is None or other_tail is None else tail - other_tail
    yield (
        f"tenth percentile of recall above {BASE}'s, {where}",
        "0.03",
        "0.08",
        f"{number(tail)} - {number(other_tail)} = {number(gain)}",
        verdict(gain, 0.03, 0.08, less=False),
    )
    base, ceiling = (at_recall(of(method), RECALL) for method in (BASE, ORACLE))
    share, text = None, "-"
    if plan is not None and base is not None and ceiling is not None and base > ceiling:
        share = (base - plan) / (base - ceiling)
        text = f"({base:.3f} - {plan:.3f}) / ({base:.3f} - {ceiling:.3f}) = {share:.2f}"
    yield (
        f"share of the ceiling's saving in the plan's curve, {where}",
        "0.70",
        "0.90",
        text,
        verdict(share, 0.70, 0.90, less=False),
    )


def _measured_rows(data: PlanEvaluation, lengths: tuple[int, ...]) -> Iterator[tuple[str, ...]]:
    method = data.point(BALANCED)
    found = None if method is None else data.difference(method.label, DENSE, lengths)
    yield (
        "accuracy against dense at balanced, points, paired, " + ", ".join(map(str, lengths)),
        "-1.0",
        "0",
        percent(None if found is None else found.score),
        verdict(None if found is None else 100 * found.score.mean, -1.0, 0.0, less=False),
    )
    longest = max(lengths, default=0)
    dense, own = (
        None if label is None else data.first_token_ms(label, longest)
        for label in (DENSE, None if method is None else method.label)
    )
    ratio = None if dense is None or own is None else dense / own
    yield (
        f"time to first token against dense at balanced, {longest} tokens",
        "1.3",
        "2",
        f"{number(dense, 1)} ms / {number(own, 1)} ms = {number(ratio, 2)}",
        verdict(ratio, 1.3, 2.0, less=False),
    )


def dense_record(data: PlanEvaluation) -> str:
    """Dense accuracies with exact binomial intervals (Clopper and Pearson 1934, a prompt a trial)
    beside the recorded ones."""
    rows = []
    for cell in data.whole.cells:
        near = min(_RECORD, key=lambda length: abs(length - cell.length))
        if cell.method != DENSE or abs(near - cell.length) > cell.length / 8:
            continue
        scores = [row.score for row in cell.rows if row.score is not None]
        mean = sum(scores) / len(scores)
        recorded = _RECORD[near].get(cell.task, 100) / 100
        low, high = clopper_pearson(mean, len(scores))
        other_low, other_high = clopper_pearson(recorded, _RECORD_PROMPTS)
        if low <= recorded <= high:
            agrees = "yes"
        else:
            agrees = "intervals overlap" if low <= other_high and other_low <= high else "no"
        rows.append(
            (
                cell.task,
                str(cell.length),
                f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}]",
                f"{100 * recorded:.0f} [{100 * other_low:.0f}, {100 * other_high:.0f}]",
                agrees,
            )
        )
    columns = ("task", "tokens", "dense, percent [95 %]", "recorded [95 %]", "agrees")
    return table(columns, sorted(rows, key=lambda row: (int(row[1]), row[0])))


def clopper_pearson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a share of `count` trials; partial hits count as fractions."""
    hits, tail = share * count, (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits >= count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high
