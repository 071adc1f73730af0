"""The Triton backend: output buffers and launches of the kernels beside this file.

Nothing here reads device data: grids and buffer sizes follow from shapes alone. Importing this
module imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex, expand_dense
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.block_mass import block_mass_kernel, combine_lse_kernel, row_lse_kernel
from sp_runtime.kernels.block_sparse import block_sparse_kernel
from sp_runtime.kernels.build_index import count_kernel, fill_kernel
from sp_runtime.kernels.estimate import estimate_kernel, slash_kernel
from sp_runtime.kernels.launch import (
    addressable,
    check_heads,
    check_inputs,
    descriptor_or_pointer,
    element_class,
    launch,
    on_device,
    strides,
    tile_constants,
)
from sp_runtime.kernels.schedule import flat_rows, row_order
from sp_runtime.kernels.tuning import (
    HOPPER,
    KernelConfig,
    Operation,
    kernel_config,
    uses_hopper_kernel,
)

_LOG2_E = 1.4426950408889634
# Mask columns a program reads at once, and keys a slash or combine program writes.
_COLS = 256


class TritonKernels:
    """`sp_runtime.kernels.base.Kernels` on a CUDA GPU of compute capability 8.0 or more.

    capability: the architecture whose configurations are used; None asks the device of the tensors
        (Triton's interpreter, which runs on CPU tensors, takes those of 8.0).
    sort_rows: launch the longest rows of each KV head first. Costs a device sort, pays where row
        lengths do not grow with the row.
    hopper: take the warp-specialised attention kernel where it applies (`uses_hopper_kernel`).
    """

    name = "triton"

    def __init__(
        self,
        *,
        capability: tuple[int, int] | None = None,
        sort_rows: bool = True,
        hopper: bool = True,
    ) -> None:
        self._capability = capability
        self._sort_rows = sort_rows
        self._hopper = hopper

    def describe(self, head_dim: int, block_size: int, dtype: torch.dtype) -> str:
        """Which attention kernel such calls run on the current device, as one line."""
        capability, element = self._capability_of(None), element_class(dtype)
        if self._hopper and uses_hopper_kernel(capability, head_dim, block_size, element):
            return f"Hopper kernel (portable where a chunk does not start at k x {block_size})"
        return "portable Triton kernel"

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.attention`."""
        grid = index.grid
        check_inputs(q, k, grid, scale)
        check_inputs(q, v, grid, scale)
        batch, heads, _, dim = q.shape
        if (index.batch, index.num_heads) != (batch, heads):
            raise UsageError(
                f"index is for {index.batch} x {index.num_heads} heads, q has {batch} x {heads}"
            )
        group = heads // k.shape[1]
        out = torch.empty(batch, grid.q_len, heads, dim, dtype=q.dtype, device=q.device)
        lse = torch.empty(batch, heads, grid.q_len, dtype=torch.float32, device=q.device)
        order = row_order(index, group) if self._sort_rows else flat_rows(index)
        if self.takes_hopper(q, k, v, grid):
            # On demand: it imports Gluon, which other GPUs do not need.
            from sp_runtime.kernels.hopper_launch import hopper_attention

            with on_device(q):
                view, scale_log2 = out.transpose(1, 2), scale * _LOG2_E
                hopper_attention(
                    q, k, v, view, lse, index, order, HOPPER[dim], scale_log2=scale_log2
                )
            return view, lse
        config = self._config("attention", q, grid, k, v)
        work = batch * heads * grid.num_rows * (grid.block_size // config.block_m)
        with on_device(q):
            launch(
                block_sparse_kernel,
                (work,),
                config,
                q_ptr=q,
                k_src=descriptor_or_pointer(k, config),
                v_src=descriptor_or_pointer(v, config),
                out_ptr=out,
                lse_ptr=lse,
                row_ptr=index.row_ptr,
                col_ptr=index.col_idx,
                dense_ptr=index.dense.contiguous().view(torch.uint8),
                order_ptr=order,
                **strides("q", q),
                **strides("k", k),
                **strides("v", v),
                n_q=grid.q_len,
                n_kv=grid.kv_len,
                num_rows=grid.num_rows,
                num_heads=heads,
                group=group,
                scale_log2=scale * _LOG2_E,
                **tile_constants(q, grid, config),
                ROTATE=config.rotated,
                ORDERED=self._sort_rows,
            )
        return out.transpose(1, 2), lse

    def block_mass(
        self, q: Tensor, k: Tensor, lse: Tensor, heads: Tensor, grid: BlockGrid, *, scale: float
    ) -> Tensor:
        """See `Kernels.block_mass`."""
        check_inputs(q, k, grid, scale)
        check_heads(heads, q)
        if lse.shape != q.shape[:3]:
            raise UsageError(f"lse has shape {tuple(lse.shape)}, expected {tuple(q.shape[:3])}")
        with on_device(q):
            return self._mass(q, k, lse.contiguous(), heads, grid, stride=1, scale=scale)

    def sampled_mass(
        self, q: Tensor, k: Tensor, heads: Tensor, grid: BlockGrid, *, stride: int, scale: float
    ) -> Tensor:
        """See `Kernels.sampled_mass`."""
        check_inputs(q, k, grid, scale)
        check_heads(heads, q)
        if stride < 1:
            raise UsageError(f"stride {stride} is under 1")
        stride = min(stride, grid.block_size)  # from there on, the last query of each row alone
        config = self._config("row_lse", q, grid, k)
        tiles = -(-grid.num_rows * _slots_per_row(grid, stride) // config.block_m)
        with on_device(q):
            lse = self._row_lse(
                q, k, heads, grid, config, width=tiles * config.block_m, stride=stride, scale=scale
            )
            return self._mass(q, k, lse, heads, grid, stride=stride, scale=scale, sampled=True)

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """See `Kernels.last_block`."""
        check_inputs(q, k, grid, scale)
        batch, heads = q.shape[:2]
        block = grid.block_size
        config = self._config("estimate", q, grid, k)
        tiles = -(-grid.kv_len // config.block_n)
        shape = (batch, heads, grid.kv_len)
        vertical = torch.empty(shape, dtype=torch.float32, device=q.device)
        slash = torch.empty(shape, dtype=torch.float32, device=q.device)
        part = torch.empty(
            (batch * heads, block // config.block_m, 2, tiles, config.block_n),
            dtype=torch.float32,
            device=q.device,
        )
        every = torch.zeros(batch, heads, dtype=torch.int64, device=q.device)
        with on_device(q):
            lse = self._row_lse(
                q,
                k,
                every,
                grid,
                self._config("row_lse", q, grid, k),
                width=block,
                stride=1,
                scale=scale,
                last=True,
            )
            launch(
                estimate_kernel,
                (batch * heads, tiles),
                config,
                q_ptr=q,
                k_src=descriptor_or_pointer(k, config),
                lse_ptr=lse,
                vertical_ptr=vertical,
                part_ptr=part,
                **strides("q", q),
                **strides("k", k),
                n_q=grid.q_len,
                n_kv=grid.kv_len,
                num_heads=heads,
                group=heads // k.shape[1],
                scale_log2=scale * _LOG2_E,
                **tile_constants(q, grid, config),
            )
            launch(
                slash_kernel,
                (batch * heads, -(-grid.kv_len // _COLS)),
                None,
                part_ptr=part,
                slash_ptr=slash,
                n_q=grid.q_len,
                n_kv=grid.kv_len,
                tiles=tiles,
                BLOCK=block,
                BM=config.block_m,
                BN=config.block_n,
                W=_COLS,
            )
        return LastBlockEstimate(vertical=vertical, slash=slash)

    def build_index(self, mask: Tensor, grid: BlockGrid, dense: Tensor | None) -> BlockIndex:
        """See `Kernels.build_index`; the list capacity is that of all causal blocks."""
        if mask.dim() != 4 or mask.shape[2:] != (grid.num_rows, grid.num_cols):
            raise UsageError(
                f"block mask has shape {tuple(mask.shape)}, expected "
                f"[B, H, {grid.num_rows}, {grid.num_cols}] for this grid"
            )
        batch, heads = mask.shape[:2]
        rows = batch * heads * grid.num_rows
        capacity = batch * heads * grid.num_causal_blocks
        if capacity >= 2**31:
            raise ResourceError(
                f"a block index of {capacity} blocks passes 2^31",
                hint="use block size 128, fewer heads at once or chunked prefill",
            )
        dense_bhr = expand_dense(dense, mask.shape[:3], mask.device)
        counts = torch.empty(rows, dtype=torch.int32, device=mask.device)
        row_ptr = torch.zeros(rows + 1, dtype=torch.int32, device=mask.device)
        col_idx = torch.empty(capacity, dtype=torch.int32, device=mask.device)
        shared: dict[str, Any] = {
            "mask_ptr": mask.view(torch.uint8),
            "dense_ptr": dense_bhr.view(torch.uint8),
            **dict(
                zip(("stride_b", "stride_h", "stride_r", "stride_c"), mask.stride(), strict=True)
            ),
            "num_heads": heads,
            "num_rows": grid.num_rows,
            "first_row": grid.first_row,
            "COLS": _COLS,
        }
        with on_device(mask):
            launch(count_kernel, (rows,), None, count_ptr=counts, **shared)
            torch.cumsum(counts, 0, dtype=torch.int32, out=row_ptr[1:])
            launch(fill_kernel, (rows,), None, row_ptr=row_ptr, col_ptr=col_idx, **shared)
        return BlockIndex(grid=grid, row_ptr=row_ptr, col_idx=col_idx, dense=dense_bhr)

    def _config(
        self, operation: Operation, q: Tensor, grid: BlockGrid, *sources: Tensor
    ) -> KernelConfig:
        return kernel_config(
            operation,
            self._capability_of(q),
            q.shape[-1],
            grid.block_size,
            element_class(q.dtype),
            descriptors=all(addressable(source) for source in sources),
        )

    def takes_hopper(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> bool:
        """Whether `attention` runs the warp-specialised kernel for these tensors."""
        return self._hopper and uses_hopper_kernel(
            self._capability_of(q),
            q.shape[-1],
            grid.block_size,
            element_class(q.dtype),
            q_offset=grid.q_offset,
            descriptors=all(addressable(source) for source in (q, k, v)),
        )

    def _capability_of(self, tensor: Tensor | None) -> tuple[int, int]:
        """Of the tensor's device, or of the current one."""
        if self._capability is not None:
            return self._capability
        if tensor is None:
            return torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 0)
        return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (8, 0)

    def _row_lse(
        self,
        q: Tensor,
        k: Tensor,
        heads: Tensor,
        grid: BlockGrid,
        config: KernelConfig,
        *,
        width: int,
        stride: int,
        scale: float,
        last: bool = False,
    ) -> Tensor:
        """Base-2 log-sum-exp over all visible keys: float32 [B*S, width], an entry a query slot."""
        slots = heads.numel()
        chunks = -(-grid.num_cols // config.chunk)
        part = torch.empty(slots, chunks, width, dtype=torch.float32, device=q.device)
        lse = torch.empty(slots, width, dtype=torch.float32, device=q.device)
        launch(
            row_lse_kernel,
            (width // config.block_m, chunks, slots),
            config,
            q_ptr=q,
            k_src=descriptor_or_pointer(k, config),
            heads_ptr=heads,
            part_ptr=part,
            **strides("q", q),
            **strides("k", k),
            n_q=grid.q_len,
            n_kv=grid.kv_len,
            num_rows=grid.num_rows,
            num_slots=heads.shape[1],
            group=q.shape[1] // k.shape[1],
            stride=stride,
            width=width,
            scale_log2=scale * _LOG2_E,
            **tile_constants(q, grid, config),
            PER_ROW=_slots_per_row(grid, stride),
            CHUNK=config.chunk,
            LAST=last,
        )
        launch(
            combine_lse_kernel,
            (-(-width // _COLS), slots),
            None,
            part_ptr=part,
            lse_ptr=lse,
            heads_ptr=heads,
            width=width,
            chunks=chunks,
            W=_COLS,
        )
        return lse

    def _mass(
        self,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        heads: Tensor,
        grid: BlockGrid,
        *,
        stride: int,
        scale: float,
        sampled: bool = False,
    ) -> Tensor:
        """float32 [B, S, R, C] from natural lse [B, Hq, Nq], or base-2 [B*S, width] if sampled."""
        config = self._config("mass", q, grid, k)
        per_row = _slots_per_row(grid, stride)
        rows = max(1, config.block_m // per_row)
        mass = torch.zeros(
            (*heads.shape, grid.num_rows, grid.num_cols), dtype=torch.float32, device=q.device
        )
        launch(
            block_mass_kernel,
            (-(-grid.num_rows // rows), -(-grid.num_cols // config.chunk), heads.numel()),
            config,
            q_ptr=q,
            k_src=descriptor_or_pointer(k, config),
            lse_ptr=lse,
            heads_ptr=heads,
            mass_ptr=mass,
            **strides("q", q),
            **strides("k", k),
            n_q=grid.q_len,
            n_kv=grid.kv_len,
            num_rows=grid.num_rows,
            num_cols=grid.num_cols,
            num_slots=heads.shape[1],
            num_heads=q.shape[1],
            group=q.shape[1] // k.shape[1],
            stride=stride,
            width=lse.shape[-1],
            scale_log2=scale * _LOG2_E,
            **tile_constants(q, grid, config),
            PER_ROW=per_row,
            CHUNK=config.chunk,
            SAMPLED=sampled,
        )
        return mass


def _slots_per_row(grid: BlockGrid, stride: int) -> int:
    """Query slots of one block row: a power of two, so that tiles hold whole rows."""
    return int(triton.next_power_of_2(-(-grid.block_size // stride)))
