"""The head patterns of a profile, grouped by layer, as tensors on the device of the prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sp_runtime.errors import ProfileMismatchError
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.share_tables import remembered, upload

if TYPE_CHECKING:
    from sp_runtime.profile import HeadShape, HeadWindow, ShapeTable, WindowTable

_BRANCH = {
    "a_shape": Branch.A_SHAPE,
    "vertical_slash": Branch.VERTICAL_SLASH,
    "block_sparse": Branch.BLOCK_SPARSE,
}


class _OfHead(Protocol):
    @property
    def layer(self) -> int: ...

    @property
    def head(self) -> int: ...


_Row = TypeVar("_Row", bound=_OfHead)
_Layer = TypeVar("_Layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeGroup:
    """Heads of one layer with one kind of pattern: heads int64 [S]; sizes in tokens, int64 [S]."""

    heads: Tensor
    vertical: Tensor
    slash: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShapes:
    """One layer's patterns; None where no head has that kind. branch: uint8 [H]."""

    branch: Tensor
    a_shape: ShapeGroup | None
    vertical_slash: ShapeGroup | None
    block_sparse: ShapeGroup | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWindows:
    """One layer's windows, alpha + beta * N tokens: alpha int64 [H], beta float64 [H]."""

    alpha: Tensor
    beta: Tensor

    def tokens(self, kv_len: int) -> Tensor:
        """int64 [H], the windows at a length, rounded up to whole tokens, at least 1."""
        # Whole thousandths, so that no rounding error adds a token.
        thousandths = (self.beta * 1000).round().long()
        return (self.alpha + (thousandths * kv_len + 999) // 1000).clamp(min=1)


class HeadTables(Generic[_Row, _Layer]):
    """Rows of a profile by layer; each layer's tensors are made once for each device."""

    def __init__(
        self, rows: Iterable[_Row], make: Callable[[list[_Row], torch.device], _Layer]
    ) -> None:
        self._rows: dict[int, list[_Row]] = {}
        for row in rows:
            self._rows.setdefault(row.layer, []).append(row)
        self._make = make
        self._cache: dict[tuple[int, int, torch.device], _Layer] = {}

    def layer(self, inputs: LayerInputs) -> _Layer:
        """One layer's tensors; ProfileMismatchError where the heads are not the model's."""
        key = (inputs.layer, inputs.num_heads, inputs.q.device)
        return remembered(self._cache, key, inputs, lambda: self._of(inputs))

    def _of(self, inputs: LayerInputs) -> _Layer:
        rows = sorted(self._rows.get(inputs.layer, []), key=lambda row: row.head)
        if [row.head for row in rows] != list(range(inputs.num_heads)):
            raise ProfileMismatchError(
                f"the profile has patterns of {len(rows)} heads in layer {inputs.layer}, the "
                f"model {inputs.num_heads}",
                hint="use the profile that was made from this model",
            )
        return self._make(rows, inputs.q.device)


def shape_tables(table: ShapeTable) -> HeadTables[HeadShape, LayerShapes]:
    """The patterns of method minference."""
    return HeadTables(table.heads, _layer_shapes)


def window_tables(table: WindowTable) -> HeadTables[HeadWindow, LayerWindows]:
    """The windows of method moa."""
    return HeadTables(table.heads, _layer_windows)


def _layer_shapes(rows: list[HeadShape], device: torch.device) -> LayerShapes:
    def group(kind: str) -> ShapeGroup | None:
        chosen = [row for row in rows if row.kind == kind]
        if not chosen:
            return None
        return ShapeGroup(
            heads=upload(torch.tensor([row.head for row in chosen]), device),
            vertical=upload(torch.tensor([row.vertical for row in chosen]), device),
            slash=upload(torch.tensor([row.slash for row in chosen]), device),
        )

    branch = torch.tensor([_BRANCH[row.kind] for row in rows], dtype=torch.uint8)
    return LayerShapes(
        branch=upload(branch, device),
        a_shape=group("a_shape"),
        vertical_slash=group("vertical_slash"),
        block_sparse=group("block_sparse"),
    )


def _layer_windows(rows: list[HeadWindow], device: torch.device) -> LayerWindows:
    return LayerWindows(
        alpha=upload(torch.tensor([row.alpha for row in rows]), device),
        beta=upload(torch.tensor([row.beta for row in rows], dtype=torch.float64), device),
    )
