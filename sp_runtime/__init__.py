"""Slim runtime: block-sparse prefill attention driven by a profile.

    from sp_runtime import attach, load_profile

    profile = load_profile("profiles/smollm2-135m")  # a folder, or owner/name of the hub
    with attach(model, profile) as report:           # model: a transformers model
        model.generate(input_ids, max_new_tokens=32)
    print(report)                                    # density, branches, what was dense and why

The names below are imported on first use, so that `import sp_runtime` loads neither torch nor
triton nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sp_runtime.errors import (
    CorruptArtefactError,
    FolderLockedError,
    ProfileMismatchError,
    ResourceError,
    SpError,
    UnsupportedError,
    UsageError,
)
from sp_runtime.version import __version__

if TYPE_CHECKING:
    from sp_runtime.audit import Audit
    from sp_runtime.block_index import BlockGrid, BlockIndex
    from sp_runtime.integrations.transformers import attach, resolve_point
    from sp_runtime.method_spec import parse_method
    from sp_runtime.operating_point import OperatingPoint
    from sp_runtime.ops import block_sparse_attention
    from sp_runtime.profile import Profile, load_profile
    from sp_runtime.profile_source import find_profile
    from sp_runtime.report import PrefillReport, ReportSummary

__all__ = [
    "Audit",
    "BlockGrid",
    "BlockIndex",
    "CorruptArtefactError",
    "FolderLockedError",
    "OperatingPoint",
    "PrefillReport",
    "Profile",
    "ProfileMismatchError",
    "ReportSummary",
    "ResourceError",
    "SpError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "attach",
    "block_sparse_attention",
    "find_profile",
    "load_profile",
    "parse_method",
    "resolve_point",
]

_HOMES = {
    "Audit": "sp_runtime.audit",
    "BlockGrid": "sp_runtime.block_index",
    "BlockIndex": "sp_runtime.block_index",
    "OperatingPoint": "sp_runtime.operating_point",
    "PrefillReport": "sp_runtime.report",
    "Profile": "sp_runtime.profile",
    "ReportSummary": "sp_runtime.report",
    "attach": "sp_runtime.integrations.transformers",
    "block_sparse_attention": "sp_runtime.ops",
    "find_profile": "sp_runtime.profile_source",
    "load_profile": "sp_runtime.profile",
    "parse_method": "sp_runtime.method_spec",
    "resolve_point": "sp_runtime.integrations.transformers",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # later reads do not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
