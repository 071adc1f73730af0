"""The written pages: README, the site's Markdown, and what they hold in code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)\n\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A Markdown file; name: relative to the root of the repository."""

    name: str
    path: Path
    text: str

    @property
    def blocks(self) -> list[str]:
        """What its fenced code blocks hold."""
        return [block for _, _, block in _FENCE.findall(self.text)]

    @property
    def prose(self) -> str:
        """The text without fenced code blocks."""
        return _FENCE.sub("", self.text)


def page(path: Path) -> Page:
    return Page(name=str(path.relative_to(ROOT)), path=path, text=path.read_text("utf-8"))


@pytest.fixture(scope="session")
def site_pages() -> list[Page]:
    """The pages of the site that people write; the reference is generated from the commands."""
    return [page(path) for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="session")
def pages(site_pages: list[Page]) -> list[Page]:
    names = ("README.md", "CHANGELOG.md", "benchmarks/README.md")
    reference = [page(path) for path in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    return [*(page(ROOT / name) for name in names), *site_pages, *reference]
