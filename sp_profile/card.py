"""README.md of a profile: front matter for hubs, then what was measured, in words and tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

from sp_profile.model_source import base_model
from sp_runtime.hub import HubName
from sp_runtime.profile import ASSIGNMENTS, Cluster, Plan, Profile

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")
_MAX_CLUSTERS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class HubCard:
    """What a card says beyond its profile when it is published.

    base_model: hub id; None: the profile's own name for its model, where that is one. license: an
    identifier that the hub knows, such as apache-2.0; None: nothing is said.
    """

    place: HubName
    base_model: str | None = None
    license: str | None = None


def profile_card(profile: Profile, hub: HubCard | None = None) -> str:
    """The card as Markdown. Names in it are escaped: they may come from anywhere."""
    sections = (
        _front_matter(profile, hub),
        _summary(profile),
        *_use(hub),
        _calibration(profile),
        _plan(profile),
        *_plans(profile),
        _clusters(profile.clusters),
        *_patterns(profile),
        _points(profile),
        "This card is written for people; `profile.json` and the Parquet tables decide.",
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(profile: Profile, hub: HubCard | None) -> str:
    lines = ["---", "library_name: sparse-prefill"]
    if hub is not None and hub.license is not None:
        lines.append(f"license: {_quoted(hub.license)}")
    base = (hub and hub.base_model) or base_model(profile.model_name)
    if base is not None:
        lines.append(f"base_model: {_quoted(base)}")
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


def _use(hub: HubCard | None) -> tuple[str, ...]:
    if hub is None:
        return ()
    return (
        "## Use\n\n```python\nfrom sp_runtime import attach, load_profile\n\n"
        f'profile = load_profile("{hub.place}")\n'
        "with attach(model, profile) as report:  # model: from transformers\n"
        "    model.generate(**inputs)\nprint(report)\n```\n\n"
        f"```\nsp-run prefill --model MODEL --profile {hub.place} prompt.txt\n```",
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
        + ("\n- The model ran code of its repository" if calibration.trust_remote_code else "")
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
        f"## Plan\n\nChosen for {_aim(profile.plan)}, on the calibration prompts. Cost: blocks "
        "computed and spent on estimation, over causal blocks.\n\n" + "\n".join(rows)
    )


def _plans(profile: Profile) -> tuple[str, ...]:
    if not profile.plans:
        return ()
    rows = ["| plan | chosen for | mean recall | mean cost |", "|---|---|---|---|"]
    for named in profile.plans:
        heads = named.plan.heads
        recall = sum(head.recall for head in heads) / len(heads)
        cost = sum(head.cost for head in heads) / len(heads)
        rows.append(f"| {_text(named.name)} | {_aim(named.plan)} | {recall:.3f} | {cost:.3f} |")
    return ("## Further plans\n\n" + "\n".join(rows),)


def _aim(plan: Plan) -> str:
    if plan.target_recall is not None:
        return f"a mean recall of {plan.target_recall:g}"
    return f"a recall of at least {plan.recall_floor:g} a head"


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
