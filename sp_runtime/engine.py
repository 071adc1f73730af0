"""A prefill, layer by layer: decide, build the index, attend, remember; no host synchronisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sp_runtime.audit import Audit, AuditedHeads
from sp_runtime.block_index import BlockGrid
from sp_runtime.dense_attention import dense_attention
from sp_runtime.errors import UsageError
from sp_runtime.kernels.base import Kernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Constants, LayerInputs, Pattern
from sp_runtime.report import ForwardRecord, LayerRecord, PrefillReport


class Engine:
    """Runs the full-attention layers of one model; call `begin` before every forward.

    Each forward gets a fresh pattern, so chunks of one prompt and successive prompts share no
    state. Decoding steps, prompts under `point.min_tokens` keys and method dense take the dense
    path for the whole forward; the first `point.dense_layers` layers do so in every forward.

    Args:
        make_pattern: makes the pattern of one forward (see `patterns.registry`).
        block_size: of the block grid, in tokens.
        layers: numbers of the layers that will call `attend`.
        report: collects what ran; made here where none is given.
        audit: which heads are computed densely as well; none where left out.
    """

    def __init__(
        self,
        *,
        make_pattern: Callable[[], Pattern],
        point: OperatingPoint,
        kernels: Kernels,
        block_size: int,
        layers: tuple[int, ...],
        report: PrefillReport | None = None,
        audit: Audit | None = None,
    ) -> None:
        self.report = PrefillReport() if report is None else report
        self._make_pattern = make_pattern
        self._audit = audit
        self._point = point
        self._kernels = kernels
        self._block_size = block_size
        self._layers = frozenset(layers)
        self._grid: BlockGrid | None = None
        self._constants = Constants()
        self._pattern: Pattern | None = None
        self._record: ForwardRecord | None = None

    def begin(self, *, q_len: int, kv_len: int) -> None:
        """Start a forward over the last q_len of kv_len positions; decides its path."""
        grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=self._block_size)
        dense_reason = self._dense_reason(grid)
        self._grid = grid
        self._constants = Constants()
        self._pattern = None if dense_reason else self._make_pattern()
        if self._audit is not None and not dense_reason:
            self._audit.begin()
        self._record = ForwardRecord(
            q_len=q_len,
            kv_len=kv_len,
            path="dense" if dense_reason else "sparse",
            reason=dense_reason or f"method {self._point.method}",
            causal_blocks=grid.num_causal_blocks,
        )
        self.report.forwards.append(self._record)

    def attend(self, *, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of one layer, in layer order.

        q: [B, H, Nq, D]; k, v: [B, Hkv, Nk, D], after rotary embedding; scale multiplies q k^T.
        Returns [B, H, Nq, D].

        Raises:
            UsageError: lengths that are not those of `begin`, or a layer that is not the engine's.
        """
        grid, record = self._require(layer, q, k)
        if self._pattern is None:
            return dense_attention(q, k, v, scale=scale)
        audited = self._audited(q)
        if layer < self._point.dense_layers:
            reason = f"dense_layers {self._point.dense_layers}"
            record.layers.append(LayerRecord(layer=layer, dense_reason=reason))
            if audited is not None:
                record.audits.append(audited.dense_record(layer))
            return dense_attention(q, k, v, scale=scale)
        inputs = LayerInputs(
            layer=layer,
            q=q,
            k=k,
            grid=grid,
            scale=scale,
            kernels=self._kernels,
            constants=self._constants,
        )
        decision = self._pattern.decide(inputs)
        rows = grid.closing_rows(self._point.last_rows)
        index = self._kernels.build_index(
            decision.mask, grid, decision.dense, slots=decision.slots, last_rows=rows
        )
        out, lse = self._kernels.attention(q, k, v, index, scale=scale)
        if audited is not None:
            record.audits.append(audited.record(inputs, decision, last_rows=rows))
        mass = None
        if decision.mass_heads is not None:
            # Only dense heads are asked for, so their rows of lse are the dense ones.
            mass = self._kernels.block_mass(q, k, lse, decision.mass_heads, grid, scale=scale)
        self._pattern.remember(inputs, decision, mass)
        record.layers.append(
            LayerRecord(
                layer=layer,
                kernel=self._kernels.attention_kernel(q, k, v, grid),
                blocks=index.blocks(),
                cost=decision.cost,
                branch=decision.branch,
            )
        )
        return out

    def _audited(self, q: Tensor) -> AuditedHeads | None:
        """The heads of the next layer that are audited, None without any."""
        numbers = () if self._audit is None else self._audit.take(q.shape[1])
        return AuditedHeads.on(q, numbers) if numbers else None

    def _dense_reason(self, grid: BlockGrid) -> str:
        """Why this forward is dense, or "" for a sparse one."""
        point = self._point
        if point.method == "dense":
            return "method dense"
        if grid.q_len == 1 and grid.kv_len > 1:
            return "decode"
        if grid.kv_len < point.min_tokens:
            return f"short: {grid.kv_len} < min_tokens {point.min_tokens}"
        return ""

    def _require(self, layer: int, q: Tensor, k: Tensor) -> tuple[BlockGrid, ForwardRecord]:
        if self._grid is None or self._record is None:
            raise UsageError("attend before begin", hint="call begin once for every forward")
        if layer not in self._layers:
            raise UsageError(f"layer {layer} is not a full-attention layer of this engine")
        found, expected = (q.shape[2], k.shape[2]), (self._grid.q_len, self._grid.kv_len)
        if found != expected:
            raise UsageError(
                f"layer {layer} has {found[0]} queries and {found[1]} keys, the forward began "
                f"with {expected[0]} and {expected[1]}",
                hint="call begin once for every forward",
            )
        return self._grid, self._record
