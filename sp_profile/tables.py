"""The Parquet tables of a profile: their schemas, rows, and the ranges that both sides check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import Cluster, HeadPlan, Profile, full_attention_heads
from sp_runtime.strict_json import shown

HEADS_NAME = "heads.parquet"
SIMILARITY_NAME = "similarity.parquet"
MASKS_NAME = "masks.parquet"
NONE = -1
"""Stands in every column for a cluster, anchor, lender or measure that a head has not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRow:
    """What was measured of one head, beside its place in the clusters and the plan.

    cluster, anchor, lender: -1 where there is none. gamma: of the plan.
    density, density_std: of the gamma-mask, mean and deviation over the prompts.
    recall_own, recall_anchor: attention mass inside its own gamma-mask and inside its anchor's.
    jaccard_anchor: of the two masks; both are -1 without an anchor.
    uniform_jsd: sqrtJSD (nats) of its last-row estimate to uniform.
    vertical_slash_recall, vertical_slash_cost: of the estimate at the gamma of the calibration.
    """

    layer: int
    head: int
    cluster: int
    anchor_layer: int
    anchor_head: int
    lender_layer: int
    lender_head: int
    assignment: str
    gamma: float
    density: float
    density_std: float
    recall_own: float
    recall_anchor: float
    jaccard_anchor: float
    uniform_jsd: float
    vertical_slash_recall: float
    vertical_slash_cost: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityColumns:
    """Jaccard of all pairs of heads over the prompts, float32 [LH (LH - 1) / 2] each.

    The order is SciPy's condensed one: (0, 1), (0, 2), ..., (1, 2), ... over heads in
    (layer, head) order. spread: standard deviation. core_mean: without the forced blocks. A pair
    whose masks are all empty has no Jaccard: -1.
    """

    mean: NDArray[np.float32]
    min: NDArray[np.float32]
    spread: NDArray[np.float32]
    core_mean: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRow:
    """The recorded block mask of one head on one prompt.

    blocks: T, causal blocks of the prompt. bits: ceil(T / 8) bytes, the lower triangle in
    row-major order packed by `numpy.packbits` (first block in the highest bit, padding 0).
    """

    prompt_sha256: str
    layer: int
    head: int
    tokens: int
    blocks: int
    bits: bytes


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


_ARROW = {"int": pa.int32(), "float": pa.float32(), "str": pa.string(), "bytes": pa.large_binary()}
HEADS_SCHEMA = _schema(**{f.name: _ARROW[str(f.type)] for f in dataclasses.fields(HeadRow)})
SIMILARITY_SCHEMA = _schema(
    a=pa.int32(),
    b=pa.int32(),
    mean=pa.float32(),
    min=pa.float32(),
    spread=pa.float32(),
    core_mean=pa.float32(),
)
MASKS_SCHEMA = _schema(**{f.name: _ARROW[str(f.type)] for f in dataclasses.fields(MaskRow)})
SORTED_BY = {
    HEADS_NAME: ("layer", "head"),
    SIMILARITY_NAME: ("a", "b"),
    MASKS_NAME: ("prompt_sha256", "layer", "head"),
}
_MEASURES = ("mean", "min", "spread", "core_mean")
# Column: lowest and highest value.
_HEAD_RANGES: dict[str, tuple[float, float]] = {
    "density": (0, 1),
    "density_std": (0, 1),
    "recall_own": (0, 1),
    "recall_anchor": (NONE, 1),
    "jaccard_anchor": (NONE, 1),
    "uniform_jsd": (0, 1),
    "vertical_slash_recall": (0, 1),
    "vertical_slash_cost": (0, 64),
}
_ROUNDING = 1e-3  # float32 sums of masses may pass 1


def heads_table(rows: Iterable[HeadRow]) -> pa.Table:
    """The rows as a table of HEADS_SCHEMA."""
    return _table(list(rows), HEADS_SCHEMA)


def masks_table(rows: Sequence[MaskRow]) -> pa.Table:
    """The rows of one prompt as a table of MASKS_SCHEMA."""
    return _table(rows, MASKS_SCHEMA)


def similarity_table(columns: SimilarityColumns, num_heads: int) -> pa.Table:
    """The pairs of `num_heads` heads as a table of SIMILARITY_SCHEMA."""
    a, b = np.triu_indices(num_heads, k=1)
    arrays = [a, b, *(getattr(columns, name) for name in _MEASURES)]
    return pa.Table.from_arrays(
        [pa.array(x, type=f.type) for x, f in zip(arrays, SIMILARITY_SCHEMA, strict=True)],
        schema=SIMILARITY_SCHEMA,
    )


def similarity_columns(table: pa.Table) -> SimilarityColumns:
    """The measures of a checked table."""
    return SimilarityColumns(
        **{name: table.column(name).combine_chunks().to_numpy() for name in _MEASURES}
    )


