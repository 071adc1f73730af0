"""Options and steps that the bench commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completers import complete_method
from .config_file import resolved_settings
from .options import (
    block_size_option,
    lengths_option,
    optional_dtype_option,
    output_option,
    overwrite_option,
    seed_option,
    words_option,
)

if TYPE_CHECKING:
    import torch

    from .output import Output

method_option = words_option(
    "--method", name="methods", show_default=True, metavar="SPEC,...",
    default=("vertical_slash", "share:paper:delta=1.01", "plan"), shell_complete=complete_method,
    help_text="NAME[:RULE][:key=value]*: repeat it, or use commas.",
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


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a measurement is made and where it goes."""
    options = (
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


def choose_dtype(dtype: str | None, device: torch.device) -> str:
    """What was asked for, or what is usual on the device."""
    return dtype or ("bfloat16" if device.type == "cuda" else "float32")


def short_methods(labels: Sequence[str]) -> list[str]:
    """Method texts for a table: without their settings where that leaves them apart."""
    short = [":".join(part for part in text.split(":") if "=" not in part) for text in labels]
    return short if len(set(short)) == len(labels) else list(labels)


def finish(output: Output, content: dict[str, Any], target: Path | None) -> None:
    """Print the document with --json, and store it where asked for."""
    from sp_profile.bench.documents import write_document

    if target is not None:
        write_document(target, content)
        output.info(f"wrote {target}")
    output.document(content)


def keep(target: Path | None, schema: str, rows: Sequence[Any], progress: str, **more: Any) -> None:
    """Store what has been measured so far, where asked for: a run may be cut off.

    progress: what is still to come, kept as `unfinished` in the document.
    """
    from sp_profile.bench.documents import write_document

    if target is not None:
        write_document(target, bench_document(schema, rows, unfinished=progress, **more))


def bench_document(schema: str, rows: Sequence[Any], **more: Any) -> dict[str, Any]:
    """The document of a measurement, with the words and the resolved settings of the command."""
    from sp_profile.bench.documents import document

    settings = resolved_settings().values()
    return document(schema, ["sp-run", *sys.argv[1:]], rows, settings=settings, **more)


def tell_device(output: Output, device: torch.device) -> None:
    """On a CPU the figures are of the reference kernels, which nobody should quote."""
    if device.type != "cuda":
        output.warn(
            "no GPU: the plain torch reference kernels are timed by the wall clock on the CPU; "
            "these figures say nothing about the kernels"
        )
