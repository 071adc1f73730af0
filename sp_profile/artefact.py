"""The profile's folder: written beside its place and moved there whole, verified when read."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sp_profile.atomic import publish_bytes, publish_file
from sp_profile.card import profile_card
from sp_profile.folder_swap import publish_folder, require_replaceable
from sp_profile.parquet import (
    arrow_errors,
    checked_file,
    open_verified,
    read_rows,
    sha256_of,
    table_writer,
)
from sp_profile.tables import (
    HEADS_NAME,
    HEADS_SCHEMA,
    MASKS_NAME,
    MASKS_SCHEMA,
    SIMILARITY_NAME,
    SIMILARITY_SCHEMA,
    SORTED_BY,
    HeadRow,
    MaskRow,
    SimilarityColumns,
    causal_blocks,
    check_heads,
    check_masks,
    check_similarity,
    heads_table,
    mask_bytes,
    mask_rows,
    masks_table,
    similarity_columns,
    similarity_table,
)
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile import (
    PROFILE_NAME,
    FileRecord,
    Profile,
    full_attention_heads,
    parse_profile,
    profile_to_json,
    with_profile_id,
)
from sp_runtime.profile_source import CARD_NAME, SETTINGS_NAME, SIGNATURE_NAME

TABLE_NAMES = (HEADS_NAME, SIMILARITY_NAME, MASKS_NAME)
# A profile that is replaced takes its signature with it.
FOLDER_NAMES = (*TABLE_NAMES, CARD_NAME, SETTINGS_NAME, PROFILE_NAME, SIGNATURE_NAME)
_PROFILE_ID = "sp.profile_id"
# What a row may take, packed or not, and what a file may take beside its rows.
_HEAD_BYTES = 512
_PAIR_BYTES = 64
_MASK_BYTES = 256
_FILE_BYTES = 1 << 20


def write_profile(
    folder: Path,
    profile: Profile,
    *,
    heads: Iterable[HeadRow] | None = None,
    similarity: SimilarityColumns | None = None,
    masks: Iterable[MaskRow] | None = None,
    settings: str | None = None,
    overwrite: bool = False,
) -> Profile:
    """Publish a profile's folder; returns the profile as published, with its id and file hashes.

    Everything is built in a folder beside the target, profile.json last, and moved into place at
    once: readers see the old profile or the new one. A table that is None is left out.
    heads: one row a planned head in (layer, head) order. masks: ascending by (prompt, layer,
    head), every prompt of the calibration, written prompt by prompt so that memory does not grow
    with them.
    settings: config.toml, what the command that made it was told; no part of the identity.
    Raises UsageError where the target is not empty (unless overwrite, and only a profile is ever
    overwritten), ResourceError where the disk fails, CorruptArtefactError where the parts
    contradict each other.
    """
    require_replaceable(folder, FOLDER_NAMES, PROFILE_NAME, overwrite=overwrite)
    profile = with_profile_id(dataclasses.replace(profile, files=()))
    # A profile that its own reader would refuse is never written.
    parse_profile(profile_to_json(profile).encode("ascii"))
    with publish_folder(folder, FOLDER_NAMES) as building:
        if heads is not None:
            table = heads_table(heads)
            check_heads(table, profile, HEADS_NAME)
            _write(building / HEADS_NAME, profile, HEADS_SCHEMA, [table])
        if similarity is not None:
            table = similarity_table(similarity, _num_heads(profile))
            check_similarity(table, profile, SIMILARITY_NAME)
            _write(building / SIMILARITY_NAME, profile, SIMILARITY_SCHEMA, [table])
        if masks is not None:
            _write(building / MASKS_NAME, profile, MASKS_SCHEMA, _mask_tables(masks, profile))
        tables = [name for name in TABLE_NAMES if (building / name).exists()]
        files = tuple(_record(building / name) for name in tables)
        profile = dataclasses.replace(profile, files=files)
        if settings is not None:
            publish_bytes(building / SETTINGS_NAME, settings.encode("utf-8"))
        publish_bytes(building / CARD_NAME, profile_card(profile).encode("utf-8"))
        publish_bytes(building / PROFILE_NAME, profile_to_json(profile).encode("ascii"))
    return profile


def verify_files(folder: Path, profile: Profile) -> None:
    """Hash every file that the profile lists; CorruptArtefactError names the one that is amiss."""
    for record in profile.files:
        with open_verified(folder, record):
            pass


def read_heads(folder: Path, profile: Profile) -> pa.Table:
    """heads.parquet as a checked table of HEADS_SCHEMA, one row a head in (layer, head) order.

    Like the other readers it hashes the file before Arrow opens it, and raises
    CorruptArtefactError naming the file, UsageError where the profile has no such table.
    """
    rows = len(profile.plan.heads)
    size = rows * _HEAD_BYTES
    with _open(folder, profile, HEADS_NAME, HEADS_SCHEMA, rows, size) as parquet:
        table = read_rows(parquet, HEADS_SCHEMA, max_bytes=size + _FILE_BYTES, name=HEADS_NAME)
    check_heads(table, profile, HEADS_NAME)
    return table


def read_similarity(folder: Path, profile: Profile) -> SimilarityColumns:
    """similarity.parquet as checked condensed columns."""
    heads = _num_heads(profile)
    rows = heads * (heads - 1) // 2
    size = rows * _PAIR_BYTES
    with _open(folder, profile, SIMILARITY_NAME, SIMILARITY_SCHEMA, rows, size) as parquet:
        table = read_rows(
            parquet, SIMILARITY_SCHEMA, max_bytes=size + _FILE_BYTES, name=SIMILARITY_NAME
        )
    check_similarity(table, profile, SIMILARITY_NAME)
    return similarity_columns(table)


def read_masks(folder: Path, profile: Profile) -> Iterator[tuple[MaskRow, ...]]:
    """masks.parquet prompt by prompt, ascending by hash: the rows of every head, checked."""
    heads, prompts = _num_heads(profile), len(profile.calibration.prompts)
    size = heads * sum(
        mask_bytes(causal_blocks(prompt.tokens, profile)) + _MASK_BYTES
        for prompt in profile.calibration.prompts
    )
    rows = heads * prompts
    with _open(folder, profile, MASKS_NAME, MASKS_SCHEMA, rows, size) as parquet:
        if parquet.metadata.num_row_groups != prompts:
            raise CorruptArtefactError(f"{MASKS_NAME}: not one row group a prompt")
        last = ""
        for number in range(prompts):
            table = read_rows(
                parquet,
                MASKS_SCHEMA,
                group=number,
                max_bytes=size + _FILE_BYTES,
                name=MASKS_NAME,
            )
            group = mask_rows(table)
            check_masks(group, profile, MASKS_NAME, after=last)
            last = group[0].prompt_sha256
            yield group


def table_profile_id(folder: Path, profile: Profile, name: str) -> str | None:
    """The profile id that a table carries in its own metadata; None where it carries none."""
    record = next(file for file in profile.files if file.name == name)
    with open_verified(folder, record) as file, arrow_errors(name):
        metadata = pq.read_metadata(file).metadata or {}
    found = metadata.get(_PROFILE_ID.encode())
    return None if found is None else found.decode("utf-8", "backslashreplace")


def _num_heads(profile: Profile) -> int:
    return len(full_attention_heads(profile.model))


@contextlib.contextmanager
def _open(
    folder: Path, profile: Profile, name: str, schema: pa.Schema, rows: int, size: int
) -> Iterator[pq.ParquetFile]:
    record = next((file for file in profile.files if file.name == name), None)
    if record is None:
        raise UsageError(
            f"the profile in {folder} has no {name}", hint="`sp-profile cluster` writes it"
        )
    limit = size + _FILE_BYTES
    with (
        open_verified(folder, record, max_bytes=limit) as file,
        checked_file(file, schema, rows=rows, max_bytes=limit, name=name) as parquet,
    ):
        yield parquet


def _mask_tables(rows: Iterable[MaskRow], profile: Profile) -> Iterator[pa.Table]:
    last, prompts = "", 0
    for _, of_prompt in itertools.groupby(rows, key=lambda row: row.prompt_sha256):
        group = tuple(of_prompt)
        check_masks(group, profile, MASKS_NAME, after=last)
        last, prompts = group[0].prompt_sha256, prompts + 1
        yield masks_table(group)
    expected = len(profile.calibration.prompts)
    if prompts != expected:
        raise CorruptArtefactError(f"{MASKS_NAME}: has {prompts} prompts, not {expected}")


def _write(path: Path, profile: Profile, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    metadata = {_PROFILE_ID: profile.profile_id, "sp.schema_version": profile.schema_version}
    with (
        publish_file(path) as file,
        table_writer(file, schema, sorted_by=SORTED_BY[path.name], metadata=metadata) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _record(path: Path) -> FileRecord:
    with open(path, "rb") as file:
        return FileRecord(name=path.name, sha256=sha256_of(file), bytes=file.tell())