def mask_rows(table: pa.Table) -> tuple[MaskRow, ...]:
    """The rows of a table of MASKS_SCHEMA."""
    return tuple(MaskRow(**row) for row in table.to_pylist())


def causal_blocks(tokens: int, profile: Profile) -> int:
    """T: causal blocks of a prompt of that many tokens."""
    columns = -(-tokens // profile.calibration.block_size)
    return columns * (columns + 1) // 2


def mask_bytes(blocks: int) -> int:
    """Bytes that so many bits are packed into."""
    return -(-blocks // 8)


def check_heads(table: pa.Table, profile: Profile, name: str) -> None:
    """Ranges, one row a head, and agreement with the profile; CorruptArtefactError otherwise."""
    for column, (low, high) in _HEAD_RANGES.items():
        _check_range(table, column, low, high, name)
    _check_count(table, len(profile.plan.heads), name)
    clusters = profile.clusters_by_head()
    expected = [_plan_columns(plan, clusters.get(plan.ref)) for plan in profile.plan.heads]
    for column in expected[0] if expected else ():
        for row, found in enumerate(table.column(column).to_pylist()):
            if found != expected[row][column]:
                raise CorruptArtefactError(
                    f"{name}: {column}[{row}]: {shown(found)} differs from the profile's "
                    f"{shown(expected[row][column])}"
                )


def check_similarity(table: pa.Table, profile: Profile, name: str) -> None:
    """Every pair once and in order, measures in range; CorruptArtefactError otherwise."""
    num_heads = len(full_attention_heads(profile.model))
    _check_count(table, num_heads * (num_heads - 1) // 2, name)
    for column, indices in zip("ab", np.triu_indices(num_heads, k=1), strict=True):
        if not np.array_equal(table.column(column).to_numpy(), indices):
            raise CorruptArtefactError(f"{name}: {column}: pairs are not in condensed order")
    for column in _MEASURES:
        _check_range(table, column, NONE, 1, name)


def check_masks(rows: Sequence[MaskRow], profile: Profile, name: str, *, after: str) -> None:
    """One prompt of the profile, hash greater than `after`, every head once, sizes that agree."""
    tokens = {prompt.sha256: prompt.tokens for prompt in profile.calibration.prompts}
    prompt = rows[0].prompt_sha256 if rows else ""
    if prompt not in tokens or prompt <= after:
        raise CorruptArtefactError(f"{name}: prompt_sha256: not the profile's prompts, ascending")
    if [(row.layer, row.head) for row in rows] != [*full_attention_heads(profile.model)]:
        raise CorruptArtefactError(f"{name}: layer, head: not every head once and in order")
    blocks = causal_blocks(tokens[prompt], profile)
    padding = (1 << (-blocks % 8)) - 1
    for row in rows:
        place = f"{name}: prompt {prompt[:12]}, head {[row.layer, row.head]}"
        if (row.prompt_sha256, row.tokens, row.blocks) != (prompt, tokens[prompt], blocks):
            raise CorruptArtefactError(f"{place}: differs from the prompt of the profile")
        if len(row.bits) != mask_bytes(blocks) or row.bits[-1] & padding:
            raise CorruptArtefactError(f"{place}: bits: are not {blocks} bits")


def _plan_columns(plan: HeadPlan, cluster: Cluster | None) -> dict[str, object]:
    """What heads.parquet repeats of the profile, as it reads back from float32."""
    anchor = cluster.anchor if cluster is not None else None
    return {
        "layer": plan.layer,
        "head": plan.head,
        "cluster": NONE if cluster is None else cluster.id,
        "anchor_layer": NONE if anchor is None else anchor.layer,
        "anchor_head": NONE if anchor is None else anchor.head,
        "lender_layer": NONE if plan.lender is None else plan.lender.layer,
        "lender_head": NONE if plan.lender is None else plan.lender.head,
        "assignment": plan.assignment,
        "gamma": float(np.float32(plan.gamma)),
    }


def _table(rows: Sequence[HeadRow] | Sequence[MaskRow], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pydict(
        {name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema
    )


def _check_count(table: pa.Table, expected: int, name: str) -> None:
    if table.num_rows != expected:
        raise CorruptArtefactError(f"{name}: has {table.num_rows} rows, not {expected}")


def _check_range(table: pa.Table, column: str, low: float, high: float, name: str) -> None:
    values = table.column(column).to_numpy()
    # Written so that NaN fails.
    inside = (values >= low - _ROUNDING) & (values <= high + _ROUNDING)
    if not inside.all():
        row = int(np.argmin(inside))
        raise CorruptArtefactError(
            f"{name}: {column}[{row}]: {values[row]} is not in [{low}, {high}]"
        )
