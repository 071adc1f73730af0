"""The page in a real Chromium without a screen: it draws, and a head can be reached and shown."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sp_profile.report.data_types import ReportData
from sp_profile.report.page import render_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
SHOTS = os.environ.get("SP_SCREENSHOTS")
WAIT_MS = 60_000


class Watched:
    """A page and what it complained about or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def until(self, condition: str) -> None:
        """Wait for a condition; playwright's own way needs eval, which the page forbids itself."""
        end = time.monotonic() + WAIT_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def open(self, path: Path, fragment: str = "") -> None:
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector('html[data-ready="true"]', timeout=WAIT_MS)

    def title(self) -> str:
        text: str = self.page.inner_text("#head-title")
        return text

    def pixels(self, canvas: str) -> list[int]:
        found: list[int] = self.page.evaluate(
            "id => { const c = document.getElementById(id);"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }",
            canvas,
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Containers run as root and have a small /dev/shm.
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render_report(data))
    return path


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    watched = Watched(context.new_page())
    watched.open(report)
    yield watched
    context.close()


def test_it_draws_without_an_error_and_loads_nothing(
    opened: Watched, report: Path, tmp_path: Path
) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [
        report.as_uri()
    ]
    drawn = opened.page.locator(".plot .main-svg").count()
    assert drawn >= opened.page.locator(".plot").count() > 5
    assert opened.page.evaluate("window.pwned") is None
    assert opened.page.locator("#status").is_hidden()
    shot = (Path(SHOTS) if SHOTS else tmp_path) / "report.png"
    opened.page.screenshot(path=str(shot), full_page=True)
    assert shot.stat().st_size > 50_000


def test_clicking_a_head_shows_it(opened: Watched, data: ReportData) -> None:
    for index in (5, 2):
        opened.page.click(f'#grid [data-head="{index}"]')
        assert opened.title() == f"Layer {index // 4}, head {index % 4}"
        assert opened.page.get_attribute(f'[data-head="{index}"]', "aria-selected") == "true"
        for number, shown in enumerate(data.gallery):
            # Colours rise with the value: the brightest pixels are the fullest cells.
            mask = shown.masks[index].ravel()
            red = opened.pixels(f"mask-{number}")[::4]
            alpha = opened.pixels(f"mask-{number}")[3::4]
            causal = [row >= column for row in range(shown.side) for column in range(shown.side)]
            assert [value == 255 for value in alpha] == causal
            full, empty = (mask == 255).nonzero()[0], (mask == 0).nonzero()[0]
            assert {red[place] for place in full} == {254}
            assert {red[place] for place in empty if causal[place]} <= {0}
    assert opened.page.locator('[aria-selected="true"]').count() == 1


def test_the_keyboard_reaches_every_head(opened: Watched) -> None:
    page = opened.page
    page.focus("#pick-head")
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.matches('#grid [role=gridcell]')"):
        page.keyboard.press("Tab")
    for key, title in (
        ("PageUp", "Layer 0"),
        ("Home", "Layer 0, head 0"),
        ("ArrowRight", "Layer 0, head 1"),
        ("ArrowDown", "Layer 1, head 1"),
        ("ArrowDown", "Layer 1, head 1"),
        ("End", "Layer 1, head 3"),
        ("ArrowRight", "Layer 1, head 3"),
        ("ArrowLeft", "Layer 1, head 2"),
    ):
        page.keyboard.press(key)
        assert opened.title().startswith(title), key
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.select_option("#pick-layer", "0")
    assert opened.title() == "Layer 0, head 2"
    assert page.url.endswith("#head-0-2")


def test_a_click_into_a_map_and_an_address_show_the_head(
    opened: Watched, report: Path, data: ReportData
) -> None:
    page = opened.page
    page.locator("#density .nsewdrag").scroll_into_view_if_needed()
    box = page.locator("#density .nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.63, box["y"] + box["height"] * 0.75)
    opened.until("document.activeElement.id === 'head-title'")
    assert opened.title() == "Layer 1, head 2"
    page.goto("about:blank")
    opened.open(report, "#head-0-3")
    assert opened.title() == "Layer 0, head 3"


def test_the_matrix_reads_out_pairs(opened: Watched, data: ReportData) -> None:
    page = opened.page
    plot = page.locator("#jaccard .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.7, steps=4)
    opened.until("document.getElementById('jaccard-readout').textContent.includes('with')")
    said = page.inner_text("#jaccard-readout")
    names, value = said.split(": Jaccard ")
    first, second = (tuple(map(int, name.split("."))) for name in names.split(" with "))
    assert data.similarity is not None
    a, b = sorted(data.refs.index(ref) for ref in (first, second))
    count = len(data.refs)
    pair = a * count - a * (a + 1) // 2 + b - a - 1
    expected = 1.0 if a == b else float(data.similarity.mean[pair])
    assert float(value) == pytest.approx(expected, abs=0.011)


def test_a_narrow_screen_does_not_overflow(opened: Watched) -> None:
    page = opened.page
    page.set_viewport_size({"width": 400, "height": 800})
    opened.until(
        "[...document.querySelectorAll('.plot .main-svg')].every(s => s.clientWidth < 400)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1280, "height": 900})


def test_colours_follow_the_system_and_the_button(opened: Watched) -> None:
    page = opened.page
    white = "rgb(255, 255, 255)"

    def background() -> str:
        found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    assert background() == white
    page.emulate_media(color_scheme="dark")
    assert background() != white
    page.click("#theme")  # light
    assert background() == white
    page.emulate_media(color_scheme="light")
    page.click("#theme")  # dark
    assert background() != white
    ink = page.evaluate("getComputedStyle(document.querySelector('#density .xtick text')).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    page.click("#theme")
    assert background() == white


def test_it_prints_in_light_colours_with_everything_open(opened: Watched, tmp_path: Path) -> None:
    page = opened.page
    page.emulate_media(color_scheme="dark")
    page.evaluate(
        "window.addEventListener('beforeprint', () => { window.opened ="
        " [...document.querySelectorAll('details')].every((one) => one.open) })"
    )
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4", print_background=True)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.evaluate("window.opened") is True
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    page.emulate_media(media="screen", color_scheme="light")
    assert opened.complaints == []
