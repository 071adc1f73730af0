"""Slim runtime: block-sparse prefill attention driven by a profile.

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
    from sp_runtime.block_index import BlockGrid, BlockIndex
    from sp_runtime.integrations.transformers import attach
    from sp_runtime.operating_point import OperatingPoint
    from sp_runtime.ops import block_sparse_attention
    from sp_runtime.profile import load_profile

__all__ = [
    "BlockGrid",
    "BlockIndex",
    "CorruptArtefactError",
    "FolderLockedError",
    "OperatingPoint",
    "ProfileMismatchError",
    "ResourceError",
    "SpError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "attach",
    "block_sparse_attention",
    "load_profile",
]

_HOMES = {
    "BlockGrid": "sp_runtime.block_index",
    "BlockIndex": "sp_runtime.block_index",
    "OperatingPoint": "sp_runtime.operating_point",
    "attach": "sp_runtime.integrations.transformers",
    "block_sparse_attention": "sp_runtime.ops",
    "load_profile": "sp_runtime.profile",
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
