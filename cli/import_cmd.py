"""`sp-profile import`: a published file as a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .config_file import resolved_settings
from .options import (
    block_size_option,
    model_option,
    output_option,
    overwrite_option,
    revision_option,
    trust_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.imports import Imported


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@model_option
@revision_option
@click.option(
    "--kind",
    type=click.Choice(["shareprefill", "minference"]),
    help="Format of FILE; told by its content if left out.",
)
@block_size_option("64 or 128 tokens, when the profile runs.", default=128)
@output_option("Folder of the profile.")
@trust_option
@overwrite_option
@with_output(config=True)
def import_command(
    output: Output,
    file: Path,
    model: str,
    revision: str | None,
    kind: Any,
    block_size: int,
    target: Path,
    trust_remote_code: bool,
    overwrite: bool,
) -> None:
    """Make a profile of a published FILE.

    FILE holds SharePrefill's clusters or MInference's patterns. Of the model only its config is
    read. The profile says what the file holds and nothing more: there is no plan in it.

    \b
    Examples:
      sp-profile import clusters.json --model meta-llama/Llama-3.1-8B-Instruct -o profiles/llama
      sp-profile import best_pattern.json --kind minference --model models/llama -o profiles/mi
    """
    from sp_profile.artefact import write_profile
    from sp_profile.imports import import_file
    from sp_profile.model_source import resolve_model
    from sp_profile.models import load_config

    source = resolve_model(model, revision=revision)
    loaded = load_config(source, identify_weights=False, trust_remote_code=trust_remote_code)
    imported = import_file(
        file,
        model=loaded.fingerprint,
        model_name=source.public_name,
        kind=kind,
        block_size=block_size,
    )
    settings = resolved_settings().toml()
    profile = write_profile(target, imported.profile, settings=settings, overwrite=overwrite)
    _tell(output, imported, profile.profile_id, target)


def _tell(output: Output, imported: Imported, profile_id: str, target: Path) -> None:
    output.document(
        {
            "schema": "sp.import",
            "profile": str(target),
            "profile_id": profile_id,
            "kind": imported.kind,
            "found": list(imported.found),
            "lacks": list(imported.lacks),
        }
    )
    output.line(f"profile {target}")
    output.line(f"id      {profile_id}")
    for line in imported.found:
        output.line(f"has     {line}")
    for line in imported.lacks:
        output.line(f"lacks   {line}")
    output.info(f"next: sp-profile show {target}")
