"""What a profile's files say of each other: recomputed from the masks up, and compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sp_profile.accumulators import ExactMean
from sp_profile.artefact import (
    CARD_NAME,
    FOLDER_NAMES,
    TABLE_NAMES,
    read_heads,
    read_masks,
    read_similarity,
    table_profile_id,
)
from sp_profile.shard import forced_blocks
from sp_profile.similarity import MIN_BLOCK_ROWS, Similarity, SimilarityAccumulator
from sp_profile.tables import HEADS_NAME, MASKS_NAME, NONE, SIMILARITY_NAME, SimilarityColumns
from sp_profile.verify_types import Check
from sp_runtime.block_index import BlockGrid
from sp_runtime.profile import Profile, full_attention_heads

Floats = npt.NDArray[np.float64]
_TOLERANCE = 1e-4  # tables are float32
# Files that hubs and version control put beside a profile.
_BYSTANDERS = (".gitattributes", ".gitignore", ".git", ".cache")


def check_folder(folder: Path, profile: Profile) -> Iterator[Check]:
    """Everything that can be checked without the model; small tables first, masks last.

    Raises CorruptArtefactError where a file is missing, altered or invalid in itself: what is
    checked here is whether whole files agree with each other.
    """
    yield _extra_files(folder, profile)
    yield _card(folder, profile)
    names = {file.name for file in profile.files}
    yield _table_ids(folder, profile)
    columns = None
    if SIMILARITY_NAME in names:
        columns = read_similarity(folder, profile)
        yield _evidence(profile, columns)
    density = None
    if HEADS_NAME in names:
        table = read_heads(folder, profile)
        density = table.column("density").to_numpy().astype(np.float64)
        rows = f"{table.num_rows} heads, clusters, anchors, lenders and gammas as in the profile"
        yield Check(name=HEADS_NAME, passed=True, detail=rows)
        if columns is not None:
            stored = table.column("jaccard_anchor").to_numpy()
            yield _anchors(profile, columns, stored.astype(np.float64))
    if MASKS_NAME in names:
        yield from _masks(folder, profile, columns, density)


def _extra_files(folder: Path, profile: Profile) -> Check:
    listed = {file.name for file in profile.files}
    known = listed | set(FOLDER_NAMES).difference(TABLE_NAMES)
    extra = sorted(set(os.listdir(folder)) - known - set(_BYSTANDERS))
    if not extra:
        return Check(name="folder", passed=True, detail=f"{len(profile.files)} tables, no others")
    shown = ", ".join(ascii(name) for name in extra[:3]) + (" ..." if len(extra) > 3 else "")
    return Check(name="folder", passed=False, detail=f"{len(extra)} files of no part: {shown}")


def _table_ids(folder: Path, profile: Profile) -> Check:
    for file in profile.files:
        found = table_profile_id(folder, profile, file.name)
        if found != profile.profile_id:
            detail = f"{file.name} is of profile {found}"
            return Check(name="tables: profile_id", passed=False, detail=detail)
    return Check(name="tables: profile_id", passed=True, detail="that of this profile")


def _card(folder: Path, profile: Profile) -> Check:
    path = folder / CARD_NAME
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20)
    except FileNotFoundError:
        return Check(name=CARD_NAME, passed=True, detail="none")
    passed = profile.profile_id.encode() in text
    detail = "names this profile" if passed else "is not of this profile"
    return Check(name=CARD_NAME, passed=passed, detail=detail)


def _pair(heads: int, a: int, b: int) -> int:
    """Index of a pair a < b in the condensed order."""
    return a * heads - a * (a + 1) // 2 + b - a - 1


def _evidence(profile: Profile, columns: SimilarityColumns) -> Check:
    """The clusters' mean Jaccard against the pairs of their members."""
    index = {head: number for number, head in enumerate(full_attention_heads(profile.model))}
    for number, cluster in enumerate(profile.clusters):
        members = [index[member] for member in cluster.members]
        pairs = [_pair(len(index), a, b) for n, a in enumerate(members) for b in members[n + 1 :]]
        if not pairs:
            continue
        evidence = cluster.evidence
        for field, said, values in (
            ("jaccard_mean", evidence.jaccard_mean, columns.mean),
            ("jaccard_core_mean", evidence.jaccard_core_mean, columns.core_mean),
        ):
            found = float(values[pairs].astype(np.float64).mean())
            if abs(found - said) > _TOLERANCE:
                detail = f"clusters[{number}].evidence.{field} {said:.4f}, its pairs {found:.4f}"
                return Check(name="clusters: Jaccard", passed=False, detail=detail)
    detail = f"{len(profile.clusters)} clusters agree with {SIMILARITY_NAME}"
    return Check(name="clusters: Jaccard", passed=True, detail=detail)


