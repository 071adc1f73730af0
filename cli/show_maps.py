"""The maps of `sp-profile show`: a measure of every head, and what the plan has it compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .output import Output
from .show_heatmap import HeadMaps
from .show_panel import HeadMap, grid

if TYPE_CHECKING:
    from sp_runtime.profile import Plan, Profile


def print_maps(output: Output, profile: Profile, plan: Plan, folder: Path, measure: str) -> None:
    """A map of the measure with the mean of each layer, and the map of assignments beside it."""
    values = _values(profile, plan, folder, measure)
    output.line()
    output.draw(HeadMaps(maps=(_measured(profile, values, measure), _assigned(profile, plan))))
    if measure == "density":
        output.line("density: blocks of the head's own mask / causal blocks")
    sliding = len(profile.model.layer_types) - len(profile.model.full_layers)
    if sliding:
        output.line(f"{sliding} sliding-window layers stay native")


def _values(profile: Profile, plan: Plan, folder: Path, measure: str) -> list[float]:
    """The measure of every full-attention head, in (layer, head) order."""
    if measure == "cost":
        return [head.cost for head in plan.heads]
    from sp_profile.artefact import read_heads

    densities: list[float] = read_heads(folder, profile).column("density").to_pylist()
    return densities


def _measured(profile: Profile, values: list[float], measure: str) -> HeadMap:
    from sp_profile.figures.palette import cividis, cividis_256, scale_top

    layers = profile.model.full_layers
    heads = profile.model.num_heads
    top = scale_top(max(values))
    means = (sum(values[start : start + heads]) / heads for start in range(0, len(values), heads))
    return HeadMap(
        title="predicted cost" if measure == "cost" else measure,
        top=top,
        layers=layers,
        colours=grid((cividis(value / top) for value in values), len(layers)),
        coarse=grid((cividis_256(value / top) for value in values), len(layers)),
        symbols=grid((digit(value) for value in values), len(layers)),
        notes=tuple(f"{mean:.2f}" for mean in means),
        notes_title="mean",
    )


def _assigned(profile: Profile, plan: Plan) -> HeadMap:
    from sp_profile.figures.palette import (
        ASSIGNMENT_COLOURS,
        ASSIGNMENT_COLOURS_256,
        ASSIGNMENT_LETTERS,
    )

    layers, heads = profile.model.full_layers, plan.heads
    return HeadMap(
        title="assignment",
        layers=layers,
        colours=grid((ASSIGNMENT_COLOURS[head.assignment] for head in heads), len(layers)),
        coarse=grid((ASSIGNMENT_COLOURS_256[head.assignment] for head in heads), len(layers)),
        symbols=grid((ASSIGNMENT_LETTERS[head.assignment] for head in heads), len(layers)),
    )


def digit(value: float) -> str:
    """A value as tenths in one letter: "." under 0.05, "#" from 0.95, "?" where it has none."""
    if value < 0:
        return "?"
    tenths = int(10 * value + 0.5)
    return "." if tenths == 0 else "#" if tenths > 9 else str(tenths)
