"""`sp-profile curves`: recall against density of everything that a calibration run has measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp_runtime.errors import UsageError

from .options import overwrite_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.curves import Curves

_SUFFIXES = (".parquet", ".png")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "targets", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Store the points in FILE.parquet, or draw them in FILE.png; repeatable.",
)  # fmt: skip
@overwrite_option
@with_output(progress=True)
def curves(output: Output, run: Path, targets: tuple[Path, ...], overwrite: bool) -> None:
    """Show the recall of every method against its blocks, from RUN.

    Recall is the attention mass kept, density the blocks computed; by prompt length.

    \b
    Examples:
      sp-profile curves runs/smol
      sp-profile curves runs/smol -o curves.parquet -o curves.png
    """
    import dataclasses

    for target in targets:
        _check(target, overwrite)
    from sp_profile.curves import recall_density, store_parquet, store_plot

    with output.progress("curves", "prompts") as progress:
        found = recall_density(run, progress)
    for target in targets:
        store = store_plot if target.suffix == ".png" else store_parquet
        store(target, found)
    output.document(dataclasses.asdict(found))
    _print(output, found)


def _print(output: Output, found: Curves) -> None:
    lengths = sorted({point.length for point in found.points})
    for length in lengths:
        points = [point for point in found.points if point.length == length]
        output.line(
            f"{found.model}, up to {length} tokens: {points[0].prompts} prompts, "
            f"block {found.block_size}"
        )
        rows = [
            (
                point.method,
                point.setting,
                f"{point.cost:.3f}",
                f"{point.recall:.3f}",
                f"{point.recall_p10:.3f}",
            )
            for point in points
        ]
        output.table(("method", "setting", "cost", "recall", "p10"), rows, left=(0, 1))
        output.line()
    for note in found.notes:
        output.line(note)


def _check(target: Path, overwrite: bool) -> None:
    """Refuse, before any work, a target that cannot be written."""
    from importlib.util import find_spec

    if target.suffix not in _SUFFIXES:
        raise UsageError(
            f"{target}: unknown format {target.suffix!r}",
            hint=f"end it in {' or '.join(_SUFFIXES)}",
        )
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", hint="pass --overwrite, or name another file")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", hint="make it first")
    if target.suffix == ".png" and find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib", hint="pip install 'sparse-prefill[plot]'")
