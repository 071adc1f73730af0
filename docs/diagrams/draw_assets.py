"""Draws the pictures of the README and of these pages anew, from a shipped profile.

    python docs/diagrams/draw_assets.py [RUN] [EVAL]

Writes docs/assets/figures/*.png (those of `sp-profile report --figures` that the pages show),
docs/assets/images/report-light.png and report-dark.png (its top), evaluation-light.png
and evaluation-dark.png (its evaluation), and show.png (the plan and the maps of `sp-profile show`
in 80 columns). RUN, the folder that the profile was made from, adds attention masses; EVAL is for
the evaluation, which stays as it is without it. Needs the extras `report`
and `plot`, playwright and a Chromium in the path.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "docs" / "assets"
PROFILE = ROOT / "profiles" / "smollm2-135m-32k"
MAX_BYTES = 300_000
COLUMNS = 80
# Of DejaVu Sans Mono at 12 px, where lines touch and half blocks leave no gaps.
LINE_PIXELS, COLUMN_PIXELS = 14, 7.225
PAGE = """<body style="margin:12px;background:{background};color:{foreground}"><pre
style="margin:0;font:12px/14px 'DejaVu Sans Mono'">{code}</pre></body>"""
# recall-density has more curves than can be told apart on a page.
FIGURES = ("alike", "assignments", "clusters", "gallery", "jaccard")
# Of a screenshot of the report: where it is in the page, and its pixels.
SHOTS = {
    "report": ("#head-4-6", (1200, 1180)),
    "evaluation": ("#evaluation", (1200, 1020)),
}
REPORT_READY = 'html[data-ready="true"]'
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, metavar="[RUN] [EVAL]")
    parser.add_argument("--profile", type=Path, default=PROFILE)
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    if not browser:
        parser.error("no Chromium in the path")
    images = ASSETS / "images"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        page = scratch / "report.html"
        sp_profile(
            "report", args.profile, *args.sources, "-o", page, "--figures", scratch / "figures"
        )
        (ASSETS / "figures").mkdir(parents=True, exist_ok=True)
        for figure in sorted((scratch / "figures").glob("*.png")):
            if figure.stem in FIGURES:
                shutil.copyfile(figure, ASSETS / "figures" / figure.name)
        has_evaluation = (scratch / "figures" / "pareto.png").exists()
        for name, (place, size) in SHOTS.items():
            for scheme in SCHEMES if name != "evaluation" or has_evaluation else ():
                target = images / f"{name}-{scheme}.png"
                screenshot(
                    browser, page.as_uri() + place, target, size, scheme=scheme, ready=REPORT_READY
                )
        terminal = scratch / "terminal.html"
        lines = draw_terminal(terminal, args.profile)
        size = (round(COLUMNS * COLUMN_PIXELS) + 24, lines * LINE_PIXELS + 24)
        screenshot(browser, terminal.as_uri(), images / "show.png", size, scale=2)
    for picture in sorted(ASSETS.glob("*/*.png")):
        size_bytes = picture.stat().st_size
        sys.stdout.write(f"{picture.relative_to(ROOT)}: {size_bytes / 1000:.0f} kB\n")
        if size_bytes > MAX_BYTES:
            sys.exit(f"{picture} is over {MAX_BYTES / 1000:.0f} kB")


def sp_profile(*arguments: str | Path, **variables: str) -> str:
    """What the command prints; it ends the script where it fails."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sp-profile")), *map(str, arguments)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def draw_terminal(target: Path, profile: Path) -> int:
    """Write the plan and the maps of `sp-profile show` as a page; returns the lines."""
    said = sp_profile(
        "show", profile, FORCE_COLOR="1", COLORTERM="truecolor", TERM="xterm-256color",
        COLUMNS=str(COLUMNS),
    )  # fmt: skip
    lines = [Text.from_ansi(line) for line in said.splitlines()]
    plain = [line.plain for line in lines]
    start = next(n for n, line in enumerate(plain) if line.startswith("plan for"))
    part = lines[start : plain.index("operating points") - 1]
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True,
        color_system="truecolor",
    )  # fmt: skip
    for line in part:
        console.print(line)
    target.write_text(console.export_html(theme=MONOKAI, inline_styles=True, code_format=PAGE))
    return len(part)


def screenshot(
    browser: str,
    address: str,
    target: Path,
    size: tuple[int, int],
    *,
    scheme: Scheme = "light",
    ready: str = "pre",
    scale: int = 1,
) -> None:
    """A page from the element that the address names, or from its top, as a PNG.

    It is taken once the page has `ready`, `scale` pixels a unit of `size`.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = chromium.new_page(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            device_scale_factor=scale,
            reduced_motion="reduce",
        )
        page.goto(address)
        page.wait_for_selector(ready, timeout=120_000)
        # Charts that were drawn meanwhile have moved it.
        page.evaluate("document.getElementById(location.hash.slice(1))?.scrollIntoView()")
        page.screenshot(path=target)
        chromium.close()


if __name__ == "__main__":
    main()
