"""`sp-run bench`: measure the attention kernel; the layer and the model stand beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sp_runtime.errors import UsageError

from .bench_layer_cmd import layer
from .bench_model_cmd import model
from .bench_options import BenchSettings, bench_command, length_option, shape_options
from .options import Findings, words_option
from .output import Output

if TYPE_CHECKING:
    import torch

    from sp_profile.bench.inputs import LayerShape
    from sp_profile.bench.kernel_bench import Candidate, KernelRow
    from sp_profile.bench.masks import MaskCase
    from sp_profile.bench.mass_bench import MassRow
    from sp_runtime.block_index import BlockGrid
    from sp_runtime.kernels.select import KernelChoice


# Options of `bench kernel` that --tune has no use for.
_UNTUNED = ("kinds", "cluster", "peers", "kernels", "portable", "mass", "roofline")


@click.group()
def bench() -> None:
    """Measure kernels, a layer or a whole prefill here.

    \b
    Examples:
      sp-run bench kernel --length 32768 --density 0.25 --density 0.05
      sp-run bench layer --length 16384 --length 131072 -o layer.json
    """


@bench.command()
@length_option(32768)
@click.option(
    "--density", "densities", type=float, multiple=True, default=(1.0, 0.25, 0.1, 0.05),
    show_default=True, metavar="X", help="Share of the causal blocks; repeatable.",
)  # fmt: skip
@shape_options
@words_option(
    "--mask", name="kinds", default=("random",), show_default=True, metavar="KIND,...",
    help_text="random, shared, neighbours, pivot, planted or recorded:PROFILE.",
)  # fmt: skip
@click.option(
    "--cluster", type=click.IntRange(1), metavar="N", help="Heads that share under neighbours."
)
@words_option(
    "--peer", name="peers", default=("auto",), show_default=True,
    help_text="auto, none, or of fa4-sparse, flex, flexprefill, fa4, cudnn, fa2.",
)  # fmt: skip
@click.option("--portable", is_flag=True, help="Measure the portable Triton kernel too.")
@click.option("--mass", is_flag=True, help="Block mass of one head beside its dense attention.")
@click.option("--roofline", is_flag=True, help="Measure the device's ceilings and count bytes.")
@click.option("--tune", is_flag=True, help="Time other configurations; print what to pin.")
@bench_command
def kernel(
    output: Output,
    settings: BenchSettings,
    *,
    densities: tuple[float, ...],
    kinds: tuple[str, ...],
    cluster: int | None,
    peers: tuple[str, ...],
    portable: bool,
    mass: bool,
    roofline: bool,
    tune: bool,
) -> None:
    """Time block-sparse attention beside other kernels.

    A kernel whose output is wrong gets no figure, and the command ends with exit code 5. TFLOP/s
    count whole computed blocks.

    \b
    Examples:
      sp-run bench kernel --length 32768 --density 0.25 --density 0.05
      sp-run bench kernel --length 131072 --peer none --portable -o kernel.json
      sp-run bench kernel --length 32768 --tune
    """
    from sp_profile.bench.clock import Clock
    from sp_profile.bench.kernel_bench import SCHEMA, KernelBench
    from sp_profile.bench.mass_bench import mass_row
    from sp_profile.bench.peers import choose_peers
    from sp_profile.bench.roofline import measure_ceilings

    if tune:
        _refuse_beside_tune(click.get_current_context())
    device, seed = settings.start(output), settings.seed
    shapes = [settings.shape(length, device) for length in settings.lengths]
    wishes = [
        MaskWish(shape=shape, kinds=kinds, densities=densities, cluster=cluster, seed=seed)
        for shape in shapes
    ]
    wishes[0].check()  # the others are of the same heads and blocks
    clock = Clock(device, repeat=settings.repeat)
    if tune:
        from .bench_tune import tune_kernel

        tune_kernel(output, settings, shapes, densities, clock, device)
        return
    run = KernelBench(
        own=candidates(settings.select(device), portable=portable),
        peers=choose_peers(",".join(peers)),
        device=device,
        clock=clock,
        seed=seed,
        ceilings=measure_ceilings(device, settings.dtype_on(device), clock) if roofline else None,
    )
    rows: list[KernelRow] = []
    with output.progress("bench", "lengths") as progress:
        for number, (shape, wanted) in enumerate(zip(shapes, wishes, strict=True)):
            progress(number, len(shapes))
            for found in run.rows(shape, lambda grid, w=wanted: w.cases(grid, device)):  # type: ignore[misc]
                rows += found
                _print_rows(output, found)
                settings.keep(SCHEMA, rows, "more masks", ceilings=run.ceilings)
        progress(len(shapes), len(shapes))
    masses = [mass_row(shape, run.own[0].kernels, device, clock, seed) for shape in shapes if mass]
    for each in masses:
        _print_mass(output, each)
    if run.ceilings is not None:
        output.line(
            f"ceilings: matrix product {run.ceilings.matmul_tflops:.0f} TFLOP/s, "
            f"copy {run.ceilings.copy_bytes_per_s / 1e9:.0f} GB/s"
        )
    if device.type == "cuda":
        output.line("ms: of the device alone, whatever the host takes to launch")
    settings.finish(output, SCHEMA, rows, mass=masses, ceilings=run.ceilings)
    wrong = sum(row.status == "wrong" and row.kind == "own" for row in rows)
    wrong += sum(each.status == "wrong" for each in masses)
    if wrong:
        raise Findings(wrong)


bench.add_command(layer)
bench.add_command(model)


def _refuse_beside_tune(context: click.Context) -> None:
    """UsageError for an option of this command line that tuning would not look at."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in _UNTUNED:
            raise UsageError(
                f"--tune does not take {option.opts[0]}",
                hint="it times configurations of each operation on random masks, and no peers",
            )


