"""The gallery's pictures: every head's block mask and mass on at most three prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sp_profile.report.data_types import MAX_PROMPTS, GalleryPrompt
from sp_profile.shard import PromptShard
from sp_profile.tables import MaskRow
from sp_profile.thumbnail import as_squares, cell_of_blocks, num_cells, side_of
from sp_runtime.profile import Profile, PromptRecord, full_attention_heads

_LEVELS = 255
_NO_ANCHOR = -1
_Key = tuple[float, bool, str]


def choose_prompts(prompts: Sequence[PromptRecord]) -> tuple[PromptRecord, ...]:
    """At most three, ascending by tokens: the longest, the shortest and one between them.

    Tasks differ where they can; ties go to the lower hash.
    """
    if len(prompts) <= MAX_PROMPTS:
        return tuple(sorted(prompts, key=lambda p: (p.tokens, p.sha256)))
    logs = {prompt.sha256: math.log(prompt.tokens) for prompt in prompts}
    low, high = min(logs.values()), max(logs.values())
    chosen: list[PromptRecord] = []
    for target in (high, low, (low + high) / 2):
        tasks = {prompt.task for prompt in chosen}

        def badness(prompt: PromptRecord, target: float = target, tasks: set[str] = tasks) -> _Key:
            distance = round(abs(logs[prompt.sha256] - target), 1)
            return (distance, prompt.task in tasks, prompt.sha256)

        chosen.append(min((p for p in prompts if p not in chosen), key=badness))
    return tuple(sorted(chosen, key=lambda p: (p.tokens, p.sha256)))


def gallery_prompt(
    prompt: PromptRecord,
    rows: Sequence[MaskRow],
    profile: Profile,
    *,
    shard: PromptShard | None = None,
    text: str | None = None,
) -> GalleryPrompt:
    """The pictures of one prompt from its masks, and from its shard where there is a run."""
    packed = np.frombuffer(b"".join(row.bits for row in rows), np.uint8).reshape(len(rows), -1)
    anchors = anchor_indices(profile)
    num_rows = -(-prompt.tokens // profile.calibration.block_size)
    mass = None if shard is None or shard.mass is None else as_squares(shard.mass)
    return GalleryPrompt(
        prompt=prompt,
        side=side_of(num_rows),
        masks=mask_pictures(packed, num_rows),
        mass=mass,
        density=_density(packed, rows[0].blocks),
        jaccard_anchor=_jaccard(packed, anchors),
        recall_anchor=None if shard is None else _recall(shard, anchors),
        text=text,
    )


def mask_pictures(packed: NDArray[np.uint8], num_rows: int) -> NDArray[np.uint8]:
    """uint8 [LH, n, n] of packed masks, uint8 [LH, ceil(T / 8)], over R block rows."""
    cells = cell_of_blocks(num_rows)
    size = num_cells(num_rows)
    blocks = np.bincount(cells, minlength=size)
    pictures = np.zeros((len(packed), size), dtype=np.uint8)
    for head, bits in enumerate(packed):
        mask = np.unpackbits(bits, count=len(cells))
        on = np.bincount(cells, weights=mask, minlength=size)
        pictures[head] = np.rint(_LEVELS * on / blocks).astype(np.uint8)
    return as_squares(pictures)


def anchor_indices(profile: Profile) -> NDArray[np.int64]:
    """int64 [LH]: the head index of each head's anchor; -1 where there is none, or it is one."""
    refs = full_attention_heads(profile.model)
    index: Mapping[object, int] = {ref: number for number, ref in enumerate(refs)}
    of_head = profile.clusters_by_head()
    anchors = np.full(len(refs), _NO_ANCHOR, dtype=np.int64)
    for number, ref in enumerate(refs):
        cluster = of_head.get(ref)
        if cluster is not None and cluster.anchor is not None and cluster.anchor != ref:
            anchors[number] = index[cluster.anchor]
    return anchors


def _density(packed: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
    on = np.bitwise_count(packed).sum(1, dtype=np.int64)
    return (on / blocks).astype(np.float32)


def _jaccard(packed: NDArray[np.uint8], anchors: NDArray[np.int64]) -> NDArray[np.float32]:
    found = np.full(len(packed), np.nan, dtype=np.float32)
    for head in np.flatnonzero(anchors >= 0):
        one, other = packed[head], packed[anchors[head]]
        union = int(np.bitwise_count(one | other).sum(dtype=np.int64))
        shared = int(np.bitwise_count(one & other).sum(dtype=np.int64))
        found[head] = shared / union if union else 1.0
    return found


def _recall(shard: PromptShard, anchors: NDArray[np.int64]) -> NDArray[np.float32]:
    heads = np.flatnonzero(anchors >= 0)
    recall = shard.recall_exact[heads, anchors[heads]]
    found = np.full(len(anchors), np.nan, dtype=np.float32)
    # -1 where the anchor's layer comes after the head's.
    found[heads] = np.where(recall < 0, np.nan, recall)
    return found
