"""Mutants of a run folder's shards."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import mutate
from fuzz import HERE, Check


def shard(kind: str, scratch: Path) -> Check:
    import numpy as np

    from sp_profile.shard import PromptShard, shard_from_bytes, shard_to_bytes
    from sp_profile.thumbnail import num_cells

    # The file in base is of a release without pictures; they are fuzzed too.
    older = shard_from_bytes((HERE / "base" / "shard.npz").read_bytes(), "base")
    pixels = np.arange(older.num_heads * num_cells(older.grid.num_rows), dtype=np.uint8)
    valid = shard_to_bytes(dataclasses.replace(older, mass=pixels.reshape(older.num_heads, -1)))
    names = [f.name for f in dataclasses.fields(PromptShard) if f.name not in ("prompt", "grid")]

    def values(found: PromptShard) -> Any:
        arrays = (getattr(found, name) for name in names)
        return found.prompt, found.grid, [None if a is None else a.tolist() for a in arrays]

    expected = values(shard_from_bytes(valid, "shard"))

    def check(draw: random.Random) -> str:
        if kind == "damage":
            found = shard_from_bytes(mutate.mutate_bytes(draw, valid), "shard")
            assert values(found) == expected, "accepted as something else"
            return "equal"
        found = shard_from_bytes(mutate.mutate_archive(draw, valid), "shard")
        assert values(shard_from_bytes(shard_to_bytes(found), "shard")) == values(found)
        assert all(-0.02 <= value <= 1.02 for value in found.density)
        return "equal" if values(found) == expected else "forged"

    return check
