"""The engine: paths and their reasons, the order of a layer's steps, and exactness."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sp_runtime.block_index import BlockGrid
from sp_runtime.dense_attention import dense_attention
from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import METHODS, OperatingPoint
from sp_runtime.patterns.base import Branch, Decision
from sp_runtime.patterns.registry import make_pattern_factory

SCALE = 0.25
POINT = OperatingPoint(method="vertical_slash", min_budget=64, min_tokens=128, gamma=0.7)


def random_qkv(q_len: int, kv_len: int, batch: int = 2, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, 4, q_len, 16, generator=g)
    k, v = torch.randn(2, batch, 2, kv_len, 16, generator=g)
    return q, k, v


def literal_attention(q, k, v, token_mask=None):
    """Float64 softmax over the causal tokens of the mask bool [B, H, Nq, N]."""
    k, v = (x.double().repeat_interleave(2, dim=1) for x in (k, v))
    scores = q.double() @ k.mT * SCALE
    q_len, kv_len = scores.shape[-2:]
    causal = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    if token_mask is not None:
        causal = causal & token_mask
    return (scores.masked_fill(~causal, -torch.inf).softmax(-1) @ v).float()


def engine_of(point: OperatingPoint, profile=None, layers=(0, 1, 2), block_size=64) -> Engine:
    return Engine(
        make_pattern=make_pattern_factory(point, profile),
        point=point,
        kernels=ReferenceKernels(),
        block_size=block_size,
        layers=layers,
    )


@pytest.mark.parametrize(
    ("q_len", "kv_len"),
    [(1, 1), (1, 200), (200, 200), (65, 200), (2, 130)],
    ids=lambda n: str(n),
)
@pytest.mark.parametrize("scores", [1 << 26, 2000], ids=["whole", "sliced"])
def test_dense_attention_is_lower_right_causal(
    q_len: int, kv_len: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp_runtime.dense_attention._MAX_SCORES", scores)
    q, k, v = random_qkv(q_len, kv_len)
    out = dense_attention(q, k, v, scale=SCALE)
    assert out.shape == q.shape
    torch.testing.assert_close(out, literal_attention(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("point", "q_len", "kv_len", "path", "reason"),
    [
        pytest.param(POINT, 200, 200, "sparse", "method vertical_slash", id="sparse"),
        pytest.param(POINT, 60, 200, "sparse", "method vertical_slash", id="chunk"),
        pytest.param(POINT, 128, 128, "sparse", "method vertical_slash", id="at min_tokens"),
        pytest.param(POINT, 127, 127, "dense", "short: 127 < min_tokens 128", id="short"),
        pytest.param(POINT, 1, 1, "dense", "short: 1 < min_tokens 128", id="one token"),
        pytest.param(POINT, 1, 200, "dense", "decode", id="decode"),
        pytest.param(replace(POINT, method="dense"), 200, 200, "dense", "method dense", id="dense"),
    ],
)
def test_each_forward_says_its_path_and_why(point, q_len, kv_len, path, reason) -> None:
    engine = engine_of(point)
    engine.begin(q_len=q_len, kv_len=kv_len)
    q, k, v = random_qkv(q_len, kv_len)
    out = engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    assert out.shape == q.shape
    record = engine.report.forwards[-1]
    assert (record.q_len, record.kv_len) == (q_len, kv_len)
    assert (record.path, record.reason) == (path, reason)
    if path == "dense":
        torch.testing.assert_close(out, literal_attention(q, k, v), atol=1e-5, rtol=1e-5)
        assert record.layers == []


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("dense", "share", "minference", "moa")]
)
@pytest.mark.parametrize("q_len", [300, 100], ids="q{}".format)
def test_gamma_one_and_a_long_window_equal_dense_attention(method: str, q_len: int) -> None:
    point = replace(
        POINT, method=method, gamma=1.0, tau=1.0, window=1000, top_k=1000, stride=4, kappa=0.1
    )
    engine = engine_of(point)
    engine.begin(q_len=q_len, kv_len=300)
    q, k, v = random_qkv(q_len, 300)
    out = engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    torch.testing.assert_close(out, literal_attention(q, k, v), atol=1e-5, rtol=1e-5)
    (layer,) = engine.report.forwards[-1].layers
    grid = BlockGrid(q_len=q_len, kv_len=300, block_size=64)
    assert (layer.blocks == grid.num_causal_blocks).all()


@pytest.mark.parametrize("q_len", [300, 100], ids="q{}".format)
def test_sparse_output_is_attention_over_the_decided_blocks(q_len: int) -> None:
    point = replace(POINT, method="sampled", gamma=0.5)
    decisions = []

    class Watched:
        def __init__(self) -> None:
            self.pattern = make_pattern_factory(point, None)()

        def decide(self, inputs):
            decisions.append(self.pattern.decide(inputs))
            return decisions[-1]

        def remember(self, inputs, decision, mass):
            assert decision is decisions[-1]
            assert mass is None

    engine = Engine(
        make_pattern=Watched,
        point=point,
        kernels=ReferenceKernels(),
        block_size=64,
        layers=(0,),
    )
    engine.begin(q_len=q_len, kv_len=300)
    q, k, v = random_qkv(q_len, 300)
    out = engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    (decision,) = decisions
    first_row = (300 - q_len) // 64
    rows = torch.arange(300 - q_len, 300) // 64 - first_row
    tokens = decision.mask[:, :, rows][..., torch.arange(300) // 64]
    assert not tokens.all()
    torch.testing.assert_close(out, literal_attention(q, k, v, tokens), atol=1e-5, rtol=1e-5)


class PivotPattern:
    """Head 1 of the first sequence is dense and lends; records what it is told."""

    log: list[object]

    def __init__(self) -> None:
        self.log = []

    def decide(self, inputs):
        grid, shape = inputs.grid, (inputs.batch, inputs.num_heads)
        dense = torch.zeros(shape, dtype=torch.bool)
        dense[0, 1] = True
        self.log.append(("decide", inputs.layer))
        return Decision(
            mask=grid.diagonal_mask().expand(*shape, -1, -1),
            dense=dense,
            branch=torch.where(dense, Branch.PIVOT, Branch.STREAMING).to(torch.uint8),
            mass_heads=torch.tensor([[1, -1], [-1, -1]]),
            cost=torch.ones(shape),
        )

    def remember(self, inputs, decision, mass):
        self.log.append(("remember", inputs.layer, mass))


def test_pivots_get_their_exact_mass_after_the_kernel() -> None:
    made: list[PivotPattern] = []

    def make() -> PivotPattern:
        made.append(PivotPattern())
        return made[-1]

    engine = Engine(
        make_pattern=make, point=POINT, kernels=ReferenceKernels(), block_size=64, layers=(0, 1)
    )
    engine.begin(q_len=200, kv_len=200)
    q, k, v = random_qkv(200, 200)
    for layer in (0, 1):
        engine.attend(layer=layer, q=q, k=k, v=v, scale=SCALE)
    (pattern,) = made
    assert [entry[:2] for entry in pattern.log] == [
        ("decide", 0),
        ("remember", 0),
        ("decide", 1),
        ("remember", 1),
    ]
    scores = (q[0, 1].double() @ k[0, 0].double().T * SCALE).masked_fill(
        ~torch.ones(200, 200, dtype=torch.bool).tril(), -torch.inf
    )
    attention = torch.nn.functional.pad(scores.softmax(-1), (0, 56))
    rows = [attention[r * 64 : (r + 1) * 64].mean(0).view(4, 64).sum(-1) for r in range(4)]
    mass = pattern.log[1][2]
    torch.testing.assert_close(mass[0, 0], torch.stack(rows).float(), atol=1e-6, rtol=1e-5)
    assert not mass[0, 1].any()
    assert not mass[1].any()
    # A new forward starts with a fresh pattern.
    engine.begin(q_len=200, kv_len=200)
    assert len(made) == 2


def test_first_layers_stay_dense_where_asked() -> None:
    engine = engine_of(replace(POINT, dense_layers=2, method="streaming", window=1, sink=0))
    engine.begin(q_len=300, kv_len=300)
    q, k, v = random_qkv(300, 300)
    outs = [engine.attend(layer=layer, q=q, k=k, v=v, scale=SCALE) for layer in (0, 1, 2)]
    expected = literal_attention(q, k, v)
    torch.testing.assert_close(outs[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outs[1], expected, atol=1e-5, rtol=1e-5)
    assert (outs[2] - expected).abs().max() > 0.1
    reasons = [layer.dense_reason for layer in engine.report.forwards[-1].layers]
    assert reasons == ["dense_layers 2", "dense_layers 2", ""]


def test_chunks_at_gamma_one_equal_the_whole_prompt() -> None:
    q, k, v = random_qkv(300, 300)
    whole = literal_attention(q, k, v)
    engine = engine_of(replace(POINT, gamma=1.0))
    for start, stop in ((0, 130), (130, 131), (131, 300)):
        engine.begin(q_len=stop - start, kv_len=stop)
        out = engine.attend(
            layer=0,
            q=q[:, :, start:stop],
            k=k[:, :, :stop],
            v=v[:, :, :stop],
            scale=SCALE,
        )
        torch.testing.assert_close(out, whole[:, :, start:stop], atol=1e-5, rtol=1e-5)
    assert [record.path for record in engine.report.forwards] == ["sparse", "dense", "sparse"]


def test_misuse_is_refused() -> None:
    engine = engine_of(POINT)
    q, k, v = random_qkv(200, 200)
    with pytest.raises(UsageError, match="attend before begin"):
        engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    engine.begin(q_len=200, kv_len=201)
    with pytest.raises(UsageError, match="200 queries and 200 keys, the forward began with 200"):
        engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    engine.begin(q_len=200, kv_len=200)
    with pytest.raises(UsageError, match="layer 3 is not a full-attention layer"):
        engine.attend(layer=3, q=q, k=k, v=v, scale=SCALE)
    with pytest.raises(UsageError, match="block size 32"):
        engine_of(POINT, block_size=32).begin(q_len=200, kv_len=200)


@pytest.mark.parametrize("last_rows", [1, 2, 9])
def test_last_rows_are_dense_and_counted(last_rows: int) -> None:
    point = replace(POINT, method="streaming", window=1, sink=0, last_rows=last_rows)
    engine = engine_of(point)
    q, k, v = random_qkv(300, 300)
    engine.begin(q_len=300, kv_len=300)
    out = engine.attend(layer=0, q=q, k=k, v=v, scale=SCALE)
    grid = BlockGrid(q_len=300, kv_len=300, block_size=64)
    first = max(grid.num_rows - last_rows, 0)
    dense = dense_attention(q, k, v, scale=SCALE)
    torch.testing.assert_close(out[:, :, first * 64 :], dense[:, :, first * 64 :])
    kept = [2 if 0 < row < first else row + 1 for row in range(grid.num_rows)]
    density = engine.report.summary().totals.density
    assert density == pytest.approx(sum(kept) / grid.num_causal_blocks)
