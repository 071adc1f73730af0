"""Options that several commands share, and what every command gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sp_runtime.strict_json import MAX_INT

from .completers import complete_model, complete_profile
from .output import Output
from .program import check_variables
from .progress import MODES, ProgressMode

if TYPE_CHECKING:
    from sp_profile.run_group import RunGroup

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]
RANK = "sp.rank"  # where a command leaves its rank for `runner.run`

# What a run folder and a profile can be read back with; random generators would take more.
_SEED = click.IntRange(0, MAX_INT)
DTYPES = ("float32", "bfloat16", "float16")


def optional_model_option(help_text: str) -> Option:
    """--model where a command can do without."""
    return click.option("--model", metavar="NAME", shell_complete=complete_model, help=help_text)


def optional_dtype_option(help_text: str) -> Option:
    """--dtype without a default of its own."""
    return click.option("--dtype", type=click.Choice(DTYPES), help=help_text)


def profile_option(help_text: str, *, required: bool = False, name: str = "profile") -> Option:
    """--profile: one profile, read into the parameter `name`."""
    return click.option(
        "--profile", name, type=click.Path(path_type=Path), metavar="PROFILE", required=required,
        shell_complete=complete_profile, help=help_text,
    )  # fmt: skip


def path_option(flag: str, help_text: str, *, required: bool = False) -> Option:
    """A file or folder that is read."""
    return click.option(
        flag, type=click.Path(path_type=Path), metavar="PATH", required=required, help=help_text
    )


def output_option(help_text: str, *, metavar: str = "FOLDER", required: bool = True) -> Option:
    """-o/--output, read into the parameter `target`."""
    return click.option(
        "-o", "--output", "target", required=required, type=click.Path(path_type=Path),
        metavar=metavar, help=help_text,
    )  # fmt: skip


def number_option(
    flag: str, kind: type[int | float], help_text: str, *, default: float | None = None
) -> Option:
    """A whole number (N) or any (X); None where it is left out, unless it has a default."""
    return click.option(
        flag, type=kind, default=default, show_default=default is not None,
        metavar="N" if kind is int else "X", help=help_text,
    )  # fmt: skip


def block_size_option(help_text: str, *, default: int | None = None) -> Option:
    """--block-size; what reads it refuses sizes that the kernels lack."""
    return number_option("--block-size", int, help_text, default=default)


def lengths_option(*default: int, help_text: str) -> Option:
    """--length, repeatable or with commas: a tuple of whole numbers of 1 or more."""
    return click.option(
        "--length", "lengths", type=IntegerList(), multiple=True, default=default or None,
        show_default=",".join(map(str, default)) if default else False, metavar="N,...",
        callback=flattened, help=help_text,
    )  # fmt: skip


def words_option(
    *names: str, name: str, help_text: str, metavar: str = "NAME,...", **more: Any
) -> Option:
    """An option that is repeatable or takes commas: a tuple of texts without them."""
    return click.option(
        *names, name, multiple=True, metavar=metavar, callback=split_words, help=help_text, **more
    )


class IntegerList(click.ParamType):
    """`4096,8192`: whole numbers of 1 or more."""

    name = "integers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers, such as 4096,8192", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{min(numbers)} is under 1", param, ctx)
        return numbers


def flattened(
    context: click.Context, parameter: click.Parameter, values: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """The numbers of every use of the option, in order."""
    return tuple(number for numbers in values for number in numbers)


def split_words(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> tuple[str, ...]:
    """The words of every use of the option, in order."""
    return tuple(word.strip() for text in values for word in text.split(",") if word.strip())


kind_price_option = words_option(
    "--kind-price", name="kind_price", metavar="[KIND=]X,...",
    help_text="What a layer pays for a kind of estimate, in shares of a head's causal blocks: 0.03 "
    "for vertical_slash, 0.06 more for query_aware, 0.02 for each stride of sampled if left out.",
)  # fmt: skip
without_option = words_option(
    "--without", name="without", metavar="KIND,...",
    help_text="No head gets these: vertical_slash, query_aware, sampled, streaming; repeatable.",
)  # fmt: skip
model_option = click.option(
    "--model",
    required=True,
    metavar="NAME",
    shell_complete=complete_model,
    help="Alias (smollm2-135m), folder, hub id (owner/name[@revision]) or .gguf file.",
)
profile_argument = click.argument(
    "profile", type=click.Path(path_type=Path), shell_complete=complete_profile
)
revision_option = click.option("--revision", metavar="REV", help="Revision of a hub model.")
dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Type that weights and activations are held in.",
)
device_option = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda or cuda:N; cuda where there is one."
)
kernels_option = click.option(
    "--kernels",
    type=click.Choice(["auto", "triton", "reference", "fa4"]),
    default="auto",
    show_default=True,
    help="Kernel backend; an explicit one never falls back.",
)
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that the model's repository ships."
)
weights_option = click.option(
    "--allow-weights-mismatch", is_flag=True, help="Accept a fine-tune of the model."
)
public_key_option = click.option(
    "--public-key", metavar="KEY",
    help="minisign key (or its file) that must have signed the profile.",
)  # fmt: skip
include_text_option = click.option(
    "--include-text", is_flag=True,
    help="Keep and show what was generated, which may quote the prompt.",
)  # fmt: skip
keep_going_option = click.option(
    "--keep-going", is_flag=True, help="Report a prompt that cannot be used and go on to the next."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "json_mode", is_flag=True, help="Print one JSON document.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Tell more.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Tell nothing but the result.")
progress_option = click.option(
    "--progress",
    "progress_mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How long work is told on standard error: a bar, a line a minute, or JSON lines.",
)
show_config_option = click.option(
    "--show-config", is_flag=True, help="Print the settings and where each comes from, and exit."
)


def seed_option(help_text: str, *, default: int | None = 0) -> Option:
    """--seed: a whole number that artefacts and torch's generators hold."""
    return click.option(
        "--seed", type=_SEED, default=default, show_default=default is not None, metavar="N",
        help=help_text,
    )  # fmt: skip


