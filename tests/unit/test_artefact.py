"""The profile's folder: what is written is read back, faults leave the old profile or the new."""

import dataclasses
import errno
import io
import os
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_profile import atomic, folder_swap
from sp_profile.artefact import read_heads, read_masks, read_similarity, verify_files
from sp_profile.tables import HEADS_SCHEMA, MASKS_SCHEMA, SIMILARITY_SCHEMA, heads_table
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.profile import PromptRecord, load_profile

NAMES = ["README.md", "heads.parquet", "masks.parquet", "profile.json", "similarity.parquet"]


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- what is written is read back


def test_everything_reads_back(tmp_path, write, examples):
    profile = write(tmp_path / "p")
    assert sorted(os.listdir(tmp_path / "p")) == NAMES
    assert load_profile(tmp_path / "p") == profile
    assert [file.name for file in profile.files] == [
        "heads.parquet",
        "similarity.parquet",
        "masks.parquet",
    ]
    verify_files(tmp_path / "p", profile)
    assert read_heads(tmp_path / "p", profile).equals(heads_table(examples.head_rows(profile)))
    expected = examples.similarity(profile)
    found = read_similarity(tmp_path / "p", profile)
    for name in ("mean", "min", "spread", "core_mean"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    rows = [row for group in read_masks(tmp_path / "p", profile) for row in group]
    assert rows == list(examples.mask_rows(profile))


def test_files_do_not_depend_on_the_run(tmp_path, write):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_masks_are_optional(tmp_path, write):
    profile = write(tmp_path / "p", masks=None)
    assert "masks.parquet" not in os.listdir(tmp_path / "p")
    with pytest.raises(UsageError, match=r"has no masks\.parquet"):
        next(read_masks(tmp_path / "p", profile))


@pytest.mark.parametrize(
    ("name", "schema", "sorted_by"),
    [
        ("heads.parquet", HEADS_SCHEMA, [0, 1]),
        ("similarity.parquet", SIMILARITY_SCHEMA, [0, 1]),
        ("masks.parquet", MASKS_SCHEMA, [0, 1, 2]),
    ],
)
def test_parquet_form(tmp_path, write, name, schema, sorted_by):
    profile = write(tmp_path / "p")
    file = pq.ParquetFile(tmp_path / "p" / name)
    assert file.schema_arrow.equals(schema)
    assert not any(field.nullable for field in file.schema_arrow)
    assert file.schema_arrow.metadata[b"sp.profile_id"].decode() == profile.profile_id
    group = file.metadata.row_group(0)
    assert [column.column_index for column in group.sorting_columns] == sorted_by
    assert group.column(0).compression == "ZSTD"
    assert group.column(0).is_stats_set


def test_masks_have_a_row_group_a_prompt(tmp_path, write):
    write(tmp_path / "p")
    metadata = pq.ParquetFile(tmp_path / "p" / "masks.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [12, 12]


def test_memory_does_not_grow_with_the_prompts(tmp_path, write, examples):
    profile = examples.make_profile()
    prompts = tuple(PromptRecord(sha256=f"{i:064x}", tokens=65536) for i in range(12))
    calibration = dataclasses.replace(profile.calibration, prompts=prompts)
    profile = examples.make_profile(calibration=calibration)
    of_prompt = 12 * 65600  # bytes of twelve masks
    most_arrow = 0

    def rows():
        nonlocal most_arrow
        for row in examples.mask_rows(profile):
            most_arrow = max(most_arrow, pa.total_allocated_bytes())
            yield row

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    write(tmp_path / "p", profile=profile, masks=rows())
    most_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_python < 5 * of_prompt
    assert most_arrow - before < 4 * of_prompt


def test_profile_json_is_written_last(tmp_path, write, monkeypatch):
    published = []
    replace = os.replace

    def recorded(source, target):
        published.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", recorded)
    write(tmp_path / "p")
    assert sorted(published) == NAMES
    assert published[-1] == "profile.json"


# -- the target folder


def test_existing_profile_needs_overwrite(tmp_path, write, examples):
    old = write(tmp_path / "p")
    with pytest.raises(UsageError, match="not empty") as caught:
        write(tmp_path / "p")
    assert "--overwrite" in caught.value.hint
    new = write(
        tmp_path / "p",
        profile=examples.make_profile(clusters=()),
        heads=examples.head_rows(examples.make_profile(clusters=())),
        masks=None,
        overwrite=True,
    )
    assert load_profile(tmp_path / "p") == new != old
    assert sorted(os.listdir(tmp_path / "p")) == sorted({*NAMES} - {"masks.parquet"})
    assert os.listdir(tmp_path) == ["p"]


def test_empty_folder_and_missing_parents_are_no_obstacle(tmp_path, write):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    write(tmp_path / "a" / "b" / "c")


def test_target_behind_a_symlink_is_replaced_in_place(tmp_path, write):
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    load_profile(tmp_path / "real")


@pytest.mark.parametrize("foreign", ["notes.txt", "folder", "link"])
def test_folder_with_anything_else_is_never_replaced(tmp_path, write, foreign):
    write(tmp_path / "p")
    if foreign == "folder":
        (tmp_path / "p" / foreign).mkdir()
    elif foreign == "link":
        (tmp_path / "p" / "masks.parquet").unlink()
        (tmp_path / "p" / "masks.parquet").symlink_to("heads.parquet")
    else:
        (tmp_path / "p" / foreign).write_text("mine")
    before = snapshot_names(tmp_path / "p")
    with pytest.raises(UsageError, match="not overwritten"):
        write(tmp_path / "p", overwrite=True)
    assert snapshot_names(tmp_path / "p") == before


def snapshot_names(folder):
    return sorted(os.listdir(folder))


def test_folder_without_profile_json_is_never_replaced(tmp_path, write):
    (tmp_path / "README.md").write_text("of something else")
    with pytest.raises(UsageError, match=r"has no profile\.json"):
        write(tmp_path, overwrite=True)


def test_file_in_the_place_of_the_folder_is_a_usage_error(tmp_path, write):
    (tmp_path / "p").write_text("x")
    with pytest.raises(UsageError):
        write(tmp_path / "p", overwrite=True)


# -- faults


class Faults:
    """Counts the system calls of a write and fails the k-th of them."""

    def __init__(self, patch, code):
        self.calls, self.fail_at, self.code = 0, None, code
        for module, name in (
            (os, "open"),
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "mkdir"),
        ):
            patch.setattr(module, name, self.counted(getattr(module, name)))
        fdopen = os.fdopen

        def opened(*args, **options):
            faults = self

            class File(io.BufferedRandom):
                def write(self, data):
                    faults.step()
                    return super().write(data)

                def flush(self):
                    if not self.closed:
                        faults.step()
                    super().flush()

            return File(fdopen(*args, buffering=0, **options))

        patch.setattr(os, "fdopen", opened)

    def step(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def counted(self, function):
        def call(*args, **options):
            self.step()
            return function(*args, **options)

        return call


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_fault_at_every_call_leaves_the_old_profile_or_the_new(
    tmp_path, write, examples, monkeypatch, exchange
):
    if not exchange:
        monkeypatch.setattr(folder_swap, "_exchange", lambda a, b: False)
    folder = tmp_path / "p"
    write(folder)
    old = snapshot(folder)
    changed = examples.make_profile(model_name="example/new")
    write(tmp_path / "new", profile=changed)
    new = snapshot(tmp_path / "new")
    for path in (tmp_path / "new").iterdir():
        path.unlink()
    (tmp_path / "new").rmdir()

    with monkeypatch.context() as patch:
        faults = Faults(patch, errno.ENOSPC)
        write(folder, overwrite=True)
    total = faults.calls
    assert total > 25
    outcomes = []
    for fail_at in range(1, total + 1):
        with monkeypatch.context() as patch:
            faults = Faults(patch, errno.ENOSPC)
            faults.fail_at = fail_at
            try:
                write(folder, profile=changed, overwrite=True)
            except ResourceError as error:
                assert "no space is left" in error.message  # noqa: PT017 (not every call fails it)
        found = snapshot(folder)
        outcomes.append("old" if found == old else "new")
        assert found in (old, new), f"a third state after a fault at call {fail_at} of {total}"
        profile = load_profile(folder)
        verify_files(folder, profile)
        assert os.listdir(tmp_path) == ["p"]
        if found == new:
            write(folder, overwrite=True)
    assert outcomes.count("old") > 20
    assert "new" in outcomes  # flushing the parent fails after the new folder is in place


def test_first_write_that_fails_leaves_nothing(tmp_path, write, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(ResourceError, match="quota"):
        write(tmp_path / "p")
    assert os.listdir(tmp_path) == []


def test_read_only_parent_is_a_resource_error(tmp_path, write, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(folder_swap.Path, "mkdir", fail)
    with pytest.raises(ResourceError, match="read-only"):
        write(tmp_path / "p")
