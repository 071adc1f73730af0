"""One option for every number of an operating point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sp_runtime.operating_point import OperatingPoint

from .options import number_option

# (field, type, help); tokens unless the help says otherwise.
_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("gamma", float, "Attention mass that a mask keeps, in (0, 1]."),
    ("tau", float, "Largest distance at which a pattern is shared; xattention: its threshold."),
    ("delta", float, "Rule paper: distance to uniform from which a head is highly sparse."),
    ("kappa", float, "Distance under which a head is query-aware (flexprefill, rule release)."),
    ("phi", float, "Rule release: largest share of the pivot's mass in its vertical-slash."),
    ("drift", float, "Rule plan: distance from which a borrower falls back to vertical-slash."),
    (
        "drift_widen",
        float,
        "Rule plan: multiple of --drift up to which a mask is widened instead.",
    ),
    ("min_budget", int, "Least tokens of vertical-slash."),
    ("max_budget", int, "Most tokens of vertical-slash."),
    ("min_tokens", int, "Shorter prompts are computed densely."),
    ("sink", int, "First tokens that streaming heads keep."),
    ("window", int, "Local tokens that streaming heads keep."),
    ("stride", int, "Every how many queries are sampled; xattention: side of its cells."),
    ("top_k", int, "Key tokens that a query block chooses (infllm, hip)."),
    ("dense_layers", int, "First layers that are computed densely."),
    ("last_rows", int, "Last query blocks that every head computes densely."),
    ("local_blocks", int, "Key blocks before the diagonal that masks of block mass always keep."),
    ("row_slack", float, "Sampled masks: what a block row may miss, over what its head may."),
)
NAMES = tuple(name for name, _, _ in _NUMBERS)
Overrides = tuple[tuple[str, Any], ...]


def point_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; unset ones are None."""
    for name, kind, text in reversed(_NUMBERS):
        command = number_option(f"--{name.replace('_', '-')}", kind, text)(command)
    return command


def take_overrides(options: dict[str, Any]) -> Overrides:
    """The numbers that were given, removed from `options` with the others; UsageError if amiss."""
    given = ((name, options.pop(name)) for name in NAMES)
    found = tuple((name, value) for name, value in given if value is not None)
    for name, value in found:
        _check(name, value)
    return found


def _check(name: str, value: Any) -> None:
    """Refuse a number that no operating point takes, whatever the profile holds."""
    if name == "max_budget":
        OperatingPoint(min_budget=1, max_budget=value)
    else:
        dataclasses.replace(OperatingPoint(), **{name: value})
