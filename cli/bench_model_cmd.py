"""`sp-run bench model`: time to first token of a model of random weights, by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .bench_options import (
    BenchSettings,
    bench_command,
    count_option,
    length_option,
    method_option,
    shape_options,
    short_methods,
)
from .options import number_option
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
@bench_command
def model(
    output: Output,
    settings: BenchSettings,
    *,
    methods: tuple[str, ...],
    density: float,
    plant: bool,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
) -> None:
    """Time to first token of a random Llama, by method.

    Dense attention beside each method, split into its parts. Method recorded:PROFILE takes the
    masks of a profile as they are, layer by layer at their depth, with nothing to estimate.

    \b
    Examples:
      sp-run bench model --length 32768,131072 -o model.json
      sp-run bench model --method plan,recorded:profiles/smollm2-135m-32k
      sp-run bench model --layers 30 --hidden 576 --intermediate 1536 --heads 9 --kv-heads 3 \
        --head-dim 64 --vocabulary 49152 --length 32768
    """
    from sp_profile.bench.inputs import require_plantable
    from sp_profile.bench.masks import require_density
    from sp_profile.bench.methods import bench_method, rehearse
    from sp_profile.bench.model_bench import SCHEMA, ModelBench, ModelShape, build_model

    device = settings.start(output)
    wanted = [bench_method(text, None) for text in methods]
    lengths, kind = settings.lengths, settings.dtype_on(device)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=vocabulary,
        heads=settings.heads,
        kv_heads=settings.kv_heads,
        head_dim=settings.head_dim,
    )
    require_density(density)
    longest = settings.shape(max(lengths), device)
    if plant:
        require_plantable(longest)
    rehearse(wanted, longest, range(layers))
    kernels = settings.select(device).kernels
    output.detail(f"making {layers} layers of random weights on {device}")
    bench = ModelBench(
        build_model(shape, max(lengths), kind, device),
        shape,
        dtype=kind,
        block_size=settings.block_size,
        kernels=kernels,
        device=device,
        repeat=settings.repeat or _REPEAT,
        seed=settings.seed,
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
                settings.keep(SCHEMA, [*rows, *found], "more methods or lengths")
                progress(len(rows) + len(found), total)
            rows += found
            _print_rows(output, found)
    settings.finish(output, SCHEMA, rows)


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
