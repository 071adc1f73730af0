"""Every figure that a profile, its run and its evaluation allow, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sp_profile.atomic import publish_bytes, writing_errors
from sp_profile.figures.style import Format, drawing, encode, require_matplotlib
from sp_runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sp_profile.report.data_types import ReportData

NAMES = (
    "density", "jaccard", "clusters", "assignments", "alike", "gallery", "recall-density", "pareto"
)  # fmt: skip
FORMATS: tuple[Format, ...] = ("png", "svg")


def draw_figures(data: ReportData, folder: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write NAME.png and NAME.svg of each figure into the folder, made where it is missing.

    Most need the profile's tables, recall-density a run, pareto an evaluation; what cannot be drawn
    is left out. Each file is written atomically and is equal for equal data under one version of
    matplotlib. Returns the paths written.
    Raises UsageError as `check_target` and ResourceError.
    """
    check_target(folder, overwrite=overwrite)
    written = []
    with drawing():
        with writing_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # One after the other, so that one at a time is in memory.
        for name in NAMES:
            figure = _figure(name, data)
            if figure is None:
                continue
            for kind in FORMATS:
                path = folder / f"{name}.{kind}"
                publish_bytes(path, encode(figure, kind))
                written.append(path)
    return tuple(written)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, figures that could not be drawn into the folder.

    Raises UsageError where matplotlib is missing, the folder is a file, or a figure is in it
    already and `overwrite` does not say that it may go.
    """
    require_matplotlib()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="name another one for the figures")
    if overwrite:
        return
    for name in NAMES:
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            if path.exists():
                raise UsageError(f"{path} exists", hint="pass --overwrite, or name another folder")


def _figure(name: str, data: ReportData) -> Figure | None:
    """One of NAMES; None where the data does not hold it."""
    from sp_profile.figures import alike, curves, gallery, heads, pareto, similarity

    match name:
        case "density":
            return heads.density_figure(data)
        case "jaccard":
            return similarity.jaccard_figure(data)
        case "clusters":
            return heads.cluster_figure(data)
        case "assignments":
            return heads.assignment_figure(data)
        case "alike":
            return alike.alike_figure(data)
        case "gallery":
            return gallery.gallery_figure(data)
        case "recall-density":
            found = data.curves
            return curves.curves_figure(found) if found is not None and found.points else None
        case _:
            assert name == "pareto"
            summary = data.evaluation
            drawn = summary is not None and summary.overview.lengths
            return pareto.pareto_figure(summary) if summary is not None and drawn else None
