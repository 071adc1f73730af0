"""The Triton backend: output buffers and launches of the kernels beside this file.

Nothing here reads device data: grids and buffer sizes follow from shapes alone. Importing this
module imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.block_mass import block_mass_kernel
from sp_runtime.kernels.block_sparse import block_sparse_kernel
from sp_runtime.kernels.launch import (
    LOG2_E,
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
from sp_runtime.kernels.schedule import flat_rows
from sp_runtime.kernels.triton_estimate import last_block_estimate
from sp_runtime.kernels.triton_sampled import sampled_block_mass
from sp_runtime.kernels.triton_select import TritonSelection, device_row_order
from sp_runtime.kernels.tuning import (
    HOPPER,
    HOPPER_MASS,
    AnyConfig,
    HopperConfig,
    HopperMassConfig,
    HopperOperation,
    KernelConfig,
    Operation,
    kernel_config,
    uses_hopper_kernel,
)

_HOPPER_KERNEL = "warp-specialised Hopper kernel"
_PORTABLE_KERNEL = "portable Triton kernel"


class TritonKernels(TritonSelection):
    """`sp_runtime.kernels.base.Kernels` on a CUDA GPU of compute capability 8.0 or more.

    capability: the architecture whose configurations are used; None asks the device of the tensors
        (Triton's interpreter, which runs on CPU tensors, takes those of 8.0).
    sort_rows: launch the longest rows of each KV head first. Costs one launch, pays where row
        lengths do not grow with the row.
    hopper: take the warp-specialised kernels where they apply (`uses_hopper_kernel`).
    pinned: configurations that replace those of `tuning.py`, by operation, as when tuning.
    """

    name = "triton"

    def __init__(
        self,
        *,
        capability: tuple[int, int] | None = None,
        sort_rows: bool = True,
        hopper: bool = True,
        pinned: Mapping[Operation | HopperOperation, AnyConfig] | None = None,
    ) -> None:
        self._capability = capability
        self._sort_rows = sort_rows
        self._hopper = hopper
        self._pinned = dict(pinned or {})

    def describe(self, head_dim: int, block_size: int, dtype: torch.dtype) -> str:
        """Which attention kernel such calls run on the current device, where tensor descriptors can
        address the tensors."""
        capability, element = self._capability_of(None), element_class(dtype)
        return (
            _HOPPER_KERNEL
            if (self._hopper and uses_hopper_kernel(capability, head_dim, block_size, element))
            else _PORTABLE_KERNEL
        )

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> str:
        """See `Kernels.attention_kernel`."""
        return _HOPPER_KERNEL if self.takes_hopper(q, k, v, grid) else _PORTABLE_KERNEL

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
        order = device_row_order(index, group) if self._sort_rows else flat_rows(index)
        if self.takes_hopper(q, k, v, grid):
            # On demand: it imports Gluon, which other GPUs do not need.
            from sp_runtime.kernels.hopper_launch import hopper_attention

            chosen = self._pinned.get("hopper", HOPPER[dim])
            assert isinstance(chosen, HopperConfig)
            with on_device(q):
                view, scale_log2 = out.transpose(1, 2), scale * LOG2_E
                hopper_attention(q, k, v, view, lse, index, order, chosen, scale_log2=scale_log2)
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
                scale_log2=scale * LOG2_E,
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
        heads = heads.contiguous()
        check_heads(heads, q)
        if lse.shape != q.shape[:3]:
            raise UsageError(f"lse has shape {tuple(lse.shape)}, expected {tuple(q.shape[:3])}")
        lse = lse.contiguous()
        if not self.takes_hopper(q, k, k, grid):
            with on_device(q):
                return self._mass(q, k, lse, heads, grid, scale=scale)
        from sp_runtime.kernels.hopper_launch import hopper_block_mass

        chosen = self._pinned.get("hopper_mass", HOPPER_MASS[q.shape[3]])
        assert isinstance(chosen, HopperMassConfig)
        size = (*heads.shape, grid.num_rows, grid.num_cols)
        mass = torch.zeros(size, dtype=torch.float32, device=q.device)
        with on_device(q):
            hopper_block_mass(q, k, lse, heads, mass, grid, chosen, scale_log2=scale * LOG2_E)
        return mass

    def sampled_mass(
        self, q: Tensor, k: Tensor, heads: Tensor, grid: BlockGrid, *, stride: int, scale: float
    ) -> Tensor:
        """See `Kernels.sampled_mass`."""
        check_inputs(q, k, grid, scale)
        heads = heads.contiguous()
        check_heads(heads, q)
        if stride < 1:
            raise UsageError(f"stride {stride} is under 1")
        stride = min(stride, grid.block_size)  # from there on, the last query of each row alone
        config = self._config("row_lse", q, grid, k)
        return sampled_block_mass(q, k, heads, grid, config, stride=stride, scale=scale)

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """See `Kernels.last_block`."""
        check_inputs(q, k, grid, scale)
        return last_block_estimate(
            q,
            k,
            grid,
            scale=scale,
            lse_config=self._config("row_lse", q, grid, k),
            config=self._config("estimate", q, grid, k),
        )

    def _config(
        self, operation: Operation, q: Tensor, grid: BlockGrid, *sources: Tensor
    ) -> KernelConfig:
        chosen = self._pinned.get(operation)
        if isinstance(chosen, KernelConfig):
            return chosen
        return kernel_config(
            operation,
            self._capability_of(q),
            q.shape[-1],
            grid.block_size,
            element_class(q.dtype),
            descriptors=all(addressable(source) for source in sources),
        )

    def takes_hopper(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> bool:
        """Whether these tensors go to the warp-specialised kernels."""
        return self._hopper and uses_hopper_kernel(
            self._capability_of(q),
            q.shape[-1],
            grid.block_size,
            element_class(q.dtype),
            descriptors=all(addressable(source) for source in (q, k, v)),
        )

    def _capability_of(self, tensor: Tensor | None) -> tuple[int, int]:
        """Of the tensor's device, or of the current one."""
        if self._capability is not None:
            return self._capability
        if tensor is None:
            return torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 0)
        return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (8, 0)

    def _mass(
        self,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        heads: Tensor,
        grid: BlockGrid,
        *,
        scale: float,
    ) -> Tensor:
        """`block_mass` on the portable kernel."""
        config = self._config("mass", q, grid, k)
        mass = torch.zeros(
            (*heads.shape, grid.num_rows, grid.num_cols), dtype=torch.float32, device=q.device
        )
        launch(
            block_mass_kernel,
            (grid.num_rows, -(-grid.num_cols // config.chunk), heads.numel()),
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
            scale_log2=scale * LOG2_E,
            **tile_constants(q, grid, config),
            CHUNK=config.chunk,
        )
        return mass
