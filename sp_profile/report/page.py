"""The report as one HTML page that loads nothing: style, script, plotly and data lie inside it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sp_profile.figures.palette import CIVIDIS
from sp_profile.report.chart import Chart
from sp_profile.report.charts_branches import branch_charts, branch_table
from sp_profile.report.charts_heads import cluster_chart, density_chart, plan_charts
from sp_profile.report.charts_measured import curve_charts, evidence_chart, pareto_charts
from sp_profile.report.charts_similarity import jaccard_chart, pair_spread_chart, spread_charts
from sp_profile.report.data_types import ReportData
from sp_profile.report.payload import prompt_label, report_payload
from sp_profile.report.tables import (
    Table,
    cluster_table,
    facts,
    layer_table,
    pattern_tables,
    plan_tables,
    points_table,
    summary_rows,
)
from sp_profile.report.tables_evaluation import evaluation_notes, evaluation_tables
from sp_profile.report.wording import MINUS
from sp_runtime.version import __version__

_TEMPLATES = Path(__file__).with_name("templates")
_Item = TypeVar("_Item", Chart, Table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page. wide: one chart a row; folded: tables that open on request."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    wide: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryView:
    """What the gallery's template needs. pictures: (id, name) of each prompt's canvases."""

    prompts: tuple[PromptView, ...]
    pictures: tuple[tuple[str, str], ...]
    has_mass: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptView:
    label: str
    side: int
    text: str | None


def render_report(data: ReportData) -> bytes:
    """The page in UTF-8; equal data give equal bytes. Needs plotly and jinja2."""
    import jinja2
    from plotly.offline import get_plotlyjs

    sections = _sections(data)
    plotly, script = get_plotlyjs(), _read("report.js")
    gradient = f"linear-gradient(90deg, {', '.join(CIVIDIS)})"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    page = environment.get_template("report.html.jinja").render(
        profile=data.profile,
        sections=sections,
        facts=facts(data),
        summary=summary_rows(data.profile),
        gallery=_gallery(data),
        style=_read("report.css").replace("{{ gradient }}", gradient),
        script=script,
        plotly=_packed(plotly),
        payload=_packed(
            report_payload(data, (chart for section in sections for chart in section.charts))
        ),
        policy=_policy(script, plotly),
        generator=f"sparse-prefill {__version__}",
    )
    return page.encode("utf-8")


def _sections(data: ReportData) -> tuple[Section, ...]:
    """In the order of the page; what has nothing to show says why."""
    profile = data.profile
    found = [
        Section(id="glance", title="At a glance"),
        _heads_section(data),
        _similarity_section(data),
        Section(
            id="sharing",
            title="Sharing",
            notes=_sharing_notes(data),
            charts=_present(evidence_chart(data)),
            tables=_present(cluster_table(profile)),
            wide=True,
        ),
        Section(
            id="the-plan",
            title="Plan",
            notes=_plan_notes(data),
            charts=tuple(plan_charts(data)),
            tables=(*plan_tables(profile), points_table(profile)),
            folded=tuple(pattern_tables(profile)),
        ),
    ]
    if data.curves is not None:
        found.append(
            Section(
                id="curves",
                title="Recall and density",
                notes=("; ".join(data.curves.notes) + ".",),
                charts=tuple(curve_charts(data)),
            )
        )
    if data.evaluation is not None:
        found.append(
            Section(
                id="evaluation",
                title="Evaluation",
                notes=evaluation_notes(data.evaluation),
                charts=(*pareto_charts(data), *branch_charts(data)),
                tables=(
                    *evaluation_tables(data.evaluation),
                    *_present(branch_table(data.evaluation)),
                ),
            )
        )
    return tuple(found)


def _heads_section(data: ReportData) -> Section:
    notes = []
    if not data.gallery:
        notes.append("No block masks were recorded, so there are no pictures of heads.")
    elif not any(prompt.mass is not None for prompt in data.gallery):
        why = "its run holds none" if data.has_run else "it is in the run, which was not given"
        notes.append(
            "Pictures are the recorded block masks, binned; the attention mass itself is not "
            f"shown: {why}."
        )
    return Section(
        id="heads",
        title="Heads",
        notes=tuple(notes),
        charts=_present(density_chart(data), cluster_chart(data)),
        folded=_present(layer_table(data)),
    )


def _similarity_section(data: ReportData) -> Section:
    nothing = "Nothing was measured: an imported profile holds clusters without their evidence."
    return Section(
        id="similarity",
        title="Similarity",
        notes=() if data.similarity is not None else (nothing,),
        charts=_present(jaccard_chart(data), *spread_charts(data), pair_spread_chart(data)),
        wide=True,
    )


def _sharing_notes(data: ReportData) -> tuple[str, ...]:
    profile = data.profile
    if not profile.clusters:
        return ("There are no clusters: no heads are alike enough, or none were looked for.",)
    settings = profile.clustering
    made = (
        "The clusters come from a published file, without evidence."
        if settings is None
        else f"{settings.linkage.capitalize()} linkage on 1 {MINUS} Jaccard, cut at "
        f"{settings.threshold:g}; clusters of at least {settings.min_cluster_size} heads; "
        f"enabled by {settings.enable}."
    )
    if any(cluster.enabled for cluster in profile.clusters):
        return (made,)
    return (
        made,
        "No cluster is enabled: under the published rules every head runs vertical-slash. The "
        "plan lends between single heads all the same, where that pays.",
    )


def _plan_notes(data: ReportData) -> tuple[str, ...]:
    plan = data.profile.plan
    if not plan.heads:
        return ("There is no plan: nothing was measured, and rule plan is refused.",)
    goal = f"every head keeps at least {plan.recall_floor:g} of its attention mass"
    if plan.target_recall is not None:
        goal = f"heads keep {plan.target_recall:g} of their attention mass on average, and {goal}"
    prompts = "the calibration prompts"
    if plan.min_length is not None:
        prompts += f" of at least {plan.min_length:,} tokens"
    return (f"The cheapest way found in which {goal}, as measured on {prompts}.",)


def _gallery(data: ReportData) -> GalleryView:
    has_mass = any(prompt.mass is not None for prompt in data.gallery)
    pictures = [("mask", "mask"), ("anchor-mask", "anchor's mask")]
    if has_mass:
        pictures[1:1] = [("mass", "mass")]
        pictures.append(("anchor-mass", "anchor's mass"))
    return GalleryView(
        prompts=tuple(
            PromptView(label=prompt_label(prompt), side=prompt.side, text=prompt.text)
            for prompt in data.gallery
        ),
        pictures=tuple(pictures),
        has_mass=has_mass,
    )


def _present(*found: _Item | None) -> tuple[_Item, ...]:
    return tuple(item for item in found if item is not None)


def _packed(text: str) -> str:
    """Deflated, as base64: mail-sized, and nothing in it can end a script element."""
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _policy(*scripts: str) -> str:
    """No network at all, and no script but these: a text that slips into the page cannot run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode('utf-8')).digest()).decode('ascii')}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
