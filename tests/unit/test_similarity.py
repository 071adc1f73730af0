"""Similarity of heads: hand-made masks, statistics over prompts, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sp_profile import similarity as module
from sp_profile.similarity import MIN_BLOCK_ROWS, SimilarityAccumulator, pairwise_jaccard
from sp_runtime.errors import UsageError


def pack(*masks: np.ndarray) -> np.ndarray:
    """Square bool masks -> packed causal blocks."""
    rows = masks[0].shape[0]
    lower = np.tril_indices(rows)
    return np.packbits(np.stack([mask[lower] for mask in masks]), axis=1)


def random_masks(rows: int, heads: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.packbits(rng.random((heads, rows * (rows + 1) // 2)) < 0.4, axis=1)


def test_hand_made_masks():
    diagonal = np.eye(4, dtype=bool)
    sink = np.zeros((4, 4), dtype=bool)
    sink[:, 0] = True
    empty = np.zeros((4, 4), dtype=bool)
    found = pairwise_jaccard(pack(diagonal, sink, empty), 4)
    # Diagonal and sink share block (0, 0) alone, of 7 blocks in the union.
    np.testing.assert_allclose(found.full, [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]])
    # Nothing is left of any of them without column 0 and the diagonal.
    np.testing.assert_array_equal(found.core, np.ones((3, 3)))


def test_core_sees_only_what_lies_between():
    one = np.tri(5, dtype=bool)
    other = one.copy()
    other[3, 1] = False
    found = pairwise_jaccard(pack(one, other), 5)
    assert found.full[0, 1] == pytest.approx(14 / 15)
    assert found.core[0, 1] == pytest.approx(5 / 6)


def test_slices_and_bands_add_up(monkeypatch: pytest.MonkeyPatch):
    masks = random_masks(21, 5, 0)
    masks.flags.writeable = False  # as in a shard
    whole = pairwise_jaccard(masks, 21)
    monkeypatch.setattr(module, "_SLICE_BITS", 5 * 16)
    monkeypatch.setattr(module, "_TILE_HEADS", 2)
    sliced = pairwise_jaccard(masks, 21)
    np.testing.assert_array_equal(whole.full, sliced.full)
    np.testing.assert_array_equal(whole.core, sliced.core)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    masks = random_masks(130, 40, 1)
    here, there = pairwise_jaccard(masks, 130), pairwise_jaccard(masks, 130, device="cuda")
    np.testing.assert_array_equal(here.full, there.full)
    np.testing.assert_array_equal(here.core, there.core)


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param(np.zeros((2, 3), dtype=np.uint8), id="width"),
        pytest.param(np.zeros((2, 2), dtype=np.int64), id="dtype"),
        pytest.param(np.zeros(2, dtype=np.uint8), id="dimensions"),
    ],
)
def test_wrong_shapes_are_refused(masks: np.ndarray):
    with pytest.raises(UsageError, match="4 block rows"):
        pairwise_jaccard(masks, 4)


def test_statistics_over_prompts():
    rows = MIN_BLOCK_ROWS
    prompts = [random_masks(rows, 3, seed) for seed in range(4)]
    singles = np.stack([pairwise_jaccard(masks, rows).full for masks in prompts])
    accumulator = SimilarityAccumulator(3)
    for number, masks in enumerate(prompts):
        assert accumulator.add(masks, rows, "even" if number % 2 == 0 else "odd")
    found = accumulator.result()
    assert found.prompts == 4
    np.testing.assert_allclose(found.mean, singles.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.minimum, singles.min(0), atol=1e-6)
    np.testing.assert_allclose(found.std, singles.std(0), atol=1e-6)
    assert [task for task, _ in found.task_means] == ["even", "odd"]
    np.testing.assert_allclose(found.task_means[1][1], singles[1::2].mean(0), atol=1e-6)
    assert [length for length, _ in found.length_means] == [16]
    pairs = np.triu_indices(3, 1)
    expected = np.corrcoef(singles[::2].mean(0)[pairs], singles[1::2].mean(0)[pairs])[0, 1]
    assert found.task_correlation() == pytest.approx(expected, abs=1e-4)
    assert found.length_correlation() is None


def test_short_prompts_do_not_enter():
    accumulator = SimilarityAccumulator(3)
    short = MIN_BLOCK_ROWS - 1
    assert not accumulator.add(random_masks(short, 3, 0), short, "task")
    with pytest.raises(UsageError, match="16 block rows"):
        accumulator.result()
    assert accumulator.add(random_masks(MIN_BLOCK_ROWS, 3, 0), MIN_BLOCK_ROWS, "task")
    assert accumulator.result().prompts == 1
