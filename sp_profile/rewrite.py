"""A profile that differs from a stored one in what no table repeats; its tables come along."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sp_profile.artefact import read_heads, read_masks, read_similarity, write_profile
from sp_profile.tables import HEADS_NAME, MASKS_NAME, NONE, SIMILARITY_NAME, HeadRow
from sp_runtime.profile import HeadPlan, Profile, with_profile_id


def rewrite_profile(
    source: Path,
    profile: Profile,
    changed: Profile,
    target: Path,
    *,
    settings: str | None = None,
    overwrite: bool,
) -> Profile:
    """Publish `changed` as the folder `target` with the tables of `profile` in folder `source`.

    The two may differ in points, plans and head patterns, not in clusters. settings: as in
    `write_profile`, whose errors this raises too. Returns the profile as published, with its id.
    """
    tables = {file.name for file in profile.files}
    heads = similarity = masks = None
    if HEADS_NAME in tables:
        rows = read_heads(source, profile).to_pylist()
        heads = [
            _planned(HeadRow(**row), plan)
            for row, plan in zip(rows, changed.plan.heads, strict=True)
        ]
    if SIMILARITY_NAME in tables:
        similarity = read_similarity(source, profile)
    if MASKS_NAME in tables:
        masks = (row for group in read_masks(source, profile) for row in group)
    return write_profile(
        target,
        with_profile_id(changed),
        heads=heads,
        similarity=similarity,
        masks=masks,
        settings=settings,
        overwrite=overwrite,
    )


def _planned(row: HeadRow, plan: HeadPlan) -> HeadRow:
    """What heads.parquet says of a head, with its part of the plan."""
    return dataclasses.replace(
        row,
        assignment=plan.assignment,
        gamma=plan.gamma,
        lender_layer=NONE if plan.lender is None else plan.lender.layer,
        lender_head=NONE if plan.lender is None else plan.lender.head,
    )
