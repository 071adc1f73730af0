"""Recall-density curves: attention mass that each way of computing a head keeps, against blocks.

Everything comes from the shards of a calibration run. Costs count the blocks computed and those
spent on estimates, over a head's causal blocks; recall is the attention mass inside the mask,
averaged over block rows. Means and tenth percentiles are over heads and prompts of one length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_profile.atomic import publish_bytes, publish_file
from sp_profile.candidates import Candidate
from sp_profile.clustering import choose_anchor, cluster_heads, first_lender, served_by
from sp_profile.evidence import MASS_PASS_COST
from sp_profile.measure import row_estimate_cost
from sp_profile.plan_curves import planned_curves
from sp_profile.plan_data import TableBuilder, length_class, similarity_of
from sp_profile.run_folder import Run, open_run
from sp_profile.shard import PromptShard
from sp_profile.similarity import MIN_BLOCK_ROWS
from sp_runtime.patterns.cost import sampled_cost
from sp_runtime.profile import full_attention_heads

CURVES_SCHEMA = "sp.curves"
ORACLE = "own exact mask (oracle)"
DISTANCES = (0.4, 0.5, 0.6)
_TAIL = 0.1
_MIN_CLUSTER = 5

Vector = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One way of computing every head, at one length.

    method: points of one method make a curve; setting: what differs along it. tokens: mean over
    the prompts. cost, recall: means; recall_p10: tenth percentile over heads and prompts.
    """

    method: str
    setting: str
    length: int
    prompts: int
    tokens: float
    cost: float
    recall: float
    recall_p10: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """The curves of one run. notes: what the methods mean, for people."""

    schema: str = CURVES_SCHEMA
    model: str
    block_size: int
    gamma: float
    points: tuple[CurvePoint, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lending:
    """Who lends to whom at one clustering: int32 [LH], the lender of each head or -1."""

    name: str
    setting: str
    lender: npt.NDArray[np.int32]


def recall_density(run_path: Path, progress: Progress | None = None) -> Curves:
    """Every method that a run has measured, by length class (powers of two).

    Raises UsageError (no or an unfinished run), CorruptArtefactError.
    """
    run = open_run(run_path)
    lendings = _lendings(run)
    builder = TableBuilder(run.config)
    found: dict[tuple[str, str, int], list[tuple[Vector, Vector]]] = {}
    tokens: dict[int, list[int]] = {}
    for number, shard in enumerate(run.shards(), start=1):
        length = length_class(shard.prompt.tokens)
        tokens.setdefault(length, []).append(shard.prompt.tokens)
        if shard.grid.num_rows >= MIN_BLOCK_ROWS:
            builder.add(shard)
        for method, setting, cost, recall in _measured(shard, run, lendings):
            found.setdefault((method, setting, length), []).append((cost, recall))
        if progress is not None:
            progress(number, len(run.entries))
    for length, rows in builder.by_length().items():
        for method, setting, cost, recall in planned_curves(builder.result(rows)):
            found[method, setting, length] = list(zip(cost, recall, strict=True))
    points = [_point(key, parts, tokens[key[2]]) for key, parts in found.items()]
    return Curves(
        model=run.config.model,
        block_size=run.config.block_size,
        gamma=run.config.gamma,
        points=tuple(sorted(points, key=lambda p: (p.length, p.method, p.cost))),
        notes=_notes(run),
    )


def store_parquet(path: Path, curves: Curves) -> None:
    """One row a point, published atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema(
        [
            pa.field(field.name, kinds[str(field.type)], nullable=False)
            for field in dataclasses.fields(CurvePoint)
        ],
        metadata={"sp.schema": CURVES_SCHEMA},
    )
    rows: list[dict[str, Any]] = [dataclasses.asdict(point) for point in curves.points]
    with publish_file(path) as file:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def store_plot(path: Path, curves: Curves) -> None:
    """Mean and tenth percentile of recall against cost, a column a length; needs matplotlib."""
    from sp_profile.figures.curves import draw_curves

    publish_bytes(path, draw_curves(curves))


def _lendings(run: Run) -> tuple[_Lending, ...]:
    """Lenders by average-linkage clustering of this run, first in layer order and medoid.

    None where every prompt has too few block rows for heads to be compared.
    """
    refs = full_attention_heads(run.fingerprint)
    layers = np.array([ref.layer for ref in refs], dtype=np.int32)
    similarity = similarity_of(run)
    if similarity is None:
        return ()
    mean = similarity.mean
    lendings = []
    for distance in DISTANCES:
        clusters = cluster_heads(mean, distance=distance, min_cluster_size=_MIN_CLUSTER).members
        firsts = np.full(len(refs), -1, dtype=np.int32)
        medoids = firsts.copy()
        for members in clusters:
            for lender, table in (
                (first_lender(members, layers), firsts),
                (choose_anchor(members, layers, mean), medoids),
            ):
                if lender is not None:
                    table[list(served_by(lender, members, layers))] = lender
        setting = f"distance={distance:g}"
        lendings.append(_Lending(name="first head lends", setting=setting, lender=firsts))
        lendings.append(_Lending(name="medoid lends", setting=setting, lender=medoids))
    return tuple(lendings)


def _measured(
    shard: PromptShard, run: Run, lendings: Sequence[_Lending]
) -> Iterator[tuple[str, str, Vector, Vector]]:
    """(method, setting, cost, recall) of one prompt, float64 [LH] each."""
    for number, candidate in enumerate(run.config.candidates):
        method, setting = _names(candidate)
        yield (
            method,
            setting,
            shard.candidate_cost[:, number].astype(np.float64),
            shard.candidate_recall[:, number].astype(np.float64),
        )
    if shard.oracle_density is not None and shard.oracle_recall is not None:
        for number, gamma in enumerate(run.config.oracle_gammas):
            cost = shard.oracle_density[:, number].astype(np.float64)
            yield (
                ORACLE,
                f"gamma={gamma:g}",
                cost,
                shard.oracle_recall[:, number].astype(np.float64),
            )
    else:
        exact, own = shard.density.astype(np.float64), np.diag(shard.recall_exact)
        yield ORACLE, f"gamma={run.config.gamma:g}", exact, own.astype(np.float64)
    alone = _vertical_slash_column(run.config.candidates, run.config.gamma)
    if alone is not None:
        for lending in lendings:
            yield from _shared(shard, run, lending, alone)


def _shared(
    shard: PromptShard, run: Run, lending: _Lending, alone: int
) -> Iterator[tuple[str, str, Vector, Vector]]:
    """Borrowing with lenders computed densely, and with lenders computed from sampled queries.

    Heads that neither lend nor borrow run vertical-slash at the run's gamma. Lenders are charged
    for what they compute; every head pays the last-row estimate, as the published rules need it.
    """
    borrowers = np.flatnonzero(lending.lender >= 0)
    lenders = np.unique(lending.lender[borrowers])
    givers = lending.lender[borrowers]
    estimate = row_estimate_cost(shard.grid)
    sampling = sampled_cost(shard.grid, run.config.sample_stride) / shard.grid.num_causal_blocks
    kinds = (
        ("exact", 1.0 + MASS_PASS_COST + estimate, 1.0, shard.recall_exact, shard.density),
        (
            "sampled",
            shard.sampled_density[lenders] + sampling + estimate,
            np.diag(shard.recall_sampled)[lenders],
            shard.recall_sampled,
            shard.sampled_density,
        ),
    )
    for kind, lender_cost, lender_recall, recalls, density in kinds:
        cost = shard.candidate_cost[:, alone].astype(np.float64)
        recall = shard.candidate_recall[:, alone].astype(np.float64)
        cost[borrowers] = density[givers] + estimate
        recall[borrowers] = recalls[borrowers, givers]
        cost[lenders] = lender_cost
        recall[lenders] = lender_recall
        yield f"{lending.name}, {kind}", lending.setting, cost, recall


def _point(
    key: tuple[str, str, int], parts: Sequence[tuple[Vector, Vector]], tokens: Sequence[int]
) -> CurvePoint:
    cost = np.concatenate([cost for cost, _ in parts])
    recall = np.concatenate([recall for _, recall in parts])
    return CurvePoint(
        method=key[0],
        setting=key[1],
        length=key[2],
        prompts=len(parts),
        tokens=float(np.mean(tokens)),
        cost=float(cost.mean()),
        recall=float(recall.mean()),
        recall_p10=float(np.quantile(recall, _TAIL)),
    )


def _names(candidate: Candidate) -> tuple[str, str]:
    if candidate.stride is not None:
        return f"sampled, stride {candidate.stride}", f"gamma={candidate.gamma:g}"
    if candidate.window is not None:
        return "streaming", f"window={candidate.window}"
    return candidate.assignment, f"gamma={candidate.gamma:g}"


def _vertical_slash_column(candidates: Sequence[Candidate], gamma: float) -> int | None:
    for number, one in enumerate(candidates):
        if one.assignment == "vertical_slash" and one.gamma == gamma:
            return number
    return None


def _notes(run: Run) -> tuple[str, ...]:
    return (
        "cost: blocks computed and spent on estimates, over causal blocks",
        "length: up to so many tokens, and more than half of it",
        "own exact mask: estimates not counted, so no method can be had at this cost",
        "plan, mixture: chosen on one half of a length's prompts and measured on the other, both "
        "ways, where there are halves; a mixture lends nothing",
        f"lending at gamma {run.config.gamma:g}: average linkage on 1 - Jaccard, clusters of at "
        f"least {_MIN_CLUSTER}; lenders come from an earlier layer and are charged; other heads "
        "run vertical_slash; chosen and measured on the same prompts",
    )
