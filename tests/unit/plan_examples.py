"""Measurements to plan from: even ones, random ones, and the same in another order."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from sp_profile.candidates import Candidate
from sp_profile.plan_data import Lending, PlanTables
from sp_profile.plan_kinds import FREE
from sp_profile.plan_types import PlanSettings
from sp_runtime.profile import PromptRecord

CANDIDATES = (
    Candidate(assignment="vertical_slash", gamma=0.8),
    Candidate(assignment="vertical_slash", gamma=0.95),
    Candidate(assignment="streaming", window=256),
    Candidate(assignment="sampled", gamma=0.9, stride=8),
    Candidate(assignment="sampled", gamma=0.95, stride=16),
)
LENDING = (
    Lending(gamma=0.9, column=None),
    Lending(gamma=0.9, column=3),
    Lending(gamma=0.95, column=4),
)
FLOOR = PlanSettings(target_recall=None, recall_floor=0.9, kind_prices=FREE)


def make_prompts(count: int, tasks: int = 2) -> tuple[PromptRecord, ...]:
    names = sorted(hashlib.sha256(str(n).encode()).hexdigest() for n in range(count))
    return tuple(
        PromptRecord(sha256=name, tokens=1024, task=f"task{n % tasks}")
        for n, name in enumerate(names)
    )


def make_tables(
    layers: list[int], *, prompts: int = 4, tasks: int = 2, **changes: object
) -> PlanTables:
    """All recalls 0.95, own vertical-slash 0.5, sampled 0.4, masks of density 0.1."""
    heads, count = len(layers), len(CANDIDATES)
    later = np.array(layers)[None, :] > np.array(layers)[:, None]
    lent = np.full((prompts, len(LENDING), heads, heads), 0.95, dtype=np.float16)
    lent[..., later] = -1
    dense = np.ones((prompts, heads, 1), dtype=np.float32)
    cost = np.tile(np.array([0.5, 0.6, 0.7, 0.4, 0.45], dtype=np.float32), (prompts, heads, 1))
    tables = PlanTables(
        layers=np.array(layers, dtype=np.int32),
        numbers=np.array(
            [layers[:n].count(layer) for n, layer in enumerate(layers)], dtype=np.int32
        ),
        candidates=CANDIDATES,
        lending=LENDING,
        oracle_gammas=(0.8, 0.95),
        prompts=make_prompts(prompts, tasks),
        cost=np.concatenate([cost, dense], 2),
        recall=np.concatenate([np.full((prompts, heads, count), 0.95, np.float32), dense], 2),
        lent_recall=lent,
        lent_density=np.full((prompts, len(LENDING), heads), 0.1, dtype=np.float32),
        oracle_cost=np.tile(np.array([0.1, 0.3], dtype=np.float32), (prompts, heads, 1)),
        oracle_recall=np.tile(np.array([0.85, 0.97], dtype=np.float32), (prompts, heads, 1)),
        row_estimate=np.full(prompts, 0.01),
    )
    return dataclasses.replace(tables, **changes)


def random_tables(seed: int, *, prompts: int = 6) -> PlanTables:
    """Up to 12 heads in up to four layers; dearer candidates keep more, as they do in life."""
    rng = np.random.default_rng(seed)
    layers = sorted(rng.integers(0, 4, rng.integers(1, 13)).tolist())
    tables = make_tables(layers, prompts=prompts)
    heads = len(layers)
    cost = rng.uniform(0.1, 0.9, (1, heads, len(CANDIDATES)))
    noise = rng.normal(0, 0.02, (prompts, heads, len(CANDIDATES)))
    recall = np.clip(0.75 + 0.25 * cost + noise, 0, 1)
    lent = np.clip(
        rng.uniform(0.7, 1, tables.lent_recall.shape[1:])
        + rng.normal(0, 0.01, tables.lent_recall.shape),
        0,
        1,
    )
    lent[tables.lent_recall < 0] = -1
    tables.cost[..., :-1], tables.recall[..., :-1] = cost, recall
    return dataclasses.replace(
        tables,
        lent_recall=lent.astype(np.float16),
        lent_density=np.broadcast_to(
            rng.uniform(0.05, 0.5, (1, *tables.lent_density.shape[1:])), tables.lent_density.shape
        ).astype(np.float32),
    )


def shuffled(tables: PlanTables, seed: int) -> PlanTables:
    """The same prompts in another order."""
    order = np.random.default_rng(seed).permutation(len(tables.prompts))
    fields = ("cost", "recall", "lent_recall", "lent_density", "oracle_cost", "oracle_recall")
    return dataclasses.replace(
        tables,
        prompts=tuple(tables.prompts[n] for n in order),
        row_estimate=tables.row_estimate[order],
        **{name: getattr(tables, name)[order] for name in fields},
    )
