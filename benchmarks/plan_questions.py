"""The papers' ordering questions, answered from an evaluation and its profiles, with intervals."""

from __future__ import annotations

from collections.abc import Iterator

from plan_evaluation import PlanEvaluation
from report_text import number, percent, table
from scipy.stats import spearmanr

from sp_profile.artefact import read_heads
from sp_profile.eval.methods import MethodPlan
from sp_profile.tables import HEADS_NAME

CLUSTERS, RANDOM = "all", "random"
_ALIKE, _KEPT = 0.5, 0.9


def questions(data: PlanEvaluation) -> Iterator[str]:
    """Markdown, a section a question."""
    yield "### Is sharing better than vertical-slash at equal density?\n"
    yield from _equal_density(data)
    yield "### Does excluding highly sparse heads help?\n"
    yield _pairs(
        data, data.twins("delta", 1.01), "no head excluded as highly sparse (delta 1.01) - excluded"
    )
    yield "### Does sharing itself matter, and do random clusters do as well?\n"
    yield _pairs(data, data.twins("tau", 0.0), "no pattern ever shared (tau 0) - sharing")
    yield _pairs(
        data,
        data.same_point(RANDOM, CLUSTERS),
        "random clusters of equal size - those of the calibration, all enabled",
    )
    yield _pairs(data, data.same_point(CLUSTERS, ""), "every cluster enabled - those with evidence")
    yield "### Which clusters pay?\n"
    yield from _clusters(data)
    yield "### Jaccard or recall?\n"
    yield from _criteria(data)
    yield "### Ablations and controls of the plan\n"
    yield _pairs(data, data.twins("local_blocks", 0), "no local block - one")
    yield _pairs(data, data.twins("last_rows", 0), "no dense last rows - one")
    yield _pairs(data, data.twins("row_slack", 1.0), "every row by itself - whole maps")
    for name in data.folders:
        if name not in ("", CLUSTERS, RANDOM):
            yield _pairs(data, data.same_point(name, ""), f"profile `{name}` - the tuned one")


def _equal_density(data: PlanEvaluation) -> Iterator[str]:
    reference = data.equal.reference
    names = {method.label: method.name for method in data.overview.methods}
    found = [one for one in data.equal.matched if one.difference is not None]
    if reference is None or not found:
        yield "Not measured.\n"
        return
    yield f"Score minus that of {reference}, interpolated at this method's blocks and estimates:\n"
    yield table(
        ("method", "tokens", "density", "difference, points [95 %]"),
        [
            (names[one.method], str(one.length), number(one.density), percent(one.difference))
            for one in found
        ],
    )


def _pairs(data: PlanEvaluation, pairs: Iterator[tuple[MethodPlan, MethodPlan]], title: str) -> str:
    """Differences of methods, first minus second."""
    rows = []
    for one, other in pairs:
        found = data.difference(one.label, other.label)
        if found is not None:
            lengths = ", ".join(map(str, found.lengths))
            rows.append(
                (
                    f"`{one.label}` - `{other.label}`",
                    lengths,
                    str(len(found.tasks)),
                    str(found.prompts),
                    percent(found.score),
                    f"{found.cost:+.3f}",
                )
            )
    if not rows:
        return f"{title}: not measured.\n"
    columns = (title, "tokens", "tasks", "prompts", "score, points [95 %]", "blocks")
    return table(columns, rows)


def _clusters(data: PlanEvaluation) -> Iterator[str]:
    profile = data.profiles.get(CLUSTERS) or data.profiles.get("")
    if profile is None or not profile.clusters:
        yield "Not measured: no profile with clusters was given.\n"
        return
    yield "By the calibration prompts (saving: blocks over causal blocks, pivot dense and paid):\n"
    ordered = sorted(profile.clusters, key=lambda cluster: -cluster.evidence.saving)
    yield table(
        ("cluster", "heads", "Jaccard", "recall", "recall p10", "saving", "verdict"),
        [
            (
                str(cluster.id),
                str(len(cluster.members)),
                number(cluster.evidence.jaccard_mean, 2),
                number(cluster.evidence.recall_mean),
                number(cluster.evidence.recall_p10),
                f"{cluster.evidence.saving:+.3f}",
                cluster.evidence.reason,
            )
            for cluster in ordered
        ],
    )
    paying = sum(cluster.evidence.saving > 0 for cluster in ordered)
    yield f"{paying} of {len(ordered)} clusters save blocks at equal recall.\n"


def _criteria(data: PlanEvaluation) -> Iterator[str]:
    """How far a head's Jaccard to its anchor tells the mass that it keeps under its mask."""
    name = CLUSTERS if CLUSTERS in data.profiles else ""
    profile = data.profiles.get(name)
    if profile is None or HEADS_NAME not in {file.name for file in profile.files}:
        yield "Not measured: no profile with heads.parquet was given.\n"
        return
    rows = read_heads(data.folders[name], profile).to_pylist()
    heads = [row for row in rows if row["jaccard_anchor"] >= 0 and _borrows(row)]
    if len(heads) < 3:
        yield "Not measured: fewer than three heads have an anchor.\n"
        return
    jaccard = [row["jaccard_anchor"] for row in heads]
    recall = [row["recall_anchor"] for row in heads]
    found = spearmanr(jaccard, recall)
    counts = {
        (alike, kept): sum(
            (j >= _ALIKE) == alike and (r >= _KEPT) == kept
            for j, r in zip(jaccard, recall, strict=True)
        )
        for alike in (True, False)
        for kept in (True, False)
    }
    yield (
        f"{len(heads)} heads with an anchor: rank correlation of Jaccard and recall "
        f"{found.statistic:.2f}.\n"
    )
    yield table(
        ("heads", f"recall {_KEPT} or more", "less"),
        [
            (f"Jaccard {_ALIKE} or more", str(counts[True, True]), str(counts[True, False])),
            ("less", str(counts[False, True]), str(counts[False, False])),
        ],
    )


def _borrows(row: dict[str, int]) -> bool:
    return (row["layer"], row["head"]) != (row["anchor_layer"], row["anchor_head"])
