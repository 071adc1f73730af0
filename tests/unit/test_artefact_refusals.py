"""The profile's folder: what contradicts itself is neither written nor read."""

import dataclasses
import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_profile.artefact import (
    read_heads,
    read_masks,
    read_similarity,
)
from sp_profile.tables import HEADS_SCHEMA
from sp_runtime.errors import CorruptArtefactError

# -- what contradicts itself is not written


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cluster": 5}, "cluster[0]"),
        ({"anchor_layer": -1}, "anchor_layer[0]"),
        ({"lender_head": 3}, "lender_head[0]"),
        ({"assignment": "sampled"}, "assignment[0]"),
        ({"gamma": 0.5}, "gamma[0]"),
        ({"density": 1.5}, "density[0]"),
        ({"density": float("nan")}, "density[0]"),
        ({"recall_anchor": -2.0}, "recall_anchor[0]"),
        ({"layer": 1}, "layer[0]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_contradicting_head_is_refused(tmp_path, write, examples, change, field):
    rows = examples.head_rows(examples.make_profile())
    rows[0] = dataclasses.replace(rows[0], **change)
    with pytest.raises(CorruptArtefactError) as caught:
        write(tmp_path / "p", heads=rows)
    assert caught.value.message.startswith(f"heads.parquet: {field}:")
    assert os.listdir(tmp_path) == []


def test_wrong_numbers_of_rows_are_refused(tmp_path, write, examples):
    profile = examples.make_profile()
    masks = list(examples.mask_rows(profile))
    wrong_padding = dataclasses.replace(masks[0], bits=masks[0].bits[:-1] + b"\xff")
    for parts, match in (
        ({"heads": examples.head_rows(profile)[:-1]}, "11 rows, not 12"),
        ({"masks": masks[:-1]}, "not every head"),
        ({"masks": masks[:12]}, "1 prompts, not 2"),
        ({"masks": masks[12:] + masks[:12]}, "ascending"),
        ({"masks": masks[1::-1] + masks[2:]}, "not every head"),
        ({"masks": [wrong_padding, *masks[1:]]}, "bits"),
        ({"masks": [dataclasses.replace(masks[0], tokens=9), *masks[1:]]}, "differs"),
    ):
        with pytest.raises(CorruptArtefactError, match=match):
            write(tmp_path / "p", **parts)
    assert os.listdir(tmp_path) == []


def test_profile_that_its_reader_would_refuse_is_not_written(tmp_path, write, examples):
    profile = examples.make_profile(points=())
    with pytest.raises(CorruptArtefactError, match="points"):
        write(tmp_path / "p", profile=profile)
    assert os.listdir(tmp_path) == []


# -- reading tables of another form


def rewritten(folder, profile, name, table):
    """Replace a table and correct its hash, as an attacker would."""
    pq.write_table(table, folder / name, write_page_checksum=True)
    data = (folder / name).read_bytes()
    record = next(file for file in profile.files if file.name == name)

    changed = dataclasses.replace(record, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    files = tuple(changed if file is record else file for file in profile.files)
    return dataclasses.replace(profile, files=files)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda t: t.slice(1), "rows", id="missing row"),
        pytest.param(lambda t: t.drop_columns(["density"]), "schema", id="missing column"),
        pytest.param(lambda t: t.append_column("x", t.column(0)), "schema", id="more columns"),
        pytest.param(
            lambda t: t.set_column(9, "density", pa.array([2.0] * 12, pa.float32())),
            "schema",
            id="nullable column",
        ),
        pytest.param(
            lambda t: t.set_column(9, HEADS_SCHEMA.field(9), pa.array([2.0] * 12, pa.float32())),
            r"density\[0\]: 2.0",
            id="out of range",
        ),
        pytest.param(lambda t: t.take(list(range(11, -1, -1))), r"layer\[0\]", id="other order"),
        pytest.param(
            lambda t: t.cast(t.schema.set(9, pa.field("density", pa.float64(), nullable=False))),
            "schema",
            id="other type",
        ),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, write, change, match):
    profile = write(tmp_path / "p")
    table = change(read_heads(tmp_path / "p", profile))
    profile = rewritten(tmp_path / "p", profile, "heads.parquet", table)
    with pytest.raises(CorruptArtefactError, match=match):
        read_heads(tmp_path / "p", profile)


def test_swapped_pairs_are_refused(tmp_path, write):
    profile = write(tmp_path / "p")
    table = pq.read_table(tmp_path / "p" / "similarity.parquet")
    order = [1, 0, *range(2, table.num_rows)]
    profile = rewritten(tmp_path / "p", profile, "similarity.parquet", table.take(order))
    with pytest.raises(CorruptArtefactError, match="condensed order"):
        read_similarity(tmp_path / "p", profile)


def test_masks_in_one_row_group_are_refused(tmp_path, write):
    profile = write(tmp_path / "p")
    table = pq.read_table(tmp_path / "p" / "masks.parquet")
    profile = rewritten(tmp_path / "p", profile, "masks.parquet", table)
    with pytest.raises(CorruptArtefactError, match="row group"):
        list(read_masks(tmp_path / "p", profile))
