"""Clusters and anchors on synthetic similarities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.clustering import choose_anchor, cluster_heads, first_lender, served_by


def planted(labels: list[int], inside: float = 0.8, outside: float = 0.1) -> np.ndarray:
    """Similarity `inside` within a label and `outside` across; label -1 is like nobody."""
    tags = np.asarray(labels)
    same = (tags[:, None] == tags[None]) & (tags >= 0)
    similarity = np.where(same, inside, outside)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def random_similarity(heads: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    half = np.triu(rng.random((heads, heads)), 1)
    return half + half.T + np.eye(heads)


def test_planted_clusters_are_recovered_and_numbered_by_first_member():
    labels = [1, 0, 1, -1, 0, 1, 0, 1, 0, 1, 0, -1]
    found = cluster_heads(planted(labels), distance=0.5, min_cluster_size=5)
    assert found.members == ((0, 2, 5, 7, 9), (1, 4, 6, 8, 10))
    assert found.labels.tolist() == [0, 1, 0, -1, 1, 0, 1, 0, 1, 0, 1, -1]


def test_small_clusters_are_noise():
    found = cluster_heads(planted([0, 0, 0, 0, 1, 1, 1, 1, 1]), min_cluster_size=5)
    assert found.members == ((4, 5, 6, 7, 8),)
    assert found.labels[:4].tolist() == [-1] * 4


@pytest.mark.parametrize(("distance", "clusters"), [(0.1, 0), (0.25, 2), (0.95, 1)])
def test_the_distance_cuts_the_tree(distance: float, clusters: int):
    similarity = planted([0] * 5 + [1] * 5)
    assert len(cluster_heads(similarity, distance=distance).members) == clusters


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_hardly_any_heads(heads: int):
    found = cluster_heads(np.ones((heads, heads)), min_cluster_size=2)
    assert found.members == (((0, 1),) if heads == 2 else ())


def test_ties_are_stable():
    similarity = np.full((12, 12), 0.6)
    np.fill_diagonal(similarity, 1.0)
    assert cluster_heads(similarity).members == (tuple(range(12)),)


def test_the_anchor_is_the_medoid_of_those_that_can_lend():
    layers = np.array([0, 1, 1, 2, 3], dtype=np.int32)
    similarity = planted([0] * 5, inside=0.5)
    similarity[1, 3:] = similarity[3:, 1] = 0.9
    similarity[4, :4] = similarity[:4, 4] = 0.99  # most central, but in the last layer
    assert choose_anchor(range(5), layers, similarity) == 0
    similarity[1, 3:] = similarity[3:, 1] = 1.0
    similarity[0, 1:] = similarity[1:, 0] = 0.2
    assert choose_anchor(range(5), layers, similarity) == 1


def test_a_late_head_that_fits_one_follower_does_not_beat_an_early_one():
    layers = np.arange(6, dtype=np.int32)
    similarity = planted([0] * 6, inside=0.7)
    similarity[4, 5] = similarity[5, 4] = 1.0
    assert choose_anchor(range(6), layers, similarity) == 0


def test_one_layer_lends_nothing():
    layers = np.zeros(5, dtype=np.int32)
    assert choose_anchor(range(5), layers, np.ones((5, 5))) is None
    assert first_lender(range(5), layers) is None


@settings(max_examples=100, deadline=None)
@given(heads=st.integers(2, 14), seed=st.integers(0, 2**32 - 1), distance=st.floats(0, 1))
def test_layer_order_is_never_violated(heads: int, seed: int, distance: float):
    rng = np.random.default_rng(seed)
    layers = np.sort(rng.integers(0, 4, heads)).astype(np.int32)
    similarity = random_similarity(heads, seed)
    found = cluster_heads(similarity, distance=distance, min_cluster_size=2)
    covered = [head for members in found.members for head in members]
    assert len(covered) == len(set(covered))
    assert sorted(covered) == np.flatnonzero(found.labels >= 0).tolist()
    firsts = [members[0] for members in found.members]
    assert firsts == sorted(firsts)
    for members in found.members:
        for lender in (choose_anchor(members, layers, similarity), first_lender(members, layers)):
            if lender is None:
                assert len({int(layers[head]) for head in members}) == 1
                continue
            served = served_by(lender, members, layers)
            assert served
            assert lender in members
            assert all(layers[head] > layers[lender] for head in served)
