"""The price of kinds of estimate: exact menus on small problems, and what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.candidates import Candidate
from sp_profile.plan_choice import Prices, Problem, evaluate
from sp_profile.plan_data import Lending, PlanTables
from sp_profile.plan_kinds import FREE, KindPrices, Kinds, kinds_of
from sp_profile.plan_search import NOBODY, LendingMode
from sp_profile.plan_types import PlanSettings
from sp_profile.planning import make_plan
from sp_runtime.errors import UsageError
from sp_runtime.profile import PromptRecord

CANDIDATES = (
    Candidate(assignment="vertical_slash", gamma=0.8),
    Candidate(assignment="vertical_slash", gamma=0.95),
    Candidate(assignment="query_aware", gamma=0.9),
    Candidate(assignment="streaming", window=256),
    Candidate(assignment="sampled", gamma=0.9, stride=8),
    Candidate(assignment="sampled", gamma=0.9, stride=16),
    Candidate(assignment="sampled", gamma=0.95, stride=16),
)
LENDING = (Lending(gamma=0.9, column=None), Lending(gamma=0.9, column=5))
ALONE = PlanSettings(target_recall=None, recall_floor=0.9, lending=False)
SEEDS = st.integers(0, 2**32 - 1)
PRICES = st.builds(
    KindPrices,
    vertical_slash=st.floats(0, 1),
    query_aware=st.floats(0, 1),
    sampled=st.floats(0, 1),
)


def make_tables(seed: int, *, prompts: int = 4) -> PlanTables:
    """Up to nine heads in up to three layers; a dearer candidate keeps more in most heads."""
    rng = np.random.default_rng(seed)
    layers = np.sort(rng.integers(0, 3, rng.integers(2, 10))).astype(np.int32)
    heads, count = len(layers), len(CANDIDATES)
    cost = np.ones((prompts, heads, count + 1), dtype=np.float32)
    cost[..., :-1] = rng.uniform(0.05, 0.9, (1, heads, count))
    recall = np.ones_like(cost)
    noise = rng.normal(0, 0.03, (prompts, heads, count))
    recall[..., :-1] = np.clip(0.85 + 0.15 * cost[..., :-1] + noise, 0, 1)
    earlier = layers[None, :] < layers[:, None]
    lent = rng.uniform(0.8, 1, (1, len(LENDING), heads, heads)) * np.where(earlier, 1, 0.99)
    names = sorted(hashlib.sha256(bytes([n])).hexdigest() for n in range(prompts))
    return PlanTables(
        layers=layers,
        numbers=np.array([np.sum(layers[:n] == layers[n]) for n in range(heads)], dtype=np.int32),
        candidates=CANDIDATES,
        lending=LENDING,
        oracle_gammas=(0.9,),
        prompts=tuple(PromptRecord(sha256=name, tokens=1024, task="one") for name in names),
        cost=cost,
        recall=recall,
        lent_recall=np.repeat(lent, prompts, 0).astype(np.float16),
        lent_density=np.full((prompts, len(LENDING), heads), 0.2, dtype=np.float32),
        oracle_cost=cost[..., :1] / 2,
        oracle_recall=recall[..., :1],
        row_estimate=np.full(prompts, 0.01),
    )


def price_of(tables: PlanTables, head_columns: list[int], prices: KindPrices) -> float:
    """What the kinds of some heads of one layer cost together, from the definition."""
    needed = {name for k in head_columns if k < len(CANDIDATES) for name in kinds_of(CANDIDATES[k])}
    return sum(getattr(prices, name.split(",")[0]) for name in needed)


def total_of(problem: Problem, price: float, prices: KindPrices) -> float:
    """The objective of the choice at a price of recall, from the definition."""
    tables = problem.tables
    choice = problem.choose(Prices(recall=price))
    cost, recall = evaluate(tables, tables.everyone, choice, problem.settings)
    total = float((cost + price * (1 - recall)).mean(0).sum())
    for layer in np.unique(tables.layers):
        own = [h for h in np.flatnonzero(tables.layers == layer) if choice.lender[h] == NOBODY]
        total += price_of(tables, [int(choice.option[h]) for h in own], prices)
    return total


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, price=st.floats(0, 8), prices=PRICES)
def test_without_lending_no_assignment_of_the_heads_is_cheaper(
    seed: int, price: float, prices: KindPrices
):
    tables = make_tables(seed)
    options = dataclasses.replace(ALONE, recall_floor=1e-6, task_slack=0.0, kind_prices=prices)
    problem = Problem(tables, tables.everyone, options)
    own = (tables.cost + price * (1 - tables.recall)).mean(0, dtype=np.float64)
    # Of candidates with the same kinds the cheapest is best, so that few columns stay to be tried.
    groups: dict[tuple[str, ...], list[int]] = {}
    for column, one in enumerate(CANDIDATES):
        groups.setdefault(kinds_of(one), []).append(column)
    groups[()].append(len(CANDIDATES))
    least = 0.0
    for layer in np.unique(tables.layers):
        heads = np.flatnonzero(tables.layers == layer)[:4]
        if len(heads) < np.sum(tables.layers == layer):
            return  # 5 kinds to the power of the heads
        best = np.inf
        for picked in itertools.product(groups.values(), repeat=len(heads)):
            columns = [
                int(min(group, key=lambda k, h=head: own[h, k]))  # type: ignore[misc]
                for head, group in zip(heads, picked, strict=True)
            ]
            paid = sum(own[h, k] for h, k in zip(heads, columns, strict=True))
            best = min(best, paid + price_of(tables, columns, prices))
        least += best
    assert total_of(problem, price, prices) == pytest.approx(least, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, price=st.floats(0, 8), prices=PRICES)
def test_with_lending_the_total_is_never_higher_than_with_every_kind_or_without_lending(
    seed: int, price: float, prices: KindPrices
):
    tables = make_tables(seed)
    options = PlanSettings(target_recall=None, recall_floor=0.5, kind_prices=prices)
    priced = total_of(Problem(tables, tables.everyone, options), price, prices)
    free = dataclasses.replace(options, kind_prices=FREE)
    assert priced <= total_of(Problem(tables, tables.everyone, free), price, prices) + 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, price=st.floats(0, 8))
def test_the_smallest_price_changes_nothing(seed: int, price: float):
    """At a price of nothing no menu is searched; one far under any gain gives the same choice."""
    tables = make_tables(seed)
    least = KindPrices(vertical_slash=1e-12, query_aware=1e-12, sampled=1e-12)
    chosen = []
    for prices in (FREE, least):
        options = PlanSettings(target_recall=None, recall_floor=0.5, kind_prices=prices)
        chosen.append(Problem(tables, tables.everyone, options).choose(Prices(recall=price)))
    alone = chosen[0].lender == NOBODY
    assert (chosen[0].option == chosen[1].option)[alone].all()
    assert (chosen[0].lender == chosen[1].lender).all()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, prices=PRICES)
def test_menus_are_the_cheapest_while_the_same_heads_lend(seed: int, prices: KindPrices):
    rng = np.random.default_rng(seed)
    layers = np.array([0, 0, 1, 1, 1, 2], dtype=np.int32)
    kinds = Kinds(CANDIDATES, layers, prices)
    own = rng.uniform(0.1, 1, (6, len(CANDIDATES) + 1))
    price = np.where(layers[None] < layers[:, None], rng.uniform(0.05, 0.4, (6, 6)), np.inf)
    mode = LendingMode(opening=own[:, 5], price=price)
    opened = np.where(np.arange(6) == 1, 0, NOBODY).astype(np.int32)
    menus = kinds.best(own, (mode,), (5,), opened)
    offered = kinds.offered(menus)
    assert offered[1, 5]
    least = 0.0
    for layer in range(3):
        heads = np.flatnonzero(layers == layer)
        best = np.inf
        for picked in itertools.product([False, True], repeat=len(kinds.names)):
            has = {name for name, on in zip(kinds.names, picked, strict=True) if on}
            paid = sum(getattr(prices, name.split(",")[0]) for name in has)
            usable = [k for k, one in enumerate(CANDIDATES) if has.issuperset(kinds_of(one))]
            usable.append(len(CANDIDATES))
            if layer == 0 and 5 not in usable:
                continue
            for head in heads:
                paid += own[1, 5] if head == 1 else min(own[head, usable].min(), price[head, 1])
            best = min(best, paid)
        least += best
    cheapest = np.where(offered, own, np.inf).min(1)
    cheapest = np.minimum(cheapest, price[:, 1])
    cheapest[1] = own[1, 5]
    assert cheapest.sum() + kinds.price(menus) == pytest.approx(least)


def test_dearer_kinds_are_fewer_and_the_summary_counts_them():
    tables = make_tables(5)
    found = []
    for price in (0.0, 0.3, 100.0):
        prices = KindPrices(vertical_slash=price, query_aware=price, sampled=price)
        summary = make_plan(tables, dataclasses.replace(ALONE, kind_prices=prices)).summary
        assert summary.kinds_per_layer == pytest.approx(
            sum(count for _, count in summary.kinds) / len(np.unique(tables.layers))
        )
        found.append((summary.kinds_per_layer, summary.cost))
    assert found == sorted(found, key=lambda one: -one[0])
    assert [cost for _, cost in found] == sorted(cost for _, cost in found)
    assert found[0][0] > found[2][0] == 0


@pytest.mark.parametrize("name", ["vertical_slash", "query_aware", "sampled", "streaming"])
def test_a_forbidden_assignment_is_given_to_no_head(name: str):
    free = PlanSettings(target_recall=0.9, recall_floor=0.6, kind_prices=FREE)
    given_to = set()
    for seed in range(6):
        tables = make_tables(seed)
        given_to |= {h.assignment for h in make_plan(tables, free, thorough=False).plan.heads}
        settings = dataclasses.replace(free, without=(name,))
        plan = make_plan(tables, settings, thorough=False).plan
        assert name not in {head.assignment for head in plan.heads}
    assert name in given_to


def test_prices_are_read_in_order_and_refused_where_they_make_no_sense():
    assert KindPrices.parse(()) == KindPrices()
    assert KindPrices.parse(("0",)) == FREE
    only = KindPrices.parse(("0.5", "query_aware=2"))
    assert only == KindPrices(vertical_slash=0.5, query_aware=2.0, sampled=0.5)
    for word in ("streaming=1", "dear", "sampled=", "-1", "nan", "inf"):
        with pytest.raises(UsageError):
            KindPrices.parse((word,))
