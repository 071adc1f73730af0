"""`sp-run bench layer`: one attention layer by every method beside dense attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .bench_options import (
    bench_document,
    choose_dtype,
    finish,
    keep,
    length_option,
    method_option,
    run_options,
    shape_options,
    short_methods,
    tell_device,
)
from .options import (
    Findings,
    device_option,
    kernels_option,
    number_option,
    profile_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
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
@kernels_option
@device_option
@run_options
@with_output(config=True, progress=True)
def layer(
    output: Output,
    lengths: tuple[int, ...],
    methods: tuple[str, ...],
    density: float,
    layers: int,
    profile: Path | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: str | None,
    kernels: str,
    device: str | None,
    seed: int,
    repeat: int | None,
    target: Path | None,
    overwrite: bool,
) -> None:
    """Time an attention layer by method, and its parts.

    Says from which length a method is faster than dense attention. Inputs are planted: a sink, a
    local band and columns in every head.

    \b
    Examples:
      sp-run bench layer --length 16384,131072 -o layer.json
      sp-run bench layer --profile profiles/m --method plan,vertical_slash
    """
    from sp_profile.bench.clock import Clock
    from sp_profile.bench.documents import check_json_target
    from sp_profile.bench.inputs import LayerShape
    from sp_profile.bench.layer_bench import SCHEMA, LayerBench, Method, crossovers
    from sp_profile.models import resolve_device
    from sp_runtime.kernels.select import select_kernels
    from sp_runtime.method_spec import parse_method
    from sp_runtime.profile import load_profile

    if target is not None:
        check_json_target(target, overwrite=overwrite)
    given = None if profile is None else load_profile(profile)
    chosen_methods = [
        Method(label=text, point=parse_method(text), profile=given) for text in methods
    ]
    chosen = resolve_device(device)
    tell_device(output, chosen)
    bench = LayerBench(
        select_kernels(kernels, chosen).kernels,
        chosen,
        Clock(chosen, repeat=repeat),
        layers=range(layers),
        seed=seed,
    )
    rows: list[LayerRow] = []
    with output.progress("bench", "rows") as progress:
        total = len(lengths) * len(chosen_methods)
        progress(0, total)
        for length in lengths:
            shape = LayerShape(
                length=length,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                block_size=block_size,
                dtype=choose_dtype(dtype, chosen),
            )
            inputs, columns = bench.plant(shape, density)
            dense = bench.dense(inputs)
            found: list[LayerRow] = []
            for method in chosen_methods:
                found.append(bench.row(shape, inputs, columns, method, dense))
                progress(len(rows) + len(found), total)
            rows += found
            _print_rows(output, found)
            keep(target, SCHEMA, rows, "more lengths")
    crossed = crossovers(rows)
    _print_crossovers(output, crossed)
    finish(output, bench_document(SCHEMA, rows, crossovers=crossed), target)
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
    table = []
    names = short_methods([row.method for row in rows])
    for row, name in zip(rows, names, strict=True):
        if row.times is None or row.parts is None:
            table.append((name, f"{row.density:.3f}", f"wrong: {row.problem[:30]}", *[""] * 7))
            continue
        parts = row.parts
        table.append(
            (
                name,
                f"{row.density:.3f}",
                f"{row.times.median_ms:.3f}",
                f"{parts.estimate_ms:.2f}",
                f"{parts.decision_ms:.2f}",
                f"{parts.index_ms:.2f}",
                f"{parts.attention_ms:.2f}",
                f"{parts.mass_ms:.2f}",
                f"{100 * parts.overhead:.0f} %",
                f"{row.speedup:.2f}x",
            )
        )
    columns = (
        "method", "dens", "ms", "estim", "decis", "index", "attn", "mass", "over", "speed",
    )  # fmt: skip
    output.table(columns, table)
    output.line()


def _print_crossovers(output: Output, crossed: Sequence[Crossover]) -> None:
    for each in crossed:
        where = "at no measured length" if each.tokens is None else f"from {each.tokens} tokens on"
        near = "" if each.estimate is None else f" (the lines cross near {each.estimate:.0f})"
        output.line(f"{each.method}: faster than dense {where}{near}")
    output.line("ms: a layer, mean over the layers; over: estimate, decision and index / all parts")
