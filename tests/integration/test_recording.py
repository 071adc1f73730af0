"""What is recorded of one forward, against float64 written out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sp_profile.candidates import Candidate, LentMask, MaskSettings, default_candidates
from sp_profile.record import NonFiniteAttentionError, RecordingHandler, RecordSettings
from sp_profile.shard import forced_blocks
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UnsupportedError
from sp_runtime.integrations.transformers import ForwardCall
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.profile import PromptRecord

TOKENS, LAYERS, HEADS, DIM = 300, (0, 2, 3), 4, 16
SCALE = DIM**-0.5
CANDIDATES = default_candidates(stride=8)


def record_settings(**changes) -> RecordSettings:
    values = {
        "block_size": 64,
        "gamma": 0.8,
        "sample_stride": 8,
        "candidates": CANDIDATES,
        "mask_settings": MaskSettings(min_budget=64),
        "layers": LAYERS,
        "num_heads": HEADS,
    }
    return RecordSettings(**(values | changes))


@pytest.fixture(scope="module")
def recorded(random_qkv):
    """(q, k, v of each layer, outputs, shard) of one recorded forward."""
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    layers = {}
    for layer in LAYERS:
        q, k, v = random_qkv(layer, 1, HEADS, 2, TOKENS, TOKENS, DIM)
        layers[layer] = (q * 4, k, v)
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    outputs = [handler.attend(layer, *qkv, SCALE) for layer, qkv in layers.items()]
    prompt = PromptRecord(sha256="0" * 64, tokens=TOKENS, task="")
    return SimpleNamespace(layers=layers, outputs=outputs, shard=handler.shard(prompt))


@pytest.fixture(scope="module")
def literal(recorded, oracle):
    """Masses of every head in float64 and the masks they give, [LH, R, C]."""
    grid = BlockGrid(q_len=TOKENS, kv_len=TOKENS, block_size=64)
    slots = torch.arange(HEADS)[None]
    forced = torch.eye(grid.num_rows, dtype=torch.bool)
    forced[:, 0] = True
    mass = torch.cat(
        [oracle.block_mass(q, k, slots, grid, SCALE)[0] for q, k, _ in recorded.layers.values()]
    )
    sampled = {
        stride: torch.cat(
            [
                oracle.sampled_mass(q, k, slots, grid, stride, SCALE)[0]
                for q, k, _ in recorded.layers.values()
            ]
        )
        for stride in (4, 8)
    }
    estimates = torch.cat(
        [oracle.last_block(q, k, grid, SCALE)[0][0] for q, k, _ in recorded.layers.values()]
    )
    return SimpleNamespace(
        grid=grid, forced=forced, mass=mass, sampled=sampled, vertical=estimates,
        layer_of=[layer for layer in LAYERS for _ in range(HEADS)],
    )  # fmt: skip


def literal_recall(mass, masks, layer_of):
    """[LH, LH] by two loops: mass of a in the mask of b, mean over rows; -1: b is a later layer."""
    count = len(layer_of)
    result = np.full((count, count), -1.0)
    for a in range(count):
        for b in range(count):
            if layer_of[b] <= layer_of[a]:
                result[a, b] = (mass[a] * masks[b]).sum(-1).mean()
    return result


def test_output_is_exact_attention(recorded, oracle):
    grid = recorded.shard.grid
    full = torch.ones(1, HEADS, grid.num_rows, grid.num_cols, dtype=torch.bool)
    for (q, k, v), output in zip(recorded.layers.values(), recorded.outputs, strict=True):
        expected, _ = oracle.attention(q, k, v, full, grid, SCALE)
        torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)


def test_masks_are_gamma_masks_of_the_exact_mass_before_forcing(recorded, literal, oracle):
    shard = recorded.shard
    rows, cols = np.tril_indices(literal.grid.num_cols)
    expected = oracle.gamma_mask(literal.mass, 0.8).numpy()[:, rows, cols]
    np.testing.assert_array_equal(shard.unpack(), expected)
    with_forced = expected | forced_blocks(literal.grid)
    assert (with_forced != expected).any(), "the example must tell forced blocks apart"
    np.testing.assert_allclose(shard.density, with_forced.mean(-1), atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_recall_matrix_equals_a_literal_float64_one(recorded, literal, oracle, kind):
    own = literal.mass if kind == "exact" else literal.sampled[8]
    masks = oracle.gamma_mask(own, 0.8) | literal.forced
    found = getattr(recorded.shard, f"recall_{kind}")
    np.testing.assert_allclose(
        found, literal_recall(literal.mass, masks, literal.layer_of), atol=1e-5
    )
    assert recorded.shard.heads.tolist() == [[a, b] for a in LAYERS for b in range(HEADS)]


def test_last_row_divergences_equal_scipy(recorded, literal):
    from scipy.spatial.distance import jensenshannon

    size = literal.grid.block_size
    a_hat = np.stack([part.sum(-1).numpy() for part in literal.vertical.split(size, -1)], -1)
    uniform = np.full(a_hat.shape[1], 1 / a_hat.shape[1])
    for a in range(len(a_hat)):
        expected = jensenshannon(a_hat[a], uniform)
        assert recorded.shard.uniform_jsd[a] == pytest.approx(expected, abs=1e-4)
        for b in range(len(a_hat)):
            expected = jensenshannon(a_hat[a], a_hat[b])
            assert recorded.shard.a_hat_jsd[a, b] == pytest.approx(expected, abs=2e-3)


def test_sampled_candidate_is_measured_with_its_estimation_cost(recorded, literal, oracle):
    number = CANDIDATES.index(Candidate(assignment="sampled", gamma=0.9, stride=8))
    mask = oracle.gamma_mask(literal.sampled[8], 0.9) | literal.forced
    total = literal.grid.num_causal_blocks
    recall = (literal.mass * mask).sum(-1).mean(-1)
    shard = recorded.shard
    np.testing.assert_allclose(shard.candidate_recall[:, number], recall, atol=1e-5)
    cost = mask.sum((-2, -1)) / total + 0.5 / 8
    np.testing.assert_allclose(shard.candidate_cost[:, number], cost, atol=1e-5)


def test_further_lent_masks_and_oracles_are_measured_as_the_first_ones(recorded):
    base = record_settings(gamma=0.3)
    settings = record_settings(
        gamma=base.gamma,
        lending=(
            LentMask(gamma=base.gamma, stride=base.sample_stride),
            LentMask(gamma=0.99, stride=base.sample_stride),
        ),
        oracle_gammas=(base.gamma, 0.99),
        mask_settings=dataclasses.replace(base.mask_settings, local_blocks=1),
    )
    handler = RecordingHandler(settings, ReferenceKernels())
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    for layer, qkv in recorded.layers.items():
        handler.attend(layer, *qkv, SCALE)
    shard = handler.shard(recorded.shard.prompt)
    np.testing.assert_allclose(shard.lent_recall[0], shard.recall_sampled, atol=1e-3)
    np.testing.assert_array_equal(shard.lent_density[0], shard.sampled_density)
    assert (shard.lent_recall[1] >= shard.lent_recall[0] - 1e-3).all()
    np.testing.assert_allclose(shard.oracle_recall[:, 0], np.diag(shard.recall_exact), atol=1e-5)
    np.testing.assert_array_equal(shard.oracle_density[:, 0], shard.density)
    # A local block is kept whether the mass wants it or not.
    forced = forced_blocks(shard.grid, local_blocks=1)
    np.testing.assert_allclose((shard.unpack() | forced).mean(1), shard.density, atol=1e-6)
    without = (shard.unpack() | forced_blocks(shard.grid)).mean(1)
    assert (without < shard.density - 1e-6).any()


def test_streaming_candidate_covers_all_where_the_window_does(recorded):
    number = CANDIDATES.index(Candidate(assignment="streaming", window=1024))
    np.testing.assert_allclose(recorded.shard.candidate_recall[:, number], 1, atol=1e-5)
    np.testing.assert_allclose(recorded.shard.candidate_cost[:, number], 1, atol=1e-6)


def test_recall_of_a_candidate_grows_with_gamma(recorded):
    for kind in ("vertical_slash", "query_aware"):
        numbers = [n for n, c in enumerate(CANDIDATES) if c.assignment == kind]
        recall = recorded.shard.candidate_recall[:, numbers]
        assert (np.diff(recall, axis=1) >= -1e-6).all()


def test_non_finite_attention_names_layer_and_head(random_qkv):
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    q, k, v = random_qkv(0, 1, HEADS, 2, TOKENS, TOKENS, DIM)
    q[0, 2, 5, 0] = torch.nan
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    with pytest.raises(NonFiniteAttentionError, match="layer 2, head 2"):
        handler.attend(2, q, k, v, SCALE)


def test_batches_and_chunks_are_refused(random_qkv):
    handler = RecordingHandler(record_settings(), ReferenceKernels())
    with pytest.raises(UnsupportedError, match="one piece"):
        handler.begin(ForwardCall(q_len=100, kv_len=TOKENS, q_offset=200))
    handler.begin(ForwardCall(q_len=TOKENS, kv_len=TOKENS, q_offset=0))
    with pytest.raises(UnsupportedError, match="one prompt at a time"):
        handler.attend(0, *random_qkv(0, 2, HEADS, 2, TOKENS, TOKENS, DIM), SCALE)
