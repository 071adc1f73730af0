"""Shared fixtures: the literal float64 oracles, random inputs, and the gpu marker.

The oracles are written to be read, not to be fast: a full softmax in float64 and loops over tokens.
They share no code with the package beyond the numbers of a `BlockGrid`.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import settings

settings.register_profile("repo", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("repo")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def helper() -> Callable[[str], ModuleType]:
    """helper("profile_examples"), helper("unit/plan_examples"): a module beside the tests, loaded
    by path, as test folders are no packages."""

    def load(place: str) -> ModuleType:
        name = f"sp_tests_{place.replace('/', '_')}"
        if name not in sys.modules:
            path = Path(__file__).parent / f"{place}.py"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        return sys.modules[name]

    return load


@pytest.fixture(scope="session")
def examples(helper: Callable[[str], ModuleType]) -> ModuleType:
    """tests/profile_examples.py."""
    return helper("profile_examples")


def _softmax(q, k, allowed, scale):
    """Float64 attention weights [B, H, Nq, Nk] and log-sum-exp; allowed is bool [B, H, Nq, Nk]."""
    group = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(group, dim=1)
    scores = (q.double() @ keys.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~allowed, -math.inf)
    return torch.softmax(scores, -1), torch.logsumexp(scores, -1)


def token_mask(mask, grid):
    """A block mask bool [B, H, R, C] as a causal token mask bool [B, H, Nq, Nk]."""
    size = grid.block_size
    i = torch.arange(grid.q_len) + (grid.kv_len - grid.q_len)
    j = torch.arange(grid.kv_len)
    first_row = (grid.kv_len - grid.q_len) // size
    by_row = mask[:, :, i // size - first_row]
    return by_row[..., j // size] & (j[None, :] <= i[:, None])


def _causal(q, grid):
    i = torch.arange(grid.q_len) + (grid.kv_len - grid.q_len)
    causal = torch.arange(grid.kv_len)[None, :] <= i[:, None]
    return causal.expand(q.shape[0], q.shape[1], -1, -1)


def attention(q, k, v, mask, grid, scale):
    """(out [B, H, Nq, D], lse [B, H, Nq]) in float64, over the blocks of mask [B, H, R, C]."""
    weights, lse = _softmax(q, k, token_mask(mask, grid), scale)
    group = q.shape[1] // v.shape[1]
    return weights @ v.double().repeat_interleave(group, dim=1), lse


def _mass_of_queries(weights, heads, grid, keep):
    """Mean over the kept queries of each block row of their weight on each key block."""
    size, offset = grid.block_size, grid.kv_len - grid.q_len
    first_row = offset // size
    mass = torch.zeros(*heads.shape, grid.num_rows, grid.num_cols, dtype=torch.float64)
    for b in range(heads.shape[0]):
        for s in range(heads.shape[1]):
            if heads[b, s] < 0:
                continue
            for r in range(grid.num_rows):
                row = first_row + r
                start, stop = max(offset, row * size), min(grid.kv_len, (row + 1) * size)
                queries = [i - offset for i in range(start, stop) if keep(i, stop - 1)]
                for c in range(grid.num_cols):
                    tile = weights[b, heads[b, s], queries, c * size : (c + 1) * size]
                    mass[b, s, r, c] = tile.sum() / len(queries)
    return mass


def block_mass(q, k, heads, grid, scale):
    """Exact block mass [B, S, R, C] of the heads int64 [B, S] (-1: zeros)."""
    weights, _ = _softmax(q, k, _causal(q, grid), scale)
    return _mass_of_queries(weights, heads, grid, lambda i, last: True)


def sampled_mass(q, k, heads, grid, stride, scale):
    """Block mass of the queries whose distance to the end of their row is a multiple of stride."""
    weights, _ = _softmax(q, k, _causal(q, grid), scale)
    return _mass_of_queries(weights, heads, grid, lambda i, last: (last - i) % stride == 0)


def last_block(q, k, grid, scale):
    """(vertical, slash) [B, H, N] of the last min(T, Nq) queries."""
    weights, _ = _softmax(q, k, _causal(q, grid), scale)
    count = min(grid.block_size, grid.q_len)
    weights = weights[:, :, -count:]
    slash = torch.zeros(*q.shape[:2], grid.kv_len, dtype=torch.float64)
    for i in range(count):
        position = grid.kv_len - count + i
        for distance in range(position + 1):
            slash[..., distance] += weights[:, :, i, position - distance] / count
    return weights.mean(-2), slash


def gamma_mask(mass, gamma):
    """bool [..., R, C]: per row the fewest blocks, largest first, whose sum reaches gamma."""
    num_rows, num_cols = mass.shape[-2:]
    chosen = torch.zeros(mass.shape, dtype=torch.bool)
    flat_mass, flat_chosen = mass.reshape(-1, num_cols), chosen.view(-1, num_cols)
    for n in range(flat_mass.shape[0]):
        num_causal = num_cols - num_rows + n % num_rows + 1
        row = flat_mass[n, :num_causal].tolist()
        total = 0.0
        for c in sorted(range(num_causal), key=lambda c: (-row[c], c)):
            flat_chosen[n, c] = True
            total += row[c]
            if gamma < 1 and total >= gamma:
                break
    return chosen


@pytest.fixture(scope="session")
def oracle():
    """The float64 oracles as a namespace."""
    return SimpleNamespace(
        attention=attention,
        block_mass=block_mass,
        sampled_mass=sampled_mass,
        last_block=last_block,
        gamma_mask=gamma_mask,
        token_mask=token_mask,
    )


@pytest.fixture(scope="session")
def random_qkv():
    """make(seed, batch, heads, kv_heads, q_len, kv_len, head_dim, dtype) -> (q, k, v) on the CPU.

    k and v are views of memory laid out as [B, N, H, D], as models produce them.
    """

    def make(seed, batch, heads, kv_heads, q_len, kv_len, head_dim, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)

        def draw(num_heads, length):
            shape = (batch, length, num_heads, head_dim)
            return torch.randn(shape, generator=generator).to(dtype).transpose(1, 2)

        return draw(heads, q_len), draw(kv_heads, kv_len), draw(kv_heads, kv_len)

    return make


@pytest.fixture(scope="session")
def synthetic_run_config():
    """Makes the configuration of a run whose shards a test writes itself; `measured`: what differs
    between such runs, as in `RunConfig`."""
    from sp_profile.run_config import RunConfig
    from sp_runtime.fingerprint import ModelFingerprint

    def make(prompts, *, layers: int, heads: int, block_size: int, **measured) -> RunConfig:
        return RunConfig(
            model="synthetic",
            revision=None,
            trust_remote_code=False,
            fingerprint=ModelFingerprint(
                architecture="Llama",
                model_type="llama",
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=2,
                head_dim=64,
                layer_types=("full_attention",) * layers,
                rope="{}",
                max_position_embeddings=8192,
                config_sha256="0" * 64,
            ),
            prompts=tuple(prompts),
            dtype="float32",
            device="cpu",
            kernels="reference",
            block_size=block_size,
            gamma=0.9,
            sample_stride=8,
            seed=0,
            chat_template=False,
            max_bad_share=0.0,
            versions=(("torch", "2.13.0"),),
            **measured,
        )

    return make
