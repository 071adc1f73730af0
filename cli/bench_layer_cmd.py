"""`sp-run bench layer`: one attention layer by every method beside dense attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp_runtime.errors import UsageError

from .bench_options import (
    BenchSettings,
    bench_command,
    length_option,
    method_option,
    shape_options,
    short_methods,
)
from .options import Findings, number_option, profile_option
from .output import Output

if TYPE_CHECKING:
    from sp_profile.bench.clocked import LayerParts
    from sp_profile.bench.layer_bench import Crossover, LayerRow


@click.command()
@length_option(8192, 16384, 32768, 65536, 131072)
@method_option
@number_option("--density", float, "Wanted of vertical_slash.", default=0.1)
@click.option(
    "--layers", default=8, show_default=True, type=click.IntRange(1, 128), metavar="N",
    help="Layers in a row, so that heads can borrow.",
)  # fmt: skip
@profile_option("Instead of a synthetic one.")
@shape_options
@bench_command
def layer(
    output: Output,
    settings: BenchSettings,
    *,
    methods: tuple[str, ...],
    density: float,
    layers: int,
    profile: Path | None,
) -> None:
    """Time an attention layer by method, and its parts.

    Says from which length a method is faster than dense attention. Inputs are planted: a sink, a
    local band and columns in every head. Method recorded:PROFILE takes the masks of a profile as
    they are, with nothing to estimate.

    \b
    Examples:
      sp-run bench layer --length 16384,131072 -o layer.json
      sp-run bench layer --profile profiles/m --method plan,vertical_slash
      sp-run bench layer --method plan,recorded:profiles/m
    """
    from sp_profile.bench.clock import Clock
    from sp_profile.bench.inputs import require_plantable
    from sp_profile.bench.layer_bench import SCHEMA, LayerBench, crossovers
    from sp_profile.bench.masks import require_density
    from sp_profile.bench.methods import bench_method, rehearse
    from sp_runtime.profile import load_profile

    device = settings.start(output)
    given = None if profile is None else load_profile(profile)
    wanted = [bench_method(text, given) for text in methods]
    if not wanted:
        raise UsageError("no methods to measure", hint="try --method vertical_slash")
    require_density(density)
    shapes = [settings.shape(length, device) for length in settings.lengths]
    require_plantable(max(shapes, key=lambda shape: shape.length))
    rehearse(wanted, shapes[0], range(layers))  # the others are of the same heads and blocks
    bench = LayerBench(
        settings.select(device).kernels,
        device,
        Clock(device, repeat=settings.repeat),
        layers=range(layers),
        seed=settings.seed,
    )
    rows: list[LayerRow] = []
    with output.progress("bench", "rows") as progress:
        total = len(shapes) * len(wanted)
        progress(0, total)
        for shape in shapes:
            inputs, columns = bench.plant(shape, density)
            dense = bench.dense(inputs)
            found: list[LayerRow] = []
            for method in wanted:
                found.append(bench.row(shape, inputs, columns, method, dense))
                settings.keep(SCHEMA, [*rows, *found], "more methods or lengths")
                progress(len(rows) + len(found), total)
            rows += found
            _print_rows(output, found)
    crossed = crossovers(rows)
    _print_crossovers(output, crossed, sparse={row.method for row in rows if row.sparse})
    settings.finish(output, SCHEMA, rows, crossovers=crossed)
    wrong = sum(row.status == "wrong" for row in rows)
    if wrong:
        raise Findings(wrong)


def _print_rows(output: Output, rows: Sequence[LayerRow]) -> None:
    first = rows[0]
    dense = first.dense
    output.line(
        f"{first.shape.length} tokens, {first.columns} planted columns; dense ({dense.backend}): "
        f"{dense.times.median_ms:.3f} ms a layer"
    )
    names = short_methods([row.method for row in rows])
    table, alone = [], []
    for row, name in zip(rows, names, strict=True):
        if row.times is None or row.parts is None:
            table.append((name, f"{row.density:.3f}", f"wrong: {row.problem[:30]}", *[""] * 7))
            continue
        head, speed = (name, f"{row.density:.3f}"), f"{row.speedup:.2f}x"
        table.append((*head, f"{row.times.median_ms:.3f}", *_parts(row.parts), speed))
        if row.graph_ms is not None or row.device_parts is not None:
            graph = "-" if row.graph_ms is None else f"{row.graph_ms:.3f}"
            parts = ("-",) * 6 if row.device_parts is None else _parts(row.device_parts)
            alone.append((*head, graph, *parts))
    parts_columns = ("estim", "decis", "index", "attn", "mass", "over")
    output.table(("method", "dens", "ms", *parts_columns, "speed"), table)
    if alone:
        output.line("of the device alone; graph: the layers replayed from a CUDA graph")
        output.table(("method", "dens", "graph", *parts_columns), alone)
    output.line()


def _parts(parts: LayerParts) -> tuple[str, ...]:
    """The steps of a layer in milliseconds, and their overhead."""
    return (
        f"{parts.estimate_ms:.2f}",
        f"{parts.decision_ms:.2f}",
        f"{parts.index_ms:.2f}",
        f"{parts.attention_ms:.2f}",
        f"{parts.mass_ms:.2f}",
        f"{100 * parts.overhead:.0f} %",
    )


def _print_crossovers(output: Output, crossed: Sequence[Crossover], sparse: set[str]) -> None:
    """sparse: the methods that ran sparsely at any length."""
    for each in crossed:
        if each.method not in sparse:
            output.line(f"{each.method}: ran densely at every measured length")
            continue
        where = "at no measured length" if each.tokens is None else f"from {each.tokens} tokens on"
        near = "" if each.estimate is None else f" (the lines cross near {each.estimate:.0f})"
        output.line(f"{each.method}: faster than dense {where}{near}")
    output.line("ms: a layer, mean over the layers, the host's launches included")
    output.line("over: estimate, decision and index as a share of all parts")