class MaskWish:
    """The masks that a command asks for, kind by kind and density by density."""

    def __init__(
        self,
        *,
        shape: LayerShape,
        kinds: Sequence[str],
        densities: Sequence[float],
        cluster: int | None,
        seed: int,
    ) -> None:
        self._shape, self._kinds, self._densities = shape, kinds, densities
        self._cluster, self._seed = cluster, seed

    def check(self) -> None:
        """Make every mask over one block, so that what cannot be made fails before all timing.

        Raises UsageError for unknown masks, a density outside of (0, 1], or a profile whose masks
        do not fit the shape.
        """
        import torch

        from sp_runtime.block_index import BlockGrid

        size = self._shape.block_size
        grid = BlockGrid(q_len=size, kv_len=size, block_size=size)
        if not list(self.cases(grid, torch.device("cpu"))):
            raise UsageError("no masks to measure", hint="try --mask random")

    def cases(self, grid: BlockGrid, device: torch.device) -> Iterator[MaskCase]:
        """Every mask once: densities under that of the forced blocks give the same one."""
        from sp_profile.bench.masks import MASK_KINDS, MaskMaker
        from sp_profile.bench.methods import RECORDED

        shape = self._shape
        group = shape.heads // shape.kv_heads
        maker = MaskMaker(
            grid=grid,
            heads=shape.heads,
            group=group,
            cluster=self._cluster or 2 * group,
            seed=self._seed,
            device=device,
        )
        for kind in self._kinds:
            if kind.startswith(RECORDED):
                from sp_profile.bench.recorded_masks import read_recorded

                recorded = read_recorded(Path(kind.removeprefix(RECORDED)))
                yield recorded.case(grid, heads=shape.heads, device=device)
                continue
            if kind not in MASK_KINDS:
                known = ", ".join((*MASK_KINDS, f"{RECORDED}PROFILE"))
                raise UsageError(f"unknown masks {kind!r}", hint=known)
            seen = set()
            for density in self._densities:
                cases = maker.make(kind, density)
                if (key := tuple(case.blocks() for case in cases)) not in seen:
                    seen.add(key)
                    yield from cases


def candidates(choice: KernelChoice, *, portable: bool) -> list[Candidate]:
    """The kernels of ours to measure: the one that runs, and the portable one where asked for."""
    from sp_profile.bench.kernel_bench import Candidate

    # The peer "fa4" is the same package's dense attention.
    name = "fa4-kernels" if choice.name == "fa4" else choice.name
    found = [Candidate(name=name, kernels=choice.kernels)]
    if portable:
        if choice.name != "triton":
            raise UsageError("--portable needs the triton kernels", hint="leave it out on a CPU")
        from sp_runtime.kernels.triton_backend import TritonKernels

        found.append(Candidate(name="triton-portable", kernels=TritonKernels(hopper=False)))
    return found


def _print_rows(output: Output, rows: Sequence[KernelRow]) -> None:
    """One table a mask, 80 columns wide."""
    from sp_profile.bench.clock import DEVICE_OR_HOST

    first = rows[0]
    shape = first.shape
    output.line(
        f"{shape.length} tokens, {shape.heads} x {shape.kv_heads} heads of {shape.head_dim}, "
        f"{shape.dtype}, block {shape.block_size}"
    )
    output.line(f"{first.mask} masks, density {first.density:.3f}, {first.blocks} blocks")
    table = []
    for row in rows:
        if row.times is None or row.tflops is None:
            table.append((row.kernel, f"{row.status}: {row.problem[:44]}", *[""] * 4))
            continue
        extra = "-" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.0f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        spread = f"{row.times.p20_ms:.3f}-{row.times.p80_ms:.3f}"
        table.append(
            (row.kernel, f"{row.times.median_ms:.3f}", spread, f"{row.tflops:.4g}", ratio, extra)
        )
    output.table(("kernel", "ms", "p20-p80", "TFLOP/s", "ratio", "MiB"), table)
    held_up = [row.kernel for row in rows if row.environment.timer == DEVICE_OR_HOST]
    if held_up:
        output.line(f"held up by the host, which its times hold: {', '.join(held_up)}")
    output.line()


def _print_mass(output: Output, row: MassRow) -> None:
    if row.mass is None or row.attention is None:
        output.line(f"block mass, {row.shape.length} tokens: wrong, error {row.error:.2g}")
        return
    output.line(
        f"block mass of one head, {row.shape.length} tokens: {row.mass.median_ms:.3f} ms, "
        f"{row.ratio:.2f} of its dense attention ({row.attention.median_ms:.3f} ms)"
    )
