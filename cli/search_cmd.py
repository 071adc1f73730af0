"""`sp-profile search`: head patterns of methods minference and moa, added to a profile."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    CONTEXT_SETTINGS,
    device_option,
    dtype_option,
    kernels_option,
    model_option,
    overwrite_option,
    revision_option,
    trust_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.minference_search import ShapeSearch
    from sp_profile.moa import WindowSearch
    from sp_runtime.profile import Profile


@click.group(context_settings=CONTEXT_SETTINGS)
def search() -> None:
    """Choose patterns of single heads offline, and write a profile that holds them.

    Every search runs on prompts of the profile's own calibration.
    """


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every search takes."""
    decorators = (
        model_option,
        revision_option,
        click.option(
            "--profile", "source", required=True, type=click.Path(path_type=Path),
            help="Profile of this model; it stays as it is.",
        ),
        click.option(
            "--prompts", multiple=True, metavar="PATH",
            help="The calibration's own prompt files, if it had any; repeatable.",
        ),
        click.option(
            "--length", "lengths", multiple=True, type=int, metavar="N",
            help="Only calibration prompts of N tokens; repeatable.",
        ),
        dtype_option,
        device_option,
        kernels_option,
        click.option(
            "--allow-weights-mismatch", is_flag=True, help="Accept a fine-tune of the model."
        ),
        trust_option,
        click.option(
            "-o", "--output", "target", required=True, type=click.Path(path_type=Path),
            help="Folder of the new profile.",
        ),
        overwrite_option,
        with_output,
    )  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@search.command()
@click.option(
    "--top-k", type=int, default=6400, show_default=True, metavar="N",
    help="Key tokens of a query block of the block-sparse candidate.",
)  # fmt: skip
@search_options
def minference(
    output: Output, source: Path, target: Path, overwrite: bool, top_k: int, **options: Any
) -> None:
    """For every head the pattern that keeps most attention: A-shape, vertical-slash, block-sparse.

    Sizes are absolute, so the longest calibration prompts are taken where --length says nothing.
    """
    from sp_profile.head_search import write_with_patterns
    from sp_profile.minference_search import default_candidates, search_shapes
    from sp_runtime.profile import HeadPatterns, load_profile

    profile = load_profile(source)
    candidates = default_candidates(top_k)
    config = _config(options, _longest(profile))
    with output.progress("search", "prompts") as progress:
        found = search_shapes(profile, config, progress, candidates=candidates)
    patterns = profile.head_patterns or HeadPatterns()
    patterns = dataclasses.replace(patterns, minference=found.table)
    written = write_with_patterns(_folder(source), profile, patterns, target, overwrite=overwrite)
    _tell_shapes(output, found, written, target)


@search.command()
@click.option("--density", type=float, required=True, help="Mean share of blocks, in (0, 1].")
@click.option(
    "--sink", type=int, default=64, show_default=True, metavar="N",
    help="First tokens that every head keeps.",
)  # fmt: skip
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
    """For every head a window of alpha + beta * N tokens, under one mean density.

    Takes every length of the calibration where --length says nothing.
    """
    from sp_profile.head_search import write_with_patterns
    from sp_profile.moa import search_windows
    from sp_runtime.profile import HeadPatterns, load_profile

    profile = load_profile(source)
    config = _config(options, ())
    with output.progress("search", "prompts") as progress:
        found = search_windows(profile, config, progress, density=density, sink=sink)
    patterns = profile.head_patterns or HeadPatterns()
    patterns = dataclasses.replace(patterns, moa=found.table)
    written = write_with_patterns(_folder(source), profile, patterns, target, overwrite=overwrite)
    _tell_windows(output, found, written, target)


def _config(options: dict[str, Any], lengths: tuple[int, ...]) -> Any:
    from sp_profile.head_search import SearchConfig

    device = options.pop("device") or "auto"
    chosen = options.pop("lengths") or (() if options["prompts"] else lengths)
    return SearchConfig(device=device, lengths=chosen, **options)


def _longest(profile: Profile) -> tuple[int, ...]:
    tokens = [prompt.tokens for prompt in profile.calibration.prompts if prompt.task]
    return (max(tokens),) if tokens else ()


def _folder(source: Path) -> Path:
    from sp_runtime.profile import PROFILE_NAME

    return source.parent if source.name == PROFILE_NAME else source


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
