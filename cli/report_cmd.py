"""`sp-profile report`: everything a profile holds as one HTML page, and its figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .options import (
    output_option,
    overwrite_option,
    profile_argument,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.report.data_types import ReportData

_MAX_TEXT = 100_000  # characters of one prompt that the page shows


@click.command()
@profile_argument
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.argument("evaluation", metavar="[EVAL]", required=False, type=click.Path(path_type=Path))
@output_option("The page, such as report.html.", metavar="FILE.html")
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Draw the figures as PNG and SVG into FOLDER too.",
)  # fmt: skip
@click.option(
    "--eval", "named_evaluation", type=click.Path(path_type=Path), metavar="PATH",
    help="EVAL, where there is no RUN to give before it.",
)  # fmt: skip
@click.option(
    "--prompts", "prompt_files", multiple=True, metavar="FILE",
    help="With --include-text: where the texts of the calibration's prompts are; repeatable.",
)  # fmt: skip
@click.option(
    "--include-text", is_flag=True, help="Show the text of the prompts, from the --prompts files."
)
@overwrite_option
@with_output(progress=True)
def report(
    output: Output,
    profile: Path,
    run: Path | None,
    evaluation: Path | None,
    target: Path,
    figures: Path | None,
    named_evaluation: Path | None,
    prompt_files: tuple[str, ...],
    include_text: bool,
    overwrite: bool,
) -> None:
    """Write a page with pictures of PROFILE, RUN and EVAL.

    One self-contained file: it loads nothing from the network and can be mailed. RUN adds recall
    curves and attention masses, EVAL the scores.

    \b
    Examples:
      sp-profile report profiles/smol -o report.html
      sp-profile report profiles/smol runs/smol -o report.html --figures figures
      sp-profile report profiles/smol runs/smol evals/smol -o report.html --overwrite
      sp-profile report profiles/smol --eval evals/smol -o report.html
    """
    if evaluation is not None and named_evaluation is not None:
        raise UsageError("EVAL is given twice", hint="leave --eval out")
    if prompt_files and not include_text:
        raise UsageError("--prompts needs --include-text", hint="texts are left out unless asked")
    _check_target(target, overwrite)
    _check_extras()
    from sp_profile.atomic import publish_bytes
    from sp_profile.figures import check_target, draw_figures
    from sp_profile.report.data import load_report_data
    from sp_profile.report.page import render_report
    from sp_runtime.profile_source import find_profile

    if figures is not None:
        check_target(figures, overwrite=overwrite)
    folder = find_profile(profile, tables=True).parent
    texts = _texts(folder, prompt_files) if include_text else {}
    with output.progress("report", "prompts") as progress:
        data = load_report_data(
            folder,
            run,
            evaluation or named_evaluation,
            texts=texts,
            progress=progress,
        )
    page = render_report(data)
    publish_bytes(target, page)
    pictures = () if figures is None else draw_figures(data, figures, overwrite=overwrite)
    output.document(_document(data, target, len(page), pictures))
    output.line(f"{target}: {len(page) / 1e6:.1f} MB")
    for picture in pictures:
        output.line(str(picture))
    if include_text and not any(prompt.text for prompt in data.gallery):
        output.info("no text was found; give --prompts the files that calibrate was given")


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before any work, a target that cannot be written."""
    if target.suffix not in (".html", ".htm"):
        raise UsageError(f"{target}: unknown format {target.suffix!r}", hint="end it in .html")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", hint="pass --overwrite, or name another file")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", hint="make it first")


def _check_extras() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"a report needs {' and '.join(missing)}", hint="pip install 'sparse-prefill[report]'"
        )


def _texts(folder: Path, files: tuple[str, ...]) -> Mapping[str, str]:
    """Texts of the profile's prompts by sha256, cut where they are very long."""
    if not files:
        return {}
    from sp_profile.prompts import read_prompts
    from sp_runtime.profile import load_profile

    chat = load_profile(folder).calibration.chat_template
    texts: dict[str, str] = {}
    for prompt in read_prompts(files).prompts:
        text = prompt.text + prompt.answer_prefix
        cut = f"{text[:_MAX_TEXT]} [...]" if len(text) > _MAX_TEXT else text
        texts[prompt.sha256(chat)] = cut
    return texts


def _document(
    data: ReportData, target: Path, size: int, pictures: tuple[Path, ...]
) -> dict[str, Any]:
    return {
        "schema": "sp.report",
        "profile_id": data.profile.profile_id,
        "report": str(target),
        "bytes": size,
        "figures": [str(picture) for picture in pictures],
        "heads": len(data.refs),
        "clusters": len(data.profile.clusters),
        "prompts_shown": [prompt.prompt.sha256 for prompt in data.gallery],
        "has_mass": any(prompt.mass is not None for prompt in data.gallery),
        "has_curves": data.curves is not None,
        "has_evaluation": data.evaluation is not None,
    }
