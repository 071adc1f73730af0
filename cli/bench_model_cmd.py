"""`sp-run bench model`: time to first token of a model of random weights, by method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .bench_options import (
    bench_document,
    choose_dtype,
    count_option,
    finish,
    keep,
    length_option,
    method_option,
    run_options,
    shape_options,
    short_methods,
    tell_device,
)
from .options import device_option, kernels_option, number_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.bench.model_bench import ModelRow

_REPEAT = 3


@click.command()
@length_option(32768, 131072)
@method_option
@number_option("--density", float, "Wanted of vertical_slash on planted inputs.", default=0.1)
@click.option(
    "--plant/--no-plant", default=True, show_default=True,
    help="Replace queries and keys by planted ones, or keep those of the random weights.",
)  # fmt: skip
@click.option(
    "--layers", default=32, show_default=True, type=click.IntRange(1, 256), metavar="N",
    help="Layers of the model.",
)  # fmt: skip
@count_option("--hidden", 4096, "Width of the model.")
@count_option("--intermediate", 14336, "Width of its MLPs.")
@count_option("--vocabulary", 128256, "Tokens it knows.")
@shape_options
@kernels_option
@device_option
@run_options
@with_output(config=True, progress=True)
def model(
    output: Output,
    lengths: tuple[int, ...],
    methods: tuple[str, ...],
    density: float,
    plant: bool,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
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
    """Time to first token of a random Llama, by method.

    Dense attention beside each method, split into its parts.

    \b
    Examples:
      sp-run bench model --length 32768,131072 -o model.json
      sp-run bench model --layers 30 --hidden 576 --intermediate 1536 --heads 9 --kv-heads 3 \
        --head-dim 64 --vocabulary 49152 --length 32768
    """
    from sp_profile.bench.documents import check_json_target
    from sp_profile.bench.layer_bench import Method
    from sp_profile.bench.model_bench import SCHEMA, ModelBench, ModelShape, build_model
    from sp_profile.models import resolve_device
    from sp_runtime.kernels.select import select_kernels
    from sp_runtime.method_spec import parse_method

    if target is not None:
        check_json_target(target, overwrite=overwrite)
    wanted = [Method(label=text, point=parse_method(text), profile=None) for text in methods]
    chosen = resolve_device(device)
    tell_device(output, chosen)
    kind = choose_dtype(dtype, chosen)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
    output.detail(f"making {layers} layers of random weights on {chosen}")
    bench = ModelBench(
        build_model(shape, max(lengths), kind, chosen),
        shape,
        dtype=kind,
        block_size=block_size,
        kernels=select_kernels(kernels, chosen).kernels,
        device=chosen,
        repeat=repeat or _REPEAT,
        seed=seed,
        plant_density=density if plant else None,
    )
    rows: list[ModelRow] = []
    with output.progress("bench", "rows") as progress:
        total = len(lengths) * (1 + len(wanted))  # dense too
        progress(0, total)
        for length in lengths:
            found = []
            for row in bench.rows(length, wanted):
                found.append(row)
                keep(target, SCHEMA, [*rows, *found], "more methods or lengths")
                progress(len(rows) + len(found), total)
            rows += found
            _print_rows(output, found)
    finish(output, bench_document(SCHEMA, rows), target)


def _print_rows(output: Output, rows: Sequence[ModelRow]) -> None:
    first = rows[0]
    kind = "own queries and keys" if first.planted_columns is None else "planted queries and keys"
    output.line(f"{first.length} tokens, {first.model.layers} layers, {first.dtype}, {kind}")
    table = []
    names = short_methods([row.method for row in rows])
    for row, name in zip(rows, names, strict=True):
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.1f}"
        table.append(
            (
                name,
                f"{row.density:.3f}",
                f"{row.ttft.median_ms:.0f}",
                f"{row.parts.attention_ms:.0f}",
                f"{row.parts.index_ms:.0f}",
                f"{row.parts.mlp_ms:.0f}",
                f"{row.parts.rest_ms:.0f}",
                "-" if row.speedup is None else f"{row.speedup:.2f}x",
                peak,
            )
        )
    columns = ("method", "dens", "TTFT ms", "attn", "index", "MLP", "rest", "speed", "GiB")
    output.table(columns, table)
    output.line()
