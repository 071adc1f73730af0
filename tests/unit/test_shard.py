"""The shard file: round trip, equal bytes, and every damage named."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bits import pack_bits, unpack_bits
from sp_profile.shard import (
    PromptShard,
    forced_blocks,
    read_shard,
    shard_from_bytes,
    shard_to_bytes,
    validate,
)
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.patterns.masks import forced_blocks as forced_blocks_of_the_runtime
from sp_runtime.profile import PromptRecord

TOKENS, LAYERS, HEADS, K = 300, 2, 3, 4


def make_shard(seed: int = 0) -> PromptShard:
    rng = np.random.default_rng(seed)
    grid = BlockGrid(q_len=TOKENS, kv_len=TOKENS, block_size=64)
    heads = np.array([(a, b) for a in (1, 4) for b in range(HEADS)], dtype=np.int32)
    count = len(heads)
    later = heads[None, :, 0] > heads[:, None, 0]

    def recall():
        return np.where(later, -1, rng.random((count, count))).astype(np.float32)

    def ratio(*shape):
        return rng.random(shape).astype(np.float32)

    return PromptShard(
        prompt=PromptRecord(sha256="ab" * 32, tokens=TOKENS, task="json_kv"),
        grid=grid,
        heads=heads,
        masks=np.packbits(rng.random((count, grid.num_causal_blocks)) < 0.5, axis=1),
        density=ratio(count),
        recall_exact=recall(),
        recall_sampled=recall(),
        sampled_density=ratio(count),
        uniform_jsd=ratio(count),
        a_hat_jsd=ratio(count, count).astype(np.float16),
        candidate_cost=ratio(count, K) * 3,
        candidate_recall=ratio(count, K),
        mass=rng.integers(0, 256, (count, grid.num_causal_blocks), dtype=np.uint8),
    )


def test_a_shard_without_pictures_is_one_of_an_earlier_release():
    shard = dataclasses.replace(make_shard(), mass=None)
    data = shard_to_bytes(shard)
    assert "mass.npy" not in zipfile.ZipFile(io.BytesIO(data)).namelist()
    read = shard_from_bytes(data, "x.npz")
    assert read.mass is None
    assert shard_to_bytes(read) == data


def with_lending(shard: PromptShard, *, masks: int = 2, gammas: int = 3) -> PromptShard:
    rng = np.random.default_rng(1)
    lent = np.broadcast_to(shard.recall_exact, (masks, *shard.recall_exact.shape))
    return dataclasses.replace(
        shard,
        lent_recall=lent.astype(np.float16),
        lent_density=rng.random((masks, shard.num_heads)).astype(np.float32),
        oracle_recall=rng.random((shard.num_heads, gammas)).astype(np.float32),
        oracle_density=rng.random((shard.num_heads, gammas)).astype(np.float32),
    )


def test_further_lent_masks_and_oracles_come_back():
    shard = with_lending(make_shard())
    read = shard_from_bytes(shard_to_bytes(shard), "x.npz")
    assert (read.num_lent, read.num_oracles) == (2, 3)
    for name in ("lent_recall", "lent_density", "oracle_recall", "oracle_density"):
        np.testing.assert_array_equal(getattr(read, name), getattr(shard, name))
    plain = shard_from_bytes(shard_to_bytes(make_shard()), "x.npz")
    assert (plain.num_lent, plain.num_oracles, plain.lent_recall) == (0, 0, None)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("lent_recall", lambda array: array - array.dtype.type(0.5)),
        ("lent_recall", lambda array: None),
        ("lent_density", lambda array: array + 2),
        ("oracle_recall", lambda array: array[:, :1]),
        ("oracle_density", lambda array: array * np.float32("nan")),
    ],
)
def test_damaged_lending_is_named(field, change):
    shard = with_lending(make_shard())
    with pytest.raises(CorruptArtefactError, match=field.split("_")[0]):
        validate(dataclasses.replace(shard, **{field: change(getattr(shard, field))}), "x.npz")


def repack(data: bytes, change) -> bytes:
    """The archive with `change(name, content)` applied to each member; None drops it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return result.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_round_trip_keeps_every_field(tmp_path):
    shard = make_shard()
    path = tmp_path / "a.npz"
    path.write_bytes(shard_to_bytes(shard))
    read = read_shard(path)
    for field in dataclasses.fields(PromptShard):
        ours, theirs = getattr(shard, field.name), getattr(read, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs


def test_numpy_can_read_it_without_pickle(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(shard_to_bytes(make_shard()))
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["density"], make_shard().density)


def test_equal_shards_give_equal_bytes_and_others_do_not():
    assert shard_to_bytes(make_shard()) == shard_to_bytes(make_shard())
    assert shard_to_bytes(make_shard()) != shard_to_bytes(make_shard(1))


def test_unpack_gives_the_causal_blocks_in_row_major_order():
    shard = make_shard()
    grid = shard.grid
    mask = torch.rand(shard.num_heads, grid.num_rows, grid.num_cols) < 0.5
    rows, cols = np.tril_indices(grid.num_cols)
    packed = np.packbits(mask.numpy()[:, rows, cols], axis=1)
    unpacked = dataclasses.replace(shard, masks=packed).unpack(1, 4)
    for n, (row, col) in enumerate(zip(rows, cols, strict=True)):
        np.testing.assert_array_equal(unpacked[:, n], mask[1:4, row, col])


def test_forced_blocks_are_those_of_the_runtime():
    grid = make_shard().grid
    rows, cols = np.tril_indices(grid.num_cols)
    expected = forced_blocks_of_the_runtime(grid).numpy()[rows, cols]
    np.testing.assert_array_equal(forced_blocks(grid), expected)


@given(st.integers(1, 70), st.integers(0, 1000))
def test_bits_are_those_of_numpy(size, seed):
    mask = torch.rand(3, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(mask.numpy(), axis=1))
    assert torch.equal(unpack_bits(packed, size), mask)


def nan_density(shard):
    return {"density": np.where(np.arange(6) == 2, np.nan, shard.density).astype(np.float32)}


WRONG = {
    "density": nan_density,
    "sampled_density": lambda s: {"sampled_density": s.sampled_density + 2},
    "recall_exact": lambda s: {"recall_exact": np.abs(s.recall_exact)},
    "recall_sampled": lambda s: {"recall_sampled": s.recall_sampled - 0.5},
    "uniform_jsd": lambda s: {"uniform_jsd": -s.uniform_jsd - 1},
    "candidate_recall": lambda s: {"candidate_recall": s.candidate_recall * np.inf},
    "candidate_cost": lambda s: {"candidate_cost": s.candidate_cost[:3]},
    "heads": lambda s: {"heads": s.heads[::-1].copy()},
    "masks": lambda s: {"masks": s.masks | np.uint8(1)},
    "a_hat_jsd": lambda s: {"a_hat_jsd": s.a_hat_jsd.astype(np.float32)},
    "mass": lambda s: {"mass": s.mass[:, 1:]},
    "tokens": lambda s: {"grid": BlockGrid(q_len=299, kv_len=299, block_size=64)},
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_values_are_refused_and_the_field_is_named(field):
    shard = make_shard()
    broken = dataclasses.replace(shard, **WRONG[field](shard))
    with pytest.raises(CorruptArtefactError, match=f"x.npz: {field} "):
        validate(broken, "x.npz")


def huge(name, content):
    """A header that claims 2^60 elements over a few bytes."""
    if name != "density.npy":
        return content
    return content.replace(b"(6,)", b"(1152921504606846976,)")


def pickled(name, content):
    return npy(np.array([{"a": 1}] * 6, dtype=object)) if name == "density.npy" else content


def meta(**changes):
    def change(name, content):
        if name != "meta.npy":
            return content
        values = json.loads(np.lib.format.read_array(io.BytesIO(content)).tobytes())
        encoded = json.dumps(values | changes).encode()
        return npy(np.frombuffer(encoded, dtype=np.uint8))

    return change


HOSTILE = {
    "missing member": (lambda n, c: None if n == "density.npy" else c, "density is missing"),
    "huge header": (huge, "density"),
    "pickled objects": (pickled, "density"),
    "not an array": (lambda n, c: b"hello" if n == "heads.npy" else c, "heads"),
    "no meta": (lambda n, c: None if n == "meta.npy" else c, "meta is missing"),
    "other format": (meta(format="sp.shard/9"), "meta"),
    "huge token count": (meta(tokens=10**15), "tokens"),
    "unpacks to gigabytes": (meta(tokens=1 << 26, num_heads=1 << 17), "unpacks to more"),
    "no picture": (lambda n, c: None if n == "mass.npy" else c, "mass is missing"),
    "boolean count": (meta(num_heads=True), "num_heads"),
    "bad block size": (meta(block_size=77), "block_size"),
    "bad hash": (meta(prompt_sha256="../../etc/passwd"), "prompt_sha256"),
    "task of a wrong type": (meta(task=5), "task"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_by_name(name):
    change, message = HOSTILE[name]
    data = repack(shard_to_bytes(make_shard()), change)
    with pytest.raises(CorruptArtefactError, match=f"x.npz: .*{message}"):
        shard_from_bytes(data, "x.npz")


def test_no_truncation_passes():
    original = shard_to_bytes(make_shard())
    for size in range(0, len(original), 7):
        with pytest.raises(CorruptArtefactError):
            shard_from_bytes(original[:size], "x.npz")


def test_no_flipped_bit_passes_as_another_shard():
    original = shard_to_bytes(make_shard())
    places = range(0, len(original), 3)
    refused = 0
    for place in places:
        broken = bytearray(original)
        broken[place] ^= 1 << (place % 8)
        try:
            read = shard_from_bytes(bytes(broken), "x.npz")
        except CorruptArtefactError:
            refused += 1
        else:
            # A field that nothing reads (a date, say): the content is what it was.
            assert shard_to_bytes(read) == original
    assert refused > len(places) / 2


def test_missing_file_is_a_typed_error(tmp_path):
    with pytest.raises(CorruptArtefactError, match="cannot be read"):
        read_shard(tmp_path / "gone.npz")
