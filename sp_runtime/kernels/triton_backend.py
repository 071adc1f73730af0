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
    Layout,
    addressable,
    check_heads,
    check_index,
    check_inputs,
    element_class,
    key_sources,
    layout,
    strides,
    tile_constants,
)
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.schedule import flat_rows
from sp_runtime.kernels.triton_estimate import (
    estimate_programs,
    last_block_estimate,
)
from sp_runtime.kernels.triton_index import row_schedule
from sp_runtime.kernels.triton_pooled import TritonPooled
from sp_runtime.kernels.triton_sampled import (
    sampled_block_mass,
    sampled_programs,
)
from sp_runtime.kernels.triton_select import TritonSelection
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


class TritonKernels(TritonPooled, TritonSelection):
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
        # What follows from layouts is worked out once for all layers: checks and configurations.
        self._attention_config = kept(self._choose_attention)
        self._mass_config = kept(self._choose_mass)
        self._sampled_config = kept(self._choose_sampled)
        self._estimate_configs = kept(self._choose_estimate)
        self._takes_hopper = kept(self._choose_hopper)

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
        layouts = layout(q), layout(k), layout(v)
        config = self._attention_config(*layouts, grid, scale)
        check_index(q, index)
        batch, heads, _, dim = q.shape
        out = torch.empty(batch, grid.q_len, heads, dim, dtype=q.dtype, device=q.device)
        lse = torch.empty(batch, heads, grid.q_len, dtype=torch.float32, device=q.device)
        view = out.transpose(1, 2)
        if self._sort_rows:
            order, taken = row_schedule(index, heads // k.shape[1])
        else:
            order, taken = flat_rows(index), None
        if isinstance(config, HopperConfig):
            # On demand: it imports Gluon, which other GPUs do not need.
            from sp_runtime.kernels.hopper_launch import hopper_attention

            scale_log2 = scale * LOG2_E
            hopper_attention(
                q, k, v, view, lse, index, order, config, scale_log2=scale_log2, taken=taken
            )
            return view, lse
        program = _attention_program(*layouts, grid, scale, config, self._sort_rows)
        program(
            q_ptr=q,
            k_src=k,
            v_src=v,
            out_ptr=out,
            lse_ptr=lse,
            row_ptr=index.row_ptr,
            col_ptr=index.col_idx,
            dense_ptr=index.dense.contiguous(),
            order_ptr=order,
        )
        return view, lse

    def block_mass(
        self, q: Tensor, k: Tensor, lse: Tensor, heads: Tensor, grid: BlockGrid, *, scale: float
    ) -> Tensor:
        """See `Kernels.block_mass`."""
        layouts = layout(q), layout(k)
        config = self._mass_config(*layouts, grid, scale)
        heads = heads.contiguous()
        check_heads(heads, q)
        if lse.shape != q.shape[:3]:
            raise UsageError(f"lse has shape {tuple(lse.shape)}, expected {tuple(q.shape[:3])}")
        lse = lse.contiguous()
        size = (*heads.shape, grid.num_rows, grid.num_cols)
        mass = torch.zeros(size, dtype=torch.float32, device=q.device)
        if isinstance(config, HopperMassConfig):
            from sp_runtime.kernels.hopper_launch import hopper_block_mass

            hopper_block_mass(q, k, lse, heads, mass, grid, config, scale_log2=scale * LOG2_E)
            return mass
        program = _mass_program(*layouts, *heads.shape, grid, scale, config)
        program(q_ptr=q, k_src=k, lse_ptr=lse, heads_ptr=heads, mass_ptr=mass)
        return mass

    def sampled_mass(
        self,
        q: Tensor,
        k: Tensor,
        heads: Tensor,
        grid: BlockGrid,
        *,
        stride: int | tuple[int, ...],
        scale: float,
    ) -> Tensor:
        """See `Kernels.sampled_mass`."""
        layouts = layout(q), layout(k)
        config = self._sampled_config(*layouts, grid, scale)
        heads = heads.contiguous()
        check_heads(heads, q)
        programs = sampled_programs(*layouts, *heads.shape, stride, grid, scale, config)
        return sampled_block_mass(q, k, heads, grid, programs)

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """See `Kernels.last_block`."""
        layouts = layout(q), layout(k)
        configs = self._estimate_configs(*layouts, grid, scale)
        programs = estimate_programs(*layouts, grid, scale, *configs)
        return last_block_estimate(q, k, grid, programs)

    def takes_hopper(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> bool:
        """Whether these tensors go to the warp-specialised kernels."""
        return self._takes_hopper(layout(q), layout(k), layout(v), grid.block_size)

    def _choose_attention(
        self, q: Layout, k: Layout, v: Layout, grid: BlockGrid, scale: float
    ) -> KernelConfig | HopperConfig:
        check_inputs(q, k, grid, scale)
        check_inputs(q, v, grid, scale)
        if not self._choose_hopper(q, k, v, grid.block_size):
            return self._config("attention", q, grid, k, v)
        chosen = self._pinned.get("hopper", HOPPER[q.shape[3]])
        assert isinstance(chosen, HopperConfig)
        return chosen

    def _choose_mass(
        self, q: Layout, k: Layout, grid: BlockGrid, scale: float
    ) -> KernelConfig | HopperMassConfig:
        check_inputs(q, k, grid, scale)
        if not self._choose_hopper(q, k, k, grid.block_size):
            return self._config("mass", q, grid, k)
        chosen = self._pinned.get("hopper_mass", HOPPER_MASS[q.shape[3]])
        assert isinstance(chosen, HopperMassConfig)
        return chosen

    def _choose_sampled(self, q: Layout, k: Layout, grid: BlockGrid, scale: float) -> KernelConfig:
        check_inputs(q, k, grid, scale)
        return self._config("row_lse", q, grid, k)

    def _choose_estimate(
        self, q: Layout, k: Layout, grid: BlockGrid, scale: float
    ) -> tuple[KernelConfig, KernelConfig]:
        check_inputs(q, k, grid, scale)
        return self._config("row_lse", q, grid, k), self._config("estimate", q, grid, k)

    def _choose_hopper(self, q: Layout, k: Layout, v: Layout, block_size: int) -> bool:
        return self._hopper and uses_hopper_kernel(
            self._capability_of(q.device),
            q.shape[-1],
            block_size,
            element_class(q.dtype),
            descriptors=all(addressable(source) for source in (q, k, v)),
        )

    def _config(
        self, operation: Operation, q: Layout, grid: BlockGrid, *sources: Layout
    ) -> KernelConfig:
        chosen = self._pinned.get(operation)
        if isinstance(chosen, KernelConfig):
            return chosen
        return kernel_config(
            operation,
            self._capability_of(q.device),
            q.shape[-1],
            grid.block_size,
            element_class(q.dtype),
            descriptors=all(addressable(source) for source in sources),
        )

    def _capability_of(self, device: torch.device | None) -> tuple[int, int]:
        """Of this device, or of the current one."""
        if self._capability is not None:
            return self._capability
        if device is None:
            return torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 0)
        return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


@kept
def _attention_program(
    q: Layout,
    k: Layout,
    v: Layout,
    grid: BlockGrid,
    scale: float,
    config: KernelConfig,
    ordered: bool,
) -> Program:
    batch, heads = q.shape[:2]
    return Program(
        block_sparse_kernel,
        (batch * heads * grid.num_rows * (grid.block_size // config.block_m),),
        config,
        described=key_sources(config, k_src=k, v_src=v),
        **strides("q", q),
        **strides("k", k),
        **strides("v", v),
        n_q=grid.q_len,
        n_kv=grid.kv_len,
        num_rows=grid.num_rows,
        num_heads=heads,
        group=heads // k.shape[1],
        scale_log2=scale * LOG2_E,
        **tile_constants(q, grid, config),
        ROTATE=config.rotated,
        ORDERED=ordered,
    )


@kept
def _mass_program(
    q: Layout,
    k: Layout,
    batch: int,
    slots: int,
    grid: BlockGrid,
    scale: float,
    config: KernelConfig,
) -> Program:
    return Program(
        block_mass_kernel,
        (grid.num_rows, -(-grid.num_cols // config.chunk), batch * slots),
        config,
        described=key_sources(config, k_src=k),
        **strides("q", q),
        **strides("k", k),
        n_q=grid.q_len,
        n_kv=grid.kv_len,
        num_rows=grid.num_rows,
        num_cols=grid.num_cols,
        num_slots=slots,
        num_heads=q.shape[1],
        group=q.shape[1] // k.shape[1],
        scale_log2=scale * LOG2_E,
        **tile_constants(q, grid, config),
        CHUNK=config.chunk,
    )
