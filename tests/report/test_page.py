"""The page: self-contained, escaped, small, and with something to say where little was measured."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sp_profile.artefact import write_profile
from sp_profile.eval.branches import HeadBranches, MethodBranches
from sp_profile.report.data import load_report_data
from sp_profile.report.data_types import ReportData
from sp_profile.report.page import render_report

NASTY = "<script>window.pwned = 1</script>"
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction"}


class Elements(HTMLParser):
    """Every element with its attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.found if "id" in attrs]


def rendered(data: ReportData) -> str:
    return render_report(data).decode("utf-8")


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return rendered(data)


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'id="payload">([^<]*)<', page)
    assert found is not None
    document: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(found[1])))
    return document


def test_everything_is_in_the_one_file(page: str) -> None:
    elements = Elements(page)
    for tag, attrs in elements.found:
        for name in LOADING & set(attrs):
            assert str(attrs[name]).startswith("#"), (tag, name, attrs[name])
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg", "", style[1])
    assert page.count('id="plotly-code"') == 1
    (policy,) = (a["content"] for t, a in elements.found if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]


def test_ids_are_unique_and_labels_point_at_them(page: str) -> None:
    elements = Elements(page)
    ids = elements.ids()
    assert len(ids) == len(set(ids))
    for _, attrs in elements.found:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if str(attrs.get("href", "")).startswith("#"):
            assert str(attrs["href"])[1:] in ids


def test_equal_data_give_equal_bytes(data: ReportData, page: str) -> None:
    assert rendered(data) == page


def test_names_are_escaped(data: ReportData) -> None:
    # A task of that name is in the calibration already.
    profile = dataclasses.replace(data.profile, model_name=NASTY)
    prompt = dataclasses.replace(data.gallery[0], text=f"{NASTY}</pre>")
    nasty = dataclasses.replace(data, profile=profile, gallery=(prompt, *data.gallery[1:]))
    page = rendered(nasty)
    assert "<script>window" not in page
    assert page.count("&lt;script&gt;window.pwned") >= 4
    assert len(Elements(page).scripts) == 3
    figures = json.dumps(payload(page)["charts"])
    assert "<script" not in figures
    assert "&lt;script" in figures


def test_text_is_shown_only_where_it_was_given(data: ReportData, page: str) -> None:
    assert "Text of the prompt" not in page
    given = dataclasses.replace(data.gallery[0], text="once upon a time")
    assert "once upon a time" in rendered(dataclasses.replace(data, gallery=(given,)))


def test_everything_that_was_measured_has_its_place(page: str) -> None:
    document = payload(page)
    charts = set(document["charts"])
    assert {"density", "clusters", "jaccard", "spread", "spread-prompts", "pair-spread"} <= charts
    assert {"plan", "plan-cost", "pareto-density-512", "pareto-time-512"} <= charts
    assert any(name.startswith("curves-") for name in charts)
    assert {"density", "jaccard", "pareto-density-512"} <= set(Elements(page).ids())
    for words in ("Operating points", "Clusters and their evidence", "Branches that heads took"):
        assert words in page
    assert document["count"] == len(document["heads"]["density"]) == 8
    assert document["gallery"][0]["mass"] is not None
    assert "attention mass itself is not" not in page


def test_a_map_of_branches_shows_what_heads_took_most(data: ReportData) -> None:
    assert data.evaluation is not None
    overview = data.evaluation.overview
    taken = MethodBranches(
        method=overview.methods[-1].label,
        prefills=4,
        branches=(
            HeadBranches(name="dense", counts=(4, 3, 0, 0, 1, 4, 0, 0)),
            HeadBranches(name="shared", counts=(0, 1, 4, 4, 3, 0, 4, 4)),
        ),
    )
    changed = dataclasses.replace(overview, branches=(taken,))
    evaluation = dataclasses.replace(data.evaluation, overview=changed)
    page = rendered(dataclasses.replace(data, evaluation=evaluation))
    (trace,) = payload(page)["charts"]["branches-0"]["figure"]["data"]
    assert trace["text"] == [["D", "D", "b", "b"], ["b", "D", "b", "b"]]
    assert trace["customdata"][0][1] == "layer 0, head 1: dense 75 %, shared 25 %"
    row = re.search(r"<td>4</td><td>37.5</td><td>62.5</td>", page)
    assert row is not None


def test_the_pairs_are_those_of_the_profile(data: ReportData, page: str) -> None:
    jaccard = payload(page)["jaccard"]
    pairs = base64.b64decode(jaccard["pairs"])
    assert data.similarity is not None
    assert len(pairs) == 28
    for level, value in zip(pairs, data.similarity.mean.tolist(), strict=True):
        assert level / jaccard["levels"] == pytest.approx(value, abs=0.5 / jaccard["levels"] + 1e-6)


def test_a_profile_alone_says_what_is_missing(measured) -> None:
    page = rendered(load_report_data(measured.profile))
    assert "it is in the run, which was not given" in page
    assert payload(page)["gallery"][0]["mass"] is None
    assert 'id="evaluation"' not in page


def test_an_imported_profile_has_a_page(examples: ModuleType, tmp_path: Path) -> None:
    profile = examples.make_profile()
    bare = dataclasses.replace(
        profile,
        calibration=dataclasses.replace(profile.calibration, prompts=()),
        clustering=None,
        plan=dataclasses.replace(profile.plan, heads=()),
        head_patterns=examples.head_patterns(profile.model),
    )
    write_profile(tmp_path / "p", bare)
    page = rendered(load_report_data(tmp_path / "p"))
    assert "There is no plan" in page
    assert "No block masks were recorded" in page
    assert set(payload(page)["charts"]) == {"clusters"}
    assert "0.61" not in page  # evidence of clusters that were not made here
    assert "Patterns of method minference (search)" in page
    assert "Windows of method moa (search)" in page
    none = dataclasses.replace(load_report_data(tmp_path / "p"), profile=_without_clusters(bare))
    assert "There are no clusters" in rendered(none)


def test_a_thousand_heads_fit_into_ten_megabytes(make_data: Callable[..., ReportData]) -> None:
    page = render_report(make_data(32, 32))
    assert len(page) < 10_000_000
    document = payload(page.decode("utf-8"))
    assert document["count"] == 1024
    assert len(base64.b64decode(document["gallery"][2]["mass"])) == 1024 * 528


def _without_clusters(profile: Any) -> Any:
    return dataclasses.replace(profile, clusters=())
