"""README.md of a profile: front matter for hubs, then what was measured, in words and tables."""

from __future__ import annotations

import json
import re
from collections import Counter

from sp_runtime.profile import ASSIGNMENTS, Cluster, Profile

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")
_MAX_CLUSTERS = 20


def profile_card(profile: Profile) -> str:
    """The card as Markdown. Names in it are escaped: they may come from anywhere."""
    sections = (
        _front_matter(profile),
        _summary(profile),
        _calibration(profile),
        _plan(profile),
        _clusters(profile.clusters),
        *_patterns(profile),
        _points(profile),
        "This card is written for people; `profile.json` and the Parquet tables decide.",
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(profile: Profile) -> str:
    lines = ["---", "library_name: sp-profile"]
    if _HUB_ID.fullmatch(profile.model_name):
        lines.append(f"base_model: {_quoted(profile.model_name)}")
    lines += ["tags:", "- sparse-attention", "- prefill"]
    lines.append(f"profile_id: {_quoted(profile.profile_id)}")
    return "\n".join([*lines, "---"])


def _summary(profile: Profile) -> str:
    model = profile.model
    enabled = sum(cluster.enabled for cluster in profile.clusters)
    full = model.layer_types.count("full_attention")
    return (
        f"# Sparse-prefill profile of {_text(profile.model_name)}\n\n"
        f"Which attention heads of this model look alike, and what each of them computes when a "
        f"long prompt is prefilled with block-sparse attention.\n\n"
        f"- Architecture: {_text(model.architecture)}, {model.num_layers} layers ({full} with full "
        f"attention), {model.num_heads} heads, {model.num_kv_heads} KV heads of {model.head_dim}\n"
        f"- Clusters: {len(profile.clusters)}, of which {enabled} enabled\n"
        f"- Schema: {profile.schema} {profile.schema_version}, written by "
        f"{_text(profile.producer.name)} {_text(profile.producer.version)}"
    )


def _calibration(profile: Profile) -> str:
    calibration = profile.calibration
    tokens = [prompt.tokens for prompt in calibration.prompts]
    tasks = Counter(prompt.task or "own prompts" for prompt in calibration.prompts)
    of = ", ".join(f"{_text(task)} ({count})" for task, count in sorted(tasks.items()))
    versions = ", ".join(f"{_text(name)} {_text(at)}" for name, at in calibration.versions)
    lengths = f"{min(tokens)} to {max(tokens)} tokens" if tokens else "none"
    return (
        f"## Calibration\n\n"
        f"- Prompts: {len(tokens)}, {lengths}: {of or 'none'}\n"
        f"- gamma {calibration.gamma:g}, blocks of {calibration.block_size} tokens, "
        f"{calibration.dtype}, seed {calibration.seed}, chat template "
        f"{'on' if calibration.chat_template else 'off'}\n"
        f"- Device: {_text(calibration.device or 'unknown')}; versions: {versions or 'unknown'}"
    )


def _plan(profile: Profile) -> str:
    heads = profile.plan.heads
    if not heads:
        return "## Plan\n\nNone: nothing was measured, so rule plan cannot be used."
    rows = ["| assignment | heads | mean recall | mean cost |", "|---|---|---|---|"]
    for assignment in ASSIGNMENTS:
        chosen = [head for head in heads if head.assignment == assignment]
        if chosen:
            recall = sum(head.recall for head in chosen) / len(chosen)
            cost = sum(head.cost for head in chosen) / len(chosen)
            rows.append(f"| {assignment} | {len(chosen)} | {recall:.3f} | {cost:.3f} |")
    return (
        f"## Plan\n\nChosen for a recall of at least {profile.plan.recall_floor:g} a head, on the "
        "calibration prompts. Cost: blocks computed and spent on estimation, over causal "
        "blocks.\n\n" + "\n".join(rows)
    )


def _clusters(clusters: tuple[Cluster, ...]) -> str:
    if not clusters:
        return "## Clusters\n\nNone: no heads were found that look alike."
    rows = [
        "| cluster | heads | anchor | enabled | Jaccard | recall | saving | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    largest = sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.id))
    for cluster in largest[:_MAX_CLUSTERS]:
        anchor = "none" if cluster.anchor is None else f"{cluster.anchor[0]}.{cluster.anchor[1]}"
        evidence = cluster.evidence
        rows.append(
            f"| {cluster.id} | {len(cluster.members)} | {anchor} | "
            f"{'yes' if cluster.enabled else 'no'} | {evidence.jaccard_mean:.3f} | "
            f"{evidence.recall_mean:.3f} | {evidence.saving:.3f} | {_text(evidence.reason)} |"
        )
    more = len(clusters) - _MAX_CLUSTERS
    tail = f"\n\n{more} smaller clusters are in `profile.json`." if more > 0 else ""
    return "## Clusters\n\n" + "\n".join(rows) + tail


def _patterns(profile: Profile) -> tuple[str, ...]:
    patterns = profile.head_patterns
    if patterns is None:
        return ()
    lines = ["## Patterns of single heads\n"]
    if patterns.minference is not None:
        kinds = Counter(shape.kind for shape in patterns.minference.heads)
        of = ", ".join(f"{count} {_text(kind)}" for kind, count in sorted(kinds.items()))
        lines.append(
            f"- Method minference: {of or 'no heads'} ({_text(patterns.minference.source)})"
        )
    if patterns.moa is not None:
        windows = patterns.moa
        lines.append(
            f"- Method moa: windows of {len(windows.heads)} heads at a mean density of "
            f"{windows.density:g} ({_text(windows.source)})"
        )
    return ("\n".join(lines),)


def _points(profile: Profile) -> str:
    rows = ["| name | method | rule | gamma | tau | min tokens |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {_text(named.name)} | {_text(named.point.method)} | "
        f"{named.point.rule if named.point.method == 'share' else 'none'} | "
        f"{named.point.gamma:g} | {named.point.tau:g} | {named.point.min_tokens} |"
        for named in profile.points
    ]
    return "## Operating points\n\n" + "\n".join(rows)


def _quoted(text: str) -> str:
    """A YAML string: every JSON string is one."""
    return json.dumps(text)


def _text(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)
