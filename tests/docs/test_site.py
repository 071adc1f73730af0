"""The site builds without a warning, and its pages ask no other host for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")
ROOT = Path(__file__).parents[2]
_LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    loaded = [
        (page.name, url) for page in pages for url in _LOADED.findall(page.read_text("utf-8"))
    ]
    assert len(loaded) > 10
    assert [(page, url) for page, url in loaded if re.match(r"(?:https?:)?//", url)] == []
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles) == []


def test_what_is_loaded_is_there(site):
    for page in site.glob("*.html"):
        if page.name == "404.html":  # made for the root of a server
            continue
        for url in _LOADED.findall(page.read_text("utf-8")):
            if not url.startswith(("data:", "http")):
                assert (page.parent / url.partition("?")[0].partition("#")[0]).exists(), url


def test_sources_of_pictures_stay_out(site):
    assert not (site / "theme").exists()
    assert not (site / "diagrams").exists()
    assert (site / "ci" / "profiles.yml").read_text("ascii").startswith("# Checks")


def test_search_works_from_the_file_system(site):
    """The theme's search needs a web worker, which a page from a disk may not start."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = started.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.wait_for_selector("html.js", state="attached")  # the theme listens now
        page.locator("input.md-search__input").press_sequentially("medoid")  # it waits for keys
        found = page.wait_for_selector(".md-search-result__item", state="attached", timeout=60_000)
        assert "medoid" in found.text_content().lower()
        assert complaints == []
        browser.close()
