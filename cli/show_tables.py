"""The tables of `sp-profile show`: what was measured, and its clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from sp_runtime.profile import Cluster, HeadRef, Profile

MAX_CLUSTERS = 20


def print_summary(output: Output, profile: Profile) -> None:
    """What was measured, on which model and prompts."""
    model, calibration = profile.model, profile.calibration
    full = len(model.full_layers)
    lengths = sorted({prompt.tokens for prompt in calibration.prompts})
    tasks = Counter(prompt.task or "(own prompts)" for prompt in calibration.prompts)
    rows = (
        ("profile", profile.profile_id),
        ("model", f"{profile.model_name} ({model.architecture})"),
        (
            "shape",
            f"{model.num_layers} layers ({full} full attention), {model.num_heads} heads, "
            f"{model.num_kv_heads} KV heads, head_dim {model.head_dim}",
        ),
        ("prompts", ", ".join(f"{count} x {task}" for task, count in sorted(tasks.items()))),
        ("tokens", f"{lengths[0]} to {lengths[-1]}" if lengths else "none"),
        (
            "calibration",
            f"gamma {calibration.gamma}, block {calibration.block_size}, {calibration.dtype}, "
            f"seed {calibration.seed}, chat template {'on' if calibration.chat_template else 'off'}"
            + (f", {calibration.device}" if calibration.device else ""),
        ),
    )
    output.draw(_fields(rows))


def _fields(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, the values folded under each other."""
    from rich.table import Table

    fields = Table.grid(padding=(0, 1, 0, 0))
    fields.add_column(min_width=12, no_wrap=True)
    fields.add_column(overflow="fold")
    for row in rows:
        fields.add_row(*row)
    return fields


def print_clusters(output: Output, profile: Profile, *, every: bool) -> None:
    """The clusters, the enabled and largest ones alone unless `every`."""
    from sp_runtime.profile import full_attention_heads

    enabled = sum(cluster.enabled for cluster in profile.clusters)
    clustered = sum(len(cluster.members) for cluster in profile.clusters)
    heads = len(full_attention_heads(profile.model))
    output.line()
    output.line(
        f"{len(profile.clusters)} clusters hold {clustered} of {heads} heads; "
        f"{enabled} enabled for sharing"
    )
    if not profile.clusters:
        return
    shown = profile.clusters if every else _foremost(profile.clusters)
    rows = [
        (
            str(cluster.id),
            str(len(cluster.members)),
            head_name(cluster.anchor),
            f"{cluster.evidence.jaccard_mean:.2f}",
            f"{cluster.evidence.recall_mean:.2f}",
            "yes" if cluster.enabled else "no",
            cluster.evidence.reason.removeprefix("off: "),
        )
        for cluster in shown
    ]
    columns = ("id", "heads", "anchor", "Jaccard", "recall", "on", "why")
    output.table(columns, rows, left=(2, 5, 6))
    if len(shown) < len(profile.clusters):
        output.line(f"{len(profile.clusters) - len(shown)} smaller clusters: --all-clusters")


def _foremost(clusters: Sequence[Cluster]) -> Sequence[Cluster]:
    """As many as are shown, in their order: enabled before others, large before small."""
    ranked = sorted(clusters, key=lambda one: (not one.enabled, -len(one.members), one.id))
    kept = {cluster.id for cluster in ranked[:MAX_CLUSTERS]}
    return [cluster for cluster in clusters if cluster.id in kept]


def head_name(ref: HeadRef | None) -> str:
    """A head as LAYER.HEAD, "-" for none."""
    return "-" if ref is None else f"{ref.layer}.{ref.head}"
