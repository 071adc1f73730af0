"""Options and steps that the bench commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from .output import Output

method_option = click.option(
    "--method", "methods", multiple=True, show_default=True, metavar="SPEC",
    default=("vertical_slash", "share:paper:delta=1.01", "plan"),
    help="NAME[:RULE][:key=value]*; repeat it for several.",
)  # fmt: skip
_DTYPES = ("bfloat16", "float16", "float32")


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The attention layer that is measured; the defaults are those of Llama-3.1-8B."""
    options = (
        click.option("--heads", default=32, show_default=True, help="Query heads."),
        click.option("--kv-heads", default=8, show_default=True, help="KV heads."),
        click.option("--head-dim", default=128, show_default=True, help="Width of a head."),
        click.option("--block-size", default=128, show_default=True, help="64 or 128 tokens."),
        click.option(
            "--dtype", type=click.Choice(_DTYPES), help="bfloat16 on a GPU, float32 on a CPU."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a measurement is made and where it goes."""
    options = (
        click.option("--seed", default=0, show_default=True, help="Of inputs and masks."),
        click.option("--repeat", type=click.IntRange(1), help="Timed runs; by time if left out."),
        click.option(
            "-o", "--output", "target", type=click.Path(path_type=Path), metavar="FILE.json",
            help="Store the document.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def length_option(*default: int) -> Callable[..., Any]:
    """--length, as often as wanted."""
    return click.option(
        "--length",
        "lengths",
        type=click.IntRange(1),
        multiple=True,
        default=default,
        show_default=True,
        metavar="N",
        help="Tokens; repeat it for several.",
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
    from sp_profile.bench.documents import document, write_document

    if target is not None:
        write_document(target, document(schema, command_line(), rows, unfinished=progress, **more))


def command_line() -> Sequence[str]:
    """The words of this command, for the document."""
    return ["sp-run", *sys.argv[1:]]


def tell_device(output: Output, device: torch.device) -> None:
    """On a CPU the figures are of the reference kernels, which nobody should quote."""
    if device.type != "cuda":
        output.warn(
            "no GPU: the plain torch reference kernels are timed by the wall clock on the CPU; "
            "these figures say nothing about the kernels"
        )
