"""Properties of the pairwise Jaccard over random masks, against scipy and the axioms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jaccard

from sp_profile.similarity import SimilarityAccumulator, pairwise_jaccard

ROWS = st.integers(1, 20)
SEEDS = st.integers(0, 2**32 - 1)


def random_bits(rows: int, heads: int, seed: int) -> np.ndarray:
    """bool [heads, T], densities from empty to full."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.0, 0.05, 0.5, 1.0], size=(heads, 1))
    return rng.random((heads, rows * (rows + 1) // 2)) < density


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, heads=st.integers(1, 6), seed=SEEDS)
def test_equals_scipy_and_its_definition_without_the_edges(rows: int, heads: int, seed: int):
    bits = random_bits(rows, heads, seed)
    found = pairwise_jaccard(np.packbits(bits, axis=1), rows)
    lower_rows, lower_cols = np.tril_indices(rows)
    core = (lower_cols != 0) & (lower_cols != lower_rows)
    for matrix, part in ((found.full, bits), (found.core, bits[:, core])):
        for a in range(heads):
            for b in range(heads):
                expected = 1.0 - jaccard(part[a], part[b]) if part.shape[1] else 1.0
                assert matrix[a, b] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, heads=st.integers(2, 8), seed=SEEDS)
def test_axioms(rows: int, heads: int, seed: int):
    bits = random_bits(rows, heads, seed)
    similarity = pairwise_jaccard(np.packbits(bits, axis=1), rows).full
    assert ((similarity >= 0) & (similarity <= 1)).all()
    assert (similarity == similarity.T).all()
    assert (np.diagonal(similarity) == 1).all()
    same = (bits[:, None] == bits[None]).all(-1)
    assert ((similarity == 1) == same).all()
    distance = 1 - similarity
    # Triangle inequality: the Jaccard distance is a metric.
    detour = (distance[:, :, None] + distance[None, :, :]).min(1)
    assert (distance <= detour + 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, order=st.permutations(range(5)))
def test_prompt_order_changes_no_bit_of_the_statistics(seed: int, order: list[int]):
    rng = np.random.default_rng(seed)
    prompts = []
    for number in range(5):
        rows = int(rng.integers(16, 24))
        prompts.append((np.packbits(random_bits(rows, 4, seed + number), axis=1), rows, number % 2))

    def collect(numbers: list[int]):
        accumulator = SimilarityAccumulator(4)
        for number in numbers:
            masks, rows, task = prompts[number]
            assert accumulator.add(masks, rows, f"task-{task}")
        return accumulator.result()

    first, second = collect(list(range(5))), collect(order)
    for name in ("mean", "minimum", "std", "core_mean"):
        assert (getattr(first, name) == getattr(second, name)).all(), name
    for (task, a), (other, b) in zip(first.task_means, second.task_means, strict=True):
        assert task == other
        assert (a == b).all()
