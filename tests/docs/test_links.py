"""Every relative link of README and the site leads to a file, and every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_HTML = re.compile(r"<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6} (.+?)(?:\s*\{ *#([\w-]+) *\})?$", re.MULTILINE)
_SNIPPET = re.compile(r"^--8<-- \"([^\":]+)", re.MULTILINE)


def slug(heading: str) -> str:
    """As the table of contents of the site makes it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(text: str) -> set[str]:
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    included = [(ROOT / name).read_text("utf-8") for name in _SNIPPET.findall(prose)]
    found = {name or slug(title) for title, name in _HEADING.findall(prose)}
    return found.union(*(anchors(each) for each in included))


def broken(base: Path, text: str, target: str) -> str | None:
    """Why a link of the file at `base` leads nowhere, or None."""
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = target.partition("#")
    path = base if not name else base.parent / name
    if not path.exists() and path.suffix == ".html":
        path = path.with_suffix(".md")
    if not path.exists():
        # The pictures of the included benchmarks lie beside them, and are copied by the build.
        path = ROOT / "benchmarks" / name
    if not path.exists():
        return f"{target}: there is no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8")):
        return f"{target}: there is no such heading"
    return None


def test_links_lead_somewhere(pages):
    problems, count = [], 0
    for page in pages:
        for target in (*_LINK.findall(page.prose), *_HTML.findall(page.prose)):
            count += 1
            found = broken(page.path, page.text, target)
            if found is not None:
                problems.append(f"{page.name}: {found}")
    assert count > 30
    assert not problems, "\n".join(problems)


def test_snippets_exist(site_pages):
    names = [name for page in site_pages for name in _SNIPPET.findall(page.text)]
    assert "benchmarks/README.md" in names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_tests_that_are_named_exist(pages):
    named = {
        name
        for page in pages
        for name in re.findall(r"`((?:tests|docs|benchmarks|prompts)/[\w./-]+)`", page.prose)
    }
    assert len(named) > 20
    gone = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert gone == []


@pytest.mark.parametrize(
    "target", ["no-such-page.md", "faq.md#no-such-heading", "faq.html#no-such-heading", "#nothing"]
)
def test_a_broken_link_would_be_seen(target):
    base = ROOT / "docs" / "index.md"
    assert broken(base, base.read_text("utf-8"), target) is not None
