"""`sp-profile show --layer`: what is known of each head of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sp_runtime.errors import UsageError

from .output import Output
from .show_tables import head_name

if TYPE_CHECKING:
    from sp_runtime.profile import HeadPlan, HeadRef, Plan, Profile


def print_layers(
    output: Output, profile: Profile, plan: Plan, folder: Path, layers: Sequence[int]
) -> None:
    """A table a layer. Raises UsageError for a layer that the profile says nothing of."""
    for layer in layers:
        _require(profile, layer)
    densities = _densities(profile, folder)
    for number, layer in enumerate(layers):
        if number:
            output.line()
        _print_layer(output, profile, plan, layer, densities)
    output.line("density: of the head's own mask")
    output.line("recall, cost: predicted under the plan")


def _print_layer(
    output: Output, profile: Profile, plan: Plan, layer: int, densities: Mapping[HeadRef, float]
) -> None:
    clusters = profile.clusters_by_head()
    heads = [head for head in plan.heads if head.layer == layer]
    lends = {head.lender for head in plan.heads if head.lender is not None}
    rows = []
    for head in heads:
        cluster = clusters.get(head.ref)
        rows.append(
            (
                str(head.head),
                f"{densities[head.ref]:.3f}" if densities else "-",
                "-" if cluster is None else str(cluster.id),
                _computed(head),
                "yes" if head.ref in lends else "-",
                f"{head.recall:.3f}",
                f"{head.cost:.3f}",
            )
        )
    output.line(f"layer {layer}: {len(heads)} heads")
    columns = ("head", "density", "cluster", "assignment", "lends", "recall", "cost")
    output.table(columns, rows, left=(3, 4))


def _computed(head: HeadPlan) -> str:
    """Its assignment, and what that runs with."""
    if head.assignment == "dense":
        return "dense"
    if head.lender is not None:
        return f"{head.assignment} from {head_name(head.lender)}"
    if head.window is not None:
        return f"{head.assignment}, window {head.window}"
    stride = "" if head.stride is None else f", stride {head.stride}"
    return f"{head.assignment}{stride}, gamma {head.gamma:g}"


def _densities(profile: Profile, folder: Path) -> Mapping[HeadRef, float]:
    """Of every head's own mask; none where the profile has no table of heads."""
    from sp_profile.artefact import read_heads
    from sp_profile.tables import HEADS_NAME

    if all(file.name != HEADS_NAME for file in profile.files):
        return {}
    column = read_heads(folder, profile).column("density").to_pylist()
    return dict(zip((head.ref for head in profile.plan.heads), column, strict=True))


def _require(profile: Profile, layer: int) -> None:
    layers = profile.model.num_layers
    if layer >= layers:
        raise UsageError(f"--layer {layer}: the model has {layers} layers, 0 to {layers - 1}")
    if layer not in profile.model.full_layers:
        raise UsageError(
            f"--layer {layer}: a sliding-window layer, which stays native",
            hint=f"the profile speaks of layers {', '.join(map(str, profile.model.full_layers))}",
        )
    if not profile.plan.heads:
        raise UsageError(
            "the profile has no plan: nothing was measured of its heads",
            hint="`sp-profile calibrate` and `sp-profile cluster` make one that has",
        )
