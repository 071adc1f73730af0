"""Which enabled cluster each head belongs to, as tensors on the device of the prefill."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.kernels.base import ClusterSlots
from sp_runtime.patterns.base import LayerInputs

if TYPE_CHECKING:
    from sp_runtime.profile import Cluster


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class ShareTables:
    """The enabled clusters of a profile; each layer's tensors are made once for each device.

    block_size: the one that the clusters were measured at.
    """

    def __init__(self, clusters: Iterable[Cluster], *, block_size: int) -> None:
        self._block_size = block_size
        enabled = [cluster for cluster in clusters if cluster.enabled]
        self.num_clusters = len(enabled)
        self._cluster_by_head = {
            (member.layer, member.head): index
            for index, cluster in enumerate(enabled)
            for member in cluster.members
        }
        self._cache: dict[tuple[int, int, torch.device], ClusterSlots | None] = {}

    def layer(self, inputs: LayerInputs) -> ClusterSlots | None:
        """The slots of a layer, or None where no head belongs to an enabled cluster.

        Raises:
            UsageError: the block size is not the profile's.
            ProfileMismatchError: the profile has heads that the model lacks.
        """
        require_block_size(self._block_size, inputs.grid.block_size)
        key = (inputs.layer, inputs.num_heads, inputs.q.device)
        return remembered(self._cache, key, inputs, lambda: self._build(*key))

    def _build(self, layer: int, num_heads: int, device: torch.device) -> ClusterSlots | None:
        clusters = {h: c for (at, h), c in self._cluster_by_head.items() if at == layer}
        if not clusters:
            return None
        if max(clusters) >= num_heads:
            raise ProfileMismatchError(
                f"the profile has head {max(clusters)} in layer {layer}, the model {num_heads}",
                hint="use the profile that was made from this model",
            )
        slots = sorted(set(clusters.values()))
        slot = [slots.index(clusters[h]) if h in clusters else -1 for h in range(num_heads)]
        return ClusterSlots(
            cluster=upload(torch.tensor(slots), device),
            member=upload(
                torch.tensor([[s == i for s in slot] for i in range(len(slots))]), device
            ),
            slot=upload(torch.tensor(slot).clamp(min=0), device),
            head_cluster=upload(torch.tensor(slots)[torch.tensor(slot).clamp(min=0)], device),
            clustered=upload(torch.tensor(slot) >= 0, device),
        )


@functools.lru_cache(maxsize=16)
def share_tables(clusters: tuple[Cluster, ...], *, block_size: int) -> ShareTables:
    """The tables of clusters; attaching a model once more finds them on its device."""
    return ShareTables(clusters, block_size=block_size)


def remembered(
    cache: dict[_Key, _Value], key: _Key, inputs: LayerInputs, make: Callable[[], _Value]
) -> _Value:
    """What the cache holds under the key, made where it holds nothing.

    Tensors of a mode, such as fake ones, are no use outside of it: nothing made there is kept.
    """
    if type(inputs.q) is not Tensor:
        return make()
    if key not in cache:
        cache[key] = make()
    return cache[key]


def upload(table: Tensor, device: torch.device) -> Tensor:
    """A host table on the device, without waiting for the work that is queued there."""
    return table.to(device, non_blocking=True)


def require_block_size(calibrated: int, found: int) -> None:
    """UsageError where a profile would run at another block size than it was measured at."""
    if found != calibrated:
        raise UsageError(
            f"the profile was calibrated at block size {calibrated}, the engine runs {found}",
            hint=f"run at block size {calibrated}, or calibrate again",
        )