def chat_template_option(help_text: str, *, default: bool | None = None) -> Option:
    """--chat-template/--no-chat-template; None: as the model has one."""
    return click.option("--chat-template/--no-chat-template", default=default, help=help_text)


def with_output(
    command: Command | None = None, *, config: bool = False, progress: bool = False
) -> Any:
    """Add --json, -v and -q, and pass an `Output` as the first argument.

    config: add --config and --show-config. progress: add --progress, for work that takes long.
    """
    if command is None:
        return partial(with_output, config=config, progress=progress)

    @wraps(command)
    def wrapper(
        *,
        json_mode: bool,
        verbose: bool,
        quiet: bool,
        progress_mode: ProgressMode = "auto",
        show_config: bool = False,
        **options: Any,
    ) -> Any:
        output = Output(
            json_mode=json_mode,
            verbosity=int(verbose) - int(quiet),
            progress_mode=progress_mode,
        )
        check_variables(click.get_current_context(), os.environ)
        if show_config:
            return _show_config(output)
        return command(output, **options)

    decorated = json_option(verbose_option(quiet_option(wrapper)))
    if progress:
        decorated = progress_option(decorated)
    if config:
        decorated = config_option(show_config_option(decorated))
    return decorated


def _show_config(output: Output) -> None:
    from .config_file import resolved_settings

    settings = resolved_settings()
    output.document(settings.document())
    output.line(settings.toml(sources=True).rstrip())


def _load_config(
    context: click.Context, parameter: click.Parameter, file: Path | None
) -> Path | None:
    if file is not None and not context.resilient_parsing:
        from .config_file import load_config

        load_config(context, file)
    return file


config_option = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE.toml", is_eager=True,
    expose_value=False, callback=_load_config,
    help="Settings of this command; a flag or a variable goes over them.",
)  # fmt: skip


def join_group(output: Output) -> RunGroup:
    """The group of processes that torchrun made this one a part of; only its first one speaks."""
    from sp_profile.run_group import current_group

    group = current_group()
    output.rank = click.get_current_context().meta[RANK] = group.rank
    return group


class PartialFailure(Exception):
    """Some prompts failed under --keep-going; the result and its errors are already printed."""

    def __init__(self, *, failed: int, total: int) -> None:
        super().__init__(f"{failed} of {total} prompts failed")


class Findings(Exception):
    """What was checked fell short; the result and its findings are already printed."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} finding{'s' if count > 1 else ''}")
