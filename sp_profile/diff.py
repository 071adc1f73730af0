"""`sp-profile diff`: what differs between two profiles, held against thresholds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sp_profile.artefact import read_heads
from sp_profile.diff_types import (
    ClusterDiff,
    DensityDiff,
    DiffThresholds,
    FieldChange,
    Finding,
    HeadChange,
    PlanDiff,
    ProfileDiff,
)
from sp_profile.tables import HEADS_NAME
from sp_runtime.fingerprint import compare
from sp_runtime.profile import (
    Cluster,
    HeadPlan,
    HeadRef,
    Profile,
    full_attention_heads,
    load_profile,
)
from sp_runtime.profile_source import find_profile

_NONE = "-"
_SAME_GAMMA = 1e-3  # as in the identity


def diff_folders(a: Path, b: Path, thresholds: DiffThresholds) -> ProfileDiff:
    """Compare the profiles of two folders (profile.json, hub names), densities included.

    Raises UsageError where a profile is missing, CorruptArtefactError where one is damaged.
    """
    a, b = find_profile(a, tables=True), find_profile(b, tables=True)
    before, after = load_profile(a), load_profile(b)
    densities = (_densities(a.parent, before), _densities(b.parent, after))
    return diff_profiles(before, after, thresholds, densities=densities)


def diff_profiles(
    before: Profile,
    after: Profile,
    thresholds: DiffThresholds,
    *,
    densities: tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None] = (None, None),
) -> ProfileDiff:
    """Compare two profiles. densities: float64 [LH] of each, in head order; None: not measured."""
    notes: list[str] = []
    clusters = plan = density = None
    heads = full_attention_heads(before.model)
    if heads != full_attention_heads(after.model):
        notes.append("the models have other heads: clusters, plan and densities are not compared")
    else:
        clusters = _clusters(before, after, heads)
        if before.plan.heads or after.plan.heads:
            plan = _plan(before, after)
        first, second = densities
        if first is not None and second is not None:
            density = _density(first, second, heads)
        else:
            sides = [side for side, found in zip("AB", densities, strict=True) if found is None]
            notes.append(
                f"{' and '.join(sides)}: no measured densities at hand, so they are not compared"
            )
    found = ProfileDiff(
        ids=(before.profile_id, after.profile_id),
        model=tuple(
            FieldChange(field=d.field, before=d.expected, after=d.found)
            for d in compare(before.model, after.model)
        ),
        prompts=_prompts(before, after),
        settings=_settings(before, after),
        points=_points(before, after),
        patterns=_patterns(before, after),
        clusters=clusters,
        plan=plan,
        density=density,
        notes=tuple(notes),
        findings=(),
    )
    findings = () if found.identical else _findings(found, thresholds)
    return dataclasses.replace(found, findings=findings)


def head_text(head: HeadRef) -> str:
    """A head as people read it: layer.head."""
    return f"{head[0]}.{head[1]}"


def _densities(folder: Path, profile: Profile) -> npt.NDArray[np.float64] | None:
    if all(file.name != HEADS_NAME for file in profile.files):
        return None
    column = read_heads(folder, profile).column("density").to_numpy()
    return np.asarray(column, dtype=np.float64)


def _prompts(before: Profile, after: Profile) -> tuple[FieldChange, ...]:
    sides = [{p.sha256: p for p in profile.calibration.prompts} for profile in (before, after)]

    def text(side: int, sha256: str) -> str:
        prompt = sides[side].get(sha256)
        return _NONE if prompt is None else f"{prompt.task or 'own prompt'}, {prompt.tokens} tokens"

    return tuple(
        FieldChange(field=sha256[:12], before=text(0, sha256), after=text(1, sha256))
        for sha256 in sorted(sides[0].keys() | sides[1].keys())
        if text(0, sha256) != text(1, sha256)
    )


def _settings(before: Profile, after: Profile) -> tuple[FieldChange, ...]:
    """Of the calibration (but for what is no part of the identity) and the clustering."""
    apart = {"prompts", "versions", "device"}
    sides = []
    for profile in (before, after):
        fields = dataclasses.asdict(profile.calibration)
        values = {name: value for name, value in fields.items() if name not in apart}
        if profile.clustering is not None:
            clustering = dataclasses.asdict(profile.clustering)
            values |= {f"clustering.{name}": value for name, value in clustering.items()}
        sides.append(values)
    return _field_changes(sides[0], sides[1])


def _points(before: Profile, after: Profile) -> tuple[FieldChange, ...]:
    sides = [
        {
            f"{named.name}.{name}": value
            for named in profile.points
            for name, value in dataclasses.asdict(named.point).items()
        }
        for profile in (before, after)
    ]
    return _field_changes(sides[0], sides[1])


def _field_changes(before: dict[str, object], after: dict[str, object]) -> tuple[FieldChange, ...]:
    def text(values: dict[str, object], name: str) -> str:
        return str(values[name]) if name in values else _NONE

    return tuple(
        FieldChange(field=name, before=text(before, name), after=text(after, name))
        for name in (*before, *(name for name in after if name not in before))
        if text(before, name) != text(after, name)
    )


def _patterns(before: Profile, after: Profile) -> tuple[HeadChange, ...]:
    """Of methods minference and moa; a head may change in both."""
    sides = (_pattern_texts(before), _pattern_texts(after))
    return tuple(
        HeadChange(head=head, before=sides[0].get(key, _NONE), after=sides[1].get(key, _NONE))
        for key in sorted(sides[0].keys() | sides[1].keys())
        if sides[0].get(key) != sides[1].get(key)
        for head in (key[1],)
    )


def _pattern_texts(profile: Profile) -> dict[tuple[str, HeadRef], str]:
    patterns = profile.head_patterns
    texts: dict[tuple[str, HeadRef], str] = {}
    if patterns is not None and patterns.minference is not None:
        for shape in patterns.minference.heads:
            sizes = f"{shape.vertical}, {shape.slash}"
            texts["minference", shape.ref] = f"minference {shape.kind} {sizes}"
    if patterns is not None and patterns.moa is not None:
        sink = patterns.moa.sink
        for window in patterns.moa.heads:
            size = f"{window.alpha} + {window.beta:.3f} N"
            texts["moa", window.ref] = f"moa window {size}, sink {sink}"
    return texts


def _clusters(before: Profile, after: Profile, heads: tuple[HeadRef, ...]) -> ClusterDiff:
    from sklearn.metrics import adjusted_rand_score

    owners = (before.clusters_by_head(), after.clusters_by_head())
    partner = _partners(before.clusters, after.clusters)
    moved, enabled = [], []
    for head in heads:
        a, b = owners[0].get(head), owners[1].get(head)
        stays = b is None if a is None else (b is not None and partner.get(a.id) == b.id)
        if not stays:
            moved.append(HeadChange(head=head, before=_cluster_text(a), after=_cluster_text(b)))
        shares = (a is not None and a.enabled, b is not None and b.enabled)
        if shares[0] != shares[1]:
            words = ["shares" if on else "does not share" for on in shares]
            enabled.append(HeadChange(head=head, before=words[0], after=words[1]))
    by_id = {cluster.id: cluster for cluster in after.clusters}
    anchors = [
        FieldChange(
            field=f"cluster {cluster.id}",
            before=_anchor_text(cluster),
            after=_anchor_text(by_id[partner[cluster.id]]),
        )
        for cluster in before.clusters
        if cluster.id in partner and cluster.anchor != by_id[partner[cluster.id]].anchor
    ]
    labels = [_labels(owner, heads) for owner in owners]
    return ClusterDiff(
        ari=float(adjusted_rand_score(labels[0], labels[1])),
        clusters=(len(before.clusters), len(after.clusters)),
        clustered=(len(owners[0]), len(owners[1])),
        moved=tuple(moved),
        anchors=tuple(anchors),
        enabled=tuple(enabled),
    )


def _labels(owner: dict[HeadRef, Cluster], heads: tuple[HeadRef, ...]) -> list[int]:
    """A class of its own, numbered from below, for every head without a cluster."""
    return [owner[h].id if h in owner else -1 - number for number, h in enumerate(heads)]


def _partners(before: tuple[Cluster, ...], after: tuple[Cluster, ...]) -> dict[int, int]:
    """The pairing of clusters that share heads in which the most heads stay."""
    if not before or not after:
        return {}
    from scipy.optimize import linear_sum_assignment

    sets = [set(cluster.members) for cluster in after]
    shared = np.array([[len(s.intersection(c.members)) for s in sets] for c in before])
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return {
        before[row].id: after[column].id
        for row, column in zip(rows, columns, strict=True)
        if shared[row, column]
    }


def _plan(before: Profile, after: Profile) -> PlanDiff:
    """Every head counts as changed where one side has no plan."""
    sides = (before.plan_by_head(), after.plan_by_head())
    changed = tuple(
        HeadChange(head=head, before=_plan_text(a), after=_plan_text(b))
        for head in sorted(sides[0].keys() | sides[1].keys())
        if not _same_plan(a := sides[0].get(head), b := sides[1].get(head))
    )
    floors = (before.plan.recall_floor, after.plan.recall_floor)
    floor = None
    if abs(floors[0] - floors[1]) >= _SAME_GAMMA:
        floor = FieldChange(field="recall_floor", before=str(floors[0]), after=str(floors[1]))
    costs = [[plan.cost for plan in side.values()] for side in sides]
    recalls = [[plan.recall for plan in side.values()] for side in sides]
    return PlanDiff(
        changed=changed,
        share=len(changed) / max(len(sides[0]), len(sides[1])),
        cost=(_mean(costs[0]), _mean(costs[1])),
        recall=(_mean(recalls[0]), _mean(recalls[1])),
        floor=floor,
    )


def _same_plan(a: HeadPlan | None, b: HeadPlan | None) -> bool:
    if a is None or b is None:
        return a is b
    same = (a.assignment, a.window, a.stride, a.lender) == (
        b.assignment,
        b.window,
        b.stride,
        b.lender,
    )
    return same and abs(a.gamma - b.gamma) < _SAME_GAMMA


def _plan_text(plan: HeadPlan | None) -> str:
    if plan is None:
        return "no plan"
    parts: list[str] = [plan.assignment]
    if plan.lender is not None:
        parts.append(f"from {head_text(plan.lender)}")
    if plan.window is not None:
        parts.append(f"window {plan.window}")
    if plan.stride is not None:
        parts.append(f"stride {plan.stride}")
    return " ".join([*parts, f"gamma {plan.gamma:g}"])


def _cluster_text(cluster: Cluster | None) -> str:
    return "no cluster" if cluster is None else f"cluster {cluster.id}"


def _anchor_text(cluster: Cluster) -> str:
    return _NONE if cluster.anchor is None else head_text(cluster.anchor)


def _density(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], heads: tuple[HeadRef, ...]
) -> DensityDiff:
    change = np.abs(before - after)
    return DensityDiff(
        mean=(float(before.mean()), float(after.mean())),
        mean_change=float(change.mean()),
        max_change=float(change.max()),
        at=heads[int(change.argmax())],
    )


def _mean(values: list[float]) -> float:
    """Without a plan every block is computed: 1, for recall and cost alike."""
    return sum(values) / len(values) if values else 1.0


def _findings(found: ProfileDiff, limits: DiffThresholds) -> tuple[Finding, ...]:
    findings: list[Finding] = []

    def hold(measure: str, limit: str, value: str, is_fine: bool) -> None:
        if not is_fine:
            findings.append(Finding(measure=measure, limit=limit, found=value))

    for part, count in (
        ("model", len(found.model)),
        ("prompts", len(found.prompts)),
        ("settings", len(found.settings)),
        ("points", len(found.points)),
        ("patterns", len(found.patterns)),
    ):
        hold(part, "same", f"{count} changed", part in limits.ignore or not count)
    clusters, plan, density = found.clusters, found.plan, found.density
    if clusters is not None:
        # sklearn's figure for equal partitions is 1 to the last bit; the margin is for its sums.
        fine = clusters.ari >= limits.min_ari - 1e-9
        hold("clusters (ARI)", f">= {limits.min_ari:g}", f"{clusters.ari:.4f}", fine)
        for name, most, count in (
            ("heads moved", limits.max_moved, len(clusters.moved)),
            ("anchors", limits.max_anchor_changes, len(clusters.anchors)),
            ("enabled heads", limits.max_enabled_changes, len(clusters.enabled)),
        ):
            hold(name, f"<= {most}", str(count), count <= most)
    if plan is not None:
        most_changed = limits.max_plan_changes
        hold("plan", f"<= {most_changed:g}", f"{plan.share:.4f}", plan.share <= most_changed)
        if plan.floor is not None:
            value = f"{plan.floor.before} -> {plan.floor.after}"
            hold("recall floor", "same", value, "settings" in limits.ignore)
        change = abs(plan.cost[0] - plan.cost[1])
        most_cost = limits.max_cost_change
        hold("predicted cost", f"<= {most_cost:g}", f"{change:.4f}", change <= most_cost)
    if density is not None:
        bound = limits.max_density_change
        value = f"{density.mean_change:.4f}"
        hold("densities", f"<= {bound:g}", value, density.mean_change <= bound)
    return tuple(findings)