def _anchors(profile: Profile, columns: SimilarityColumns, stored: Floats) -> Check:
    """jaccard_anchor of heads.parquet against similarity.parquet."""
    heads = full_attention_heads(profile.model)
    index = {head: number for number, head in enumerate(heads)}
    owner = profile.clusters_by_head()
    for number, head in enumerate(heads):
        anchor = owner[head].anchor if head in owner else None
        if anchor is None:
            expected = float(NONE)
        elif anchor == head:
            expected = 1.0
        else:
            low, high = sorted((number, index[anchor]))
            expected = float(columns.mean[_pair(len(heads), low, high)])
        if abs(stored[number] - expected) > _TOLERANCE:
            detail = f"jaccard_anchor[{number}] {stored[number]:.4f}, its pair {expected:.4f}"
            return Check(name="heads: anchors", passed=False, detail=detail)
    return Check(name="heads: anchors", passed=True, detail=f"agree with {SIMILARITY_NAME}")


def _masks(
    folder: Path, profile: Profile, columns: SimilarityColumns | None, density: Floats | None
) -> Iterator[Check]:
    """Similarity and density, made again from the recorded masks."""
    heads = len(full_attention_heads(profile.model))
    tasks = {prompt.sha256: prompt.task for prompt in profile.calibration.prompts}
    similarity, densities = SimilarityAccumulator(heads), ExactMean((heads,))
    entered = prompts = 0
    for group in read_masks(folder, profile):
        prompts += 1
        first, size = group[0], profile.calibration.block_size
        packed = np.frombuffer(b"".join(row.bits for row in group), np.uint8).reshape(heads, -1)
        grid = BlockGrid(q_len=first.tokens, kv_len=first.tokens, block_size=size)
        if grid.num_rows < MIN_BLOCK_ROWS:
            continue
        entered += 1
        similarity.add(packed, grid.num_rows, tasks[first.prompt_sha256])
        bits = np.unpackbits(packed, axis=1, count=grid.num_causal_blocks).view(np.bool_)
        forced = forced_blocks(grid, local_blocks=profile.calibration.local_blocks)
        densities.add((bits | forced).mean(1, dtype=np.float32))
    yield Check(name=MASKS_NAME, passed=True, detail=f"{prompts} prompts of {heads} heads")
    if not entered:
        return
    if columns is not None:
        yield _similarity(similarity.result(), columns, entered)
    if density is not None:
        found = np.abs(densities.mean() - density)
        passed = bool(found.max() <= _TOLERANCE)
        detail = f"largest difference to the masks of {entered} prompts {found.max():.1e}"
        yield Check(name="heads: densities", passed=passed, detail=detail)


def _similarity(made: Similarity, columns: SimilarityColumns, prompts: int) -> Check:
    pairs = np.triu_indices(made.mean.shape[0], 1)
    worst = max(
        float(np.abs(matrix[pairs] - stored).max(initial=0.0))
        for matrix, stored in (
            (made.mean, columns.mean),
            (made.minimum, columns.min),
            (made.std, columns.spread),
            (made.core_mean, columns.core_mean),
        )
    )
    detail = f"largest difference to the masks of {prompts} prompts {worst:.1e}"
    return Check(name=SIMILARITY_NAME, passed=worst <= _TOLERANCE, detail=detail)
