"""What the build adds to the pages: the pictures of files that they include from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Pages include it as a snippet, so that its links are relative to the site's root as well.
_INCLUDED = Path("benchmarks/README.md")
_LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that the included document links to, under the same relative name."""
    folder = Path(config.config_file_path).parent / _INCLUDED.parent
    targets = _LINK.findall((folder / _INCLUDED.name).read_text("utf-8"))
    for target in dict.fromkeys(targets):
        if (folder / target).is_file() and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(folder / target)))
    return files
