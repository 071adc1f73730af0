"""Other attention kernels, measured in the same process where they are installed.

Every peer computes exactly what the measured kernel does: the blocks of one index, or, for the
dense ones, plain causal attention. What it needs beforehand (block lists in its own format) is made
outside of the measured call, as it is for the measured kernel's index.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from sp_profile.bench.check import Inputs
from sp_runtime.block_index import BlockIndex
from sp_runtime.block_index_export import FA4BlockTensors, to_fa4_tensors, to_flex_block_mask
from sp_runtime.dense_attention import dense_attention
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.fa4_launch import fa4_attention, fa4_obstacle, missing_package

Call = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One measurement: inputs, the blocks to compute, and whether they are all causal blocks."""

    inputs: Inputs
    index: BlockIndex
    is_dense: bool


class Peer(Protocol):
    """Another kernel. name: as it is asked for and reported. dense: it knows no block masks."""

    name: str
    dense: bool

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def prepare(self, work: Work) -> Call:
        """A call that returns [1, H, N, D]."""
        ...


class SdpaPeer:
    """A backend of torch's scaled_dot_product_attention: plain causal attention."""

    dense = True

    def __init__(self, name: str, backend: SDPBackend) -> None:
        self.name = name
        self.backend = backend

    def obstacle(self, device: torch.device) -> str | None:
        return _needs_cuda(device)

    def prepare(self, work: Work) -> Call:
        return partial(self.run, work.inputs)

    def run(self, inputs: Inputs) -> Tensor:
        """[1, H, N, D]; RuntimeError where the backend does not take such inputs."""
        with sdpa_kernel(self.backend):
            return sdpa(
                inputs.q,
                inputs.k,
                inputs.v,
                is_causal=True,
                scale=inputs.scale,
                enable_gqa=inputs.group > 1,
            )


class Fa4DensePeer:
    """FlashAttention-4 (package flash-attn-4), plain causal attention."""

    name = "fa4"
    dense = True

    def obstacle(self, device: torch.device) -> str | None:
        return _needs_cuda(device) or missing_package()

    def prepare(self, work: Work) -> Call:
        from flash_attn.cute import flash_attn_func

        q, k, v = (x.transpose(1, 2) for x in _qkv(work))
        scale = work.inputs.scale

        def call() -> Tensor:
            out = flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
            return _first(out).transpose(1, 2)

        return call


class Fa4SparsePeer:
    """FlashAttention-4 with block-sparse tensors, called as the runtime's fa4 kernels call it."""

    name = "fa4-sparse"
    dense = False

    def obstacle(self, device: torch.device) -> str | None:
        return fa4_obstacle(device)

    def prepare(self, work: Work) -> Call:
        lists, scale = to_fa4_tensors(work.index), work.inputs.scale
        return lambda: fa4_attention(*_qkv(work), lists, scale=scale, with_lse=False)[0]


class FlexPeer:
    """FlexAttention, compiled, with full and partial blocks apart.

    The mask_mod of partial blocks is causality alone: the block lists say the rest.
    """

    name = "flex"
    dense = False

    def obstacle(self, device: torch.device) -> str | None:
        return _needs_cuda(device)

    def prepare(self, work: Work) -> Call:
        from torch.nn.attention.flex_attention import flex_attention

        inputs, block_mask = work.inputs, to_flex_block_mask(work.index)
        block_mask.mask_mod = _causal
        compiled = _compiled(flex_attention)

        def call() -> Tensor:
            return compiled(
                inputs.q,
                inputs.k,
                inputs.v,
                block_mask=block_mask,
                scale=inputs.scale,
                enable_gqa=inputs.group > 1,
            )

        return call


class PointerPeer:
    """FlexPrefill's schedule, rebuilt in Triton; see `pointer_peer`."""

    name = "flexprefill"
    dense = False

    def obstacle(self, device: torch.device) -> str | None:
        missing = importlib.util.find_spec("triton") is None
        return _needs_cuda(device) or ("the package triton is not installed" if missing else None)

    def prepare(self, work: Work) -> Call:
        from sp_profile.bench.pointer_peer import grid_numbers, pointer_attention

        if work.inputs.q.shape[3] & (work.inputs.q.shape[3] - 1):
            raise UnsupportedError("head_dim must be a power of two")
        counts, blocks = all_blocks(to_fa4_tensors(work.index))
        return partial(pointer_attention, work.inputs, counts, grid_numbers(blocks))


PEERS: tuple[Peer, ...] = (
    Fa4SparsePeer(),
    FlexPeer(),
    PointerPeer(),
    Fa4DensePeer(),
    SdpaPeer("cudnn", SDPBackend.CUDNN_ATTENTION),
    SdpaPeer("fa2", SDPBackend.FLASH_ATTENTION),
)


def dense_backends(device: torch.device) -> dict[str, Callable[[Inputs], Tensor]]:
    """Plain causal attention by name: SDPA's fast backends on a GPU, its own choice on a CPU."""
    if device.type == "cuda":
        return {peer.name: peer.run for peer in PEERS if isinstance(peer, SdpaPeer)}
    return {"sdpa": lambda x: dense_attention(x.q, x.k, x.v, scale=x.scale)}


def choose_peers(names: str) -> tuple[Peer, ...]:
    """The peers of "auto" (all of them), "none", or a comma-separated list of names."""
    known = {peer.name: peer for peer in PEERS}
    if names == "auto":
        return PEERS
    if names == "none":
        return ()
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"unknown peer {unknown[0]!r}", hint=f"auto, none or {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(wanted))


def all_blocks(lists: FA4BlockTensors) -> tuple[Tensor, Tensor]:
    """Full and partial lists as one: int32 [B, H, R] and [B, H, R, C], ascending.

    The partial block of a row is its diagonal, which comes last.
    """
    places = torch.arange(lists.full_block_idx.shape[-1], device=lists.full_block_idx.device)
    is_full = places < lists.full_block_cnt[..., None]
    blocks = torch.where(is_full, lists.full_block_idx, lists.mask_block_idx)
    return lists.full_block_cnt + lists.mask_block_cnt, blocks


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _compiled(function: Any) -> Any:
    # dynamic=False: one kernel for each length, as fast as it gets.
    return torch.compile(function, dynamic=False)


def _qkv(work: Work) -> tuple[Tensor, Tensor, Tensor]:
    return work.inputs.q, work.inputs.k, work.inputs.v


def _first(out: Any) -> Tensor:
    """FlashAttention returns the output, or (output, log-sum-exp)."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _needs_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "needs a CUDA GPU"
