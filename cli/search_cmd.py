"""`sp-profile search`: head patterns of methods minference and moa, added to a profile."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .config_file import resolved_settings
from .options import (
    CONTEXT_SETTINGS,
    device_option,
    dtype_option,
    kernels_option,
    lengths_option,
    model_option,
    number_option,
    output_option,
    overwrite_option,
    profile_option,
    revision_option,
    trust_option,
    weights_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.minference_search import ShapeSearch
    from sp_profile.moa import WindowSearch
    from sp_runtime.profile import HeadPatterns, Profile


@click.group(context_settings=CONTEXT_SETTINGS)
def search() -> None:
    """Choose patterns of single heads into a profile.

    Every search runs on prompts of the profile's own calibration.

    \b
    Examples:
      sp-profile search minference --model M --profile profiles/m -o profiles/m-minference
      sp-profile search moa --model M --profile profiles/m --density 0.3 -o profiles/m-moa
    """


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every search takes."""
    decorators = (
        model_option,
        revision_option,
        profile_option("Profile of this model; it stays as it is.", required=True, name="source"),
        click.option(
            "--prompts", multiple=True, metavar="PATH",
            help="The calibration's own prompt files, if it had any; repeatable.",
        ),
        lengths_option(help_text="Only calibration prompts of so many tokens: repeatable."),
        dtype_option,
        device_option,
        kernels_option,
        weights_option,
        trust_option,
        output_option("Folder of the new profile."),
        overwrite_option,
        with_output(config=True, progress=True),
    )  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@search.command()
@number_option(
    "--top-k", int, "Key tokens of a query block of the block-sparse candidate.", default=6400
)
@search_options
def minference(
    output: Output, source: Path, target: Path, overwrite: bool, top_k: int, **options: Any
) -> None:
    """For every head the pattern of MInference that keeps most.

    Patterns: A-shape, vertical-slash, block-sparse. Sizes are absolute, so the longest calibration
    prompts are taken where --length says nothing.

    \b
    Examples:
      sp-profile search minference --model M --profile profiles/m -o profiles/m-minference
      sp-profile search minference --model M --profile profiles/m --top-k 3200 --length 32768 -o new
    """
    from sp_profile.minference_search import default_candidates, search_shapes
    from sp_runtime.profile import HeadPatterns, load_profile
    from sp_runtime.profile_source import find_profile

    source = find_profile(source, tables=True)
    profile = load_profile(source)
    candidates = default_candidates(top_k)
    config = _config(options, _longest(profile))
    with output.progress("search", "prompts") as progress:
        found = search_shapes(profile, config, progress, candidates=candidates)
    patterns = dataclasses.replace(profile.head_patterns or HeadPatterns(), minference=found.table)
    written = _write(source, profile, patterns, target, overwrite)
    _tell_shapes(output, found, written, target)


@search.command()
@click.option(
    "--density", type=float, required=True, metavar="X", help="Mean share of blocks, in (0, 1]."
)
@number_option("--sink", int, "First tokens that every head keeps.", default=64)
@search_options
def moa(
    output: Output,
    source: Path,
    target: Path,
    overwrite: bool,
    density: float,
    sink: int,
    **options: Any,
) -> None:
    """For every head a window of alpha + beta * N tokens.

    They keep most attention under one mean density. Takes every length of the calibration where
    --length says nothing.

    \b
    Examples:
      sp-profile search moa --model M --profile profiles/m --density 0.3 -o profiles/m-moa
    """
    from sp_profile.moa import search_windows
    from sp_runtime.profile import HeadPatterns, load_profile
    from sp_runtime.profile_source import find_profile

    source = find_profile(source, tables=True)
    profile = load_profile(source)
    config = _config(options, ())
    with output.progress("search", "prompts") as progress:
        found = search_windows(profile, config, progress, density=density, sink=sink)
    patterns = dataclasses.replace(profile.head_patterns or HeadPatterns(), moa=found.table)
    written = _write(source, profile, patterns, target, overwrite)
    _tell_windows(output, found, written, target)


def _config(options: dict[str, Any], lengths: tuple[int, ...]) -> Any:
    from sp_profile.head_search import SearchConfig

    device = options.pop("device") or "auto"
    chosen = options.pop("lengths") or (() if options["prompts"] else lengths)
    return SearchConfig(device=device, lengths=chosen, **options)


def _write(
    source: Path, profile: Profile, patterns: HeadPatterns, target: Path, overwrite: bool
) -> Profile:
    """The profile with what a search found, beside what it has."""
    from sp_profile.head_search import write_with_patterns

    return write_with_patterns(
        source.parent,
        profile,
        patterns,
        target,
        settings=resolved_settings().toml(),
        overwrite=overwrite,
    )


def _longest(profile: Profile) -> tuple[int, ...]:
    tokens = [prompt.tokens for prompt in profile.calibration.prompts if prompt.task]
    return (max(tokens),) if tokens else ()


def _tell_shapes(output: Output, found: ShapeSearch, written: Profile, target: Path) -> None:
    counts = Counter((head.kind, head.vertical, head.slash) for head in found.table.heads)
    _document(
        output,
        "sp.search.minference",
        written,
        target,
        prompts=len(found.prompts),
        mass=found.mass,
        density=found.density,
        patterns=[
            {"kind": kind, "vertical": vertical, "slash": slash, "heads": count}
            for (kind, vertical, slash), count in sorted(counts.items())
        ],
    )
    rows = [
        (kind, str(vertical), str(slash) if slash else "-", str(count))
        for (kind, vertical, slash), count in sorted(counts.items())
    ]
    output.table(("pattern", "v", "s", "heads"), rows)
    output.line(f"{found.table.source}")
    output.line(f"mean over heads: mass {found.mass:.3f} at density {found.density:.3f}")
    for candidate in found.covered:
        output.warn(
            f"{candidate.kind} ({candidate.vertical}, {candidate.slash}) covers these prompts "
            "whole, so it keeps everything; search on longer ones"
        )


def _tell_windows(output: Output, found: WindowSearch, written: Profile, target: Path) -> None:
    counts = Counter((head.alpha, head.beta) for head in found.table.heads)
    _document(
        output,
        "sp.search.moa",
        written,
        target,
        prompts=len(found.prompts),
        mass=found.mass,
        bound=found.bound,
        density=found.density,
        windows=[
            {"alpha": alpha, "beta": beta, "heads": count}
            for (alpha, beta), count in sorted(counts.items())
        ],
    )
    rows = [(str(a), f"{b:g}", str(count)) for (a, b), count in sorted(counts.items())]
    output.table(("alpha", "beta", "heads"), rows, left=())
    output.line(f"{found.table.source}")
    output.line(
        f"mean over heads: mass {found.mass:.4f} at density {found.density:.4f}; no choice of "
        f"these windows keeps more than {found.bound:.4f}"
    )


def _document(output: Output, schema: str, written: Profile, target: Path, **facts: object) -> None:
    output.document(
        {
            "schema": schema,
            "profile": str(target),
            "profile_id": written.profile_id,
            **facts,
        }
    )
    output.line(f"profile {target}")
    output.line(f"id      {written.profile_id}")
