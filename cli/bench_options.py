"""Options and steps that the bench commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completers import complete_method
from .config_file import resolved_settings
from .options import (
    block_size_option,
    device_option,
    kernels_option,
    lengths_option,
    optional_dtype_option,
    output_option,
    overwrite_option,
    seed_option,
    with_output,
    words_option,
)

if TYPE_CHECKING:
    import torch

    from sp_profile.bench.inputs import LayerShape
    from sp_runtime.kernels.select import KernelChoice

    from .output import Output

method_option = words_option(
    "--method", name="methods", show_default=True, metavar="SPEC,...",
    default=("vertical_slash", "share:paper:delta=1.01", "plan"), shell_complete=complete_method,
    help_text="NAME[:RULE][:key=value]* or recorded:PROFILE; repeatable.",
)  # fmt: skip
_COUNT = click.IntRange(1)


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The attention layer that is measured; the defaults are those of Llama-3.1-8B."""
    options = (
        count_option("--heads", 32, "Query heads."),
        count_option("--kv-heads", 8, "KV heads."),
        count_option("--head-dim", 128, "Width of a head."),
        block_size_option("64 or 128 tokens.", default=128),
        optional_dtype_option("bfloat16 on a GPU, float32 on a CPU."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """What every bench command is told: `length_option`, `shape_options`, `bench_command`."""

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: str | None
    kernels: str
    device: str | None
    seed: int
    repeat: int | None
    target: Path | None
    overwrite: bool

    def start(self, output: Output) -> torch.device:
        """The device to measure on, after refusing a target that cannot be written."""
        from sp_profile.bench.documents import check_json_target
        from sp_profile.models import resolve_device

        if self.target is not None:
            check_json_target(self.target, overwrite=self.overwrite)
        device = resolve_device(self.device)
        _tell_device(output, device)
        return device

    def dtype_on(self, device: torch.device) -> str:
        """What was asked for, or what is usual on the device."""
        return self.dtype or ("bfloat16" if device.type == "cuda" else "float32")

    def shape(self, length: int, device: torch.device) -> LayerShape:
        """The layer at one length."""
        from sp_profile.bench.inputs import LayerShape

        return LayerShape(
            length=length,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            block_size=self.block_size,
            dtype=self.dtype_on(device),
        )

    def select(self, device: torch.device) -> KernelChoice:
        """The kernels to measure."""
        from sp_runtime.kernels.select import select_kernels

        return select_kernels(self.kernels, device)

    def keep(self, schema: str, rows: Sequence[Any], progress: str, **more: Any) -> None:
        """Store what has been measured so far, where asked for: a run may be cut off.

        progress: what is still to come, kept as `unfinished` in the document.
        """
        from sp_profile.bench.documents import write_document

        if self.target is not None:
            content = _document(schema, rows, unfinished=progress, **more)
            write_document(self.target, content)

    def finish(self, output: Output, schema: str, rows: Sequence[Any], **more: Any) -> None:
        """Print the document with --json, and store it where asked for."""
        from sp_profile.bench.documents import write_document

        content = _document(schema, rows, **more)
        if self.target is not None:
            write_document(self.target, content)
            output.info(f"wrote {self.target}")
        output.document(content)


def bench_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every bench command ends with: on what it measures, how, where it goes, and output.

    The command is called with an `Output` and the `BenchSettings`, then its own options.
    """

    @wraps(command)
    def wrapper(output: Output, **options: Any) -> Any:
        shared = {field.name: options.pop(field.name) for field in fields(BenchSettings)}
        return command(output, BenchSettings(**shared), **options)

    return _run_options(with_output(wrapper, config=True, progress=True))


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        kernels_option,
        device_option,
        seed_option("Of inputs and masks."),
        click.option(
            "--repeat", type=_COUNT, metavar="N", help="Timed runs; by time if left out."
        ),
        output_option("Store the document.", metavar="FILE.json", required=False),
        overwrite_option,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def length_option(*default: int) -> Callable[..., Any]:
    """--length with the lengths that are measured by themselves."""
    return lengths_option(*default, help_text="Tokens: repeat it, or use commas.")


def count_option(flag: str, default: int, help_text: str) -> Callable[..., Any]:
    """A whole number of 1 or more."""
    return click.option(
        flag, type=_COUNT, default=default, show_default=True, metavar="N", help=help_text
    )


def short_methods(labels: Sequence[str]) -> list[str]:
    """Method texts for a table: without their settings where that leaves them apart."""
    short = [_short(text) for text in labels]
    return short if len(set(short)) == len(labels) else list(labels)


def _short(text: str) -> str:
    if text.startswith("recorded:"):
        return "recorded"
    return ":".join(part for part in text.split(":") if "=" not in part)


def _document(schema: str, rows: Sequence[Any], **more: Any) -> dict[str, Any]:
    """The document of a measurement, with the words and the resolved settings of the command."""
    from sp_profile.bench.documents import document

    settings = resolved_settings().values()
    return document(schema, ["sp-run", *sys.argv[1:]], rows, settings=settings, **more)


def _tell_device(output: Output, device: torch.device) -> None:
    """On a CPU the figures are of the reference kernels, which nobody should quote."""
    if device.type != "cuda":
        output.warn(
            "no GPU: the plain torch reference kernels are timed by the wall clock on the CPU; "
            "these figures say nothing about the kernels"
        )
