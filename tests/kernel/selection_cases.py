"""Checks of every selection kernel against its torch definition, shared by the scripts beside this.

Two kinds of inputs. Multiples of a power of two sum exactly in float32 whatever the order, and have
many ties: choices must be equal. Random ones must lie between the choices of float64 a little under
and a little over the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import (
    Borrowing,
    ClusterSlots,
    Kernels,
    LastBlockEstimate,
    Pivots,
)
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.kernels.schedule import row_order
from sp_runtime.selection import (
    gamma_masks,
    spread_gamma_masks,
    sqrt_jsd,
    vertical_slash_masks,
)

SLACK = 2e-6
ORACLE = ReferenceKernels()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One grid of queries and keys for `heads` heads of `batch` sequences."""

    q_len: int
    kv_len: int
    block: int
    batch: int = 1
    heads: int = 4

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(q_len=self.q_len, kv_len=self.kv_len, block_size=self.block)

    def label(self) -> str:
        return f"q{self.q_len}-kv{self.kv_len}-block{self.block}-b{self.batch}-h{self.heads}"


SMALL = (
    Case(q_len=1, kv_len=1, block=64),
    Case(q_len=130, kv_len=130, block=64, batch=2),
    Case(q_len=70, kv_len=1000, block=128),
    Case(q_len=333, kv_len=2111, block=64, heads=6),
)
LARGE = (
    Case(q_len=1, kv_len=70_001, block=128),
    Case(q_len=9_000, kv_len=9_000, block=64, batch=2, heads=6),
    Case(q_len=3_333, kv_len=33_333, block=128, heads=32),
    Case(q_len=131_072, kv_len=131_072, block=128, heads=8),
    Case(q_len=256, kv_len=1_048_576, block=128, heads=2),
)


def check_selection(
    kernels: Kernels, case: Case, device: str, *, brief: bool = False
) -> Iterator[tuple[str, bool]]:
    """(name, passed) of every check of one case; `brief` tries fewer thresholds and budgets."""
    yield from _vertical_slash(kernels, case, device, brief)
    yield from _gamma_masks(kernels, case, device, brief)
    yield from _stored(kernels, case, device)
    yield from _borrowing(kernels, case, device)
    yield from _sharing(kernels, case, device)
    yield from _index(kernels, case, device)


def _vertical_slash(
    kernels: Kernels, case: Case, device: str, brief: bool
) -> Iterator[tuple[str, bool]]:
    grid = case.grid
    spread = torch.linspace(0.3, 1.0, case.heads, device=device)
    bounds = ((1, None), (case.block, 8 * case.block), (10**9, None), (300, 300))
    bounds = bounds[1:2] if brief else bounds
    gammas = (spread,) if brief else (0.5, 0.9, 1.0, spread)
    for exact, gamma in product((True, False), gammas):
        estimate = _estimate(case, device, exact)
        definition = estimate if exact else _double(estimate, grid)
        for (low, high), cover in zip(bounds, ("one", "both", "both", "one"), strict=False):
            options = {"min_budget": low, "max_budget": high, "slash_cover": cover}
            choose = partial(_definition, definition, grid, options)
            found = kernels.vertical_slash(estimate, grid, gamma=gamma, **options)
            yield f"vertical_slash-{exact}", _agrees(found, choose, gamma, exact)


def _stored(kernels: Kernels, case: Case, device: str) -> Iterator[tuple[str, bool]]:
    """Masks that go to places of a larger store, the forced blocks on; the rest stays."""
    grid, places = case.grid, case.heads + 3
    gen = torch.Generator().manual_seed(6)
    shape = (case.batch, places, grid.num_rows, grid.num_cols)
    store = (torch.rand(shape, generator=gen) < 0.5).to(device)
    slots = apart(torch.randperm(places, generator=gen)[: case.heads].to(device))
    causal = grid.causal_mask()
    mass = torch.randint(0, 8, (case.batch, case.heads, *causal.shape), generator=gen) / 2.0**7
    mass = (mass * causal).to(device)
    spread = torch.linspace(0.2, 1.0, case.heads, device=device)
    # Of a map whose sum is a power of two every share is exact.
    total = mass.flatten(-2).sum(-1)
    even = mass.clone()
    even[..., -1, 0] += 2.0 ** total.log2().floor().add(1) - total
    for local in (0, 2, 10**6):
        found = kernels.gamma_mask(mass, spread, local_blocks=local)
        yield (
            "gamma_mask-forced",
            torch.equal(found, ORACLE.gamma_mask(mass, spread, local_blocks=local)),
        )
        options = {"local_blocks": local, "slots": slots}
        for slack in (1.0, 2.0):
            options["row_slack"] = slack
            expected = ORACLE.gamma_mask(even, spread, out=store.clone(), **options)
            found = kernels.gamma_mask(even, spread, out=store.clone(), **options)
            yield "gamma_mask-stored", torch.equal(found, expected)
    estimate = _estimate(case, device, True)
    gamma = torch.where(torch.arange(case.heads) % 2 == 0, 0.0, 0.6).to(device)
    budgets = {"min_budget": 2 * case.block, "max_budget": None, "slash_cover": "both"}
    expected, found = store.clone(), store.clone()
    ORACLE.vertical_slash(
        estimate, grid, gamma=gamma, **budgets, out=expected[:, 2 : 2 + case.heads]
    )
    kernels.vertical_slash(estimate, grid, gamma=gamma, **budgets, out=found[:, 2 : 2 + case.heads])
    yield "vertical_slash-stored", torch.equal(found, expected)
    least = kernels.vertical_slash(
        estimate, grid, gamma=1.0, **{**budgets, "max_budget": budgets["min_budget"]}
    )
    same = torch.equal(found[:, 2 : 2 + case.heads : 2], least[:, ::2])
    yield "vertical_slash-least", same


def _borrowing(kernels: Kernels, case: Case, device: str) -> Iterator[tuple[str, bool]]:
    """Guarded borrowers of two lenders; heads 0 and 1 borrow nothing."""
    grid, heads = case.grid, case.heads
    gen = torch.Generator().manual_seed(7)
    lead = (case.batch, heads)

    def rows(*size: int) -> Tensor:
        x = torch.rand(*size, grid.num_cols, generator=gen) ** 4 + 1e-6
        return (x / x.sum(-1, keepdim=True)).to(device)

    number = torch.arange(heads)
    borrowing = Borrowing(
        borrows=(number >= 2).to(device),
        row=(number % 2).to(device),
        slots=torch.where(number >= 2, number % 2, 2 + number).to(device),
        own=(2 + number).to(device),
        gamma=(number / 16).float().to(device),
        fallback=(number / 32 + 0.5).to(device),
        branch=(number % 3).to(torch.uint8).to(device),
    )
    own, lent = rows(*lead), rows(case.batch, 2)
    shape = (case.batch, heads + 2, grid.num_rows, grid.num_cols)
    masks = (torch.rand(shape, generator=gen) < 0.3).to(device)
    branches = {"widened_branch": 14, "fallback_branch": 3}
    distances = sqrt_jsd(lent.index_select(1, borrowing.row), own)[:, 2:]
    middle = float(distances.median())
    for near, far in ((0.0, 0.0), (middle, middle * 1.05), (middle, 2.0), (2.0, 2.0)):
        limits = {"near": near + 3 * SLACK, "far": far + 5 * SLACK}
        if any(bool(((distances - limit).abs() < SLACK).any()) for limit in limits.values()):
            continue  # rounding would decide
        found = kernels.borrow_roles(own, lent, borrowing, **limits, **branches)
        expected = ORACLE.borrow_roles(own, lent, borrowing, **limits, **branches)
        names = ("slots", "gamma", "branch", "onto")
        same = all(torch.equal(getattr(found, n), getattr(expected, n)) for n in names)
        yield "borrow_roles", same
        grown, other = masks.clone(), masks.clone()
        kernels.unite(grown, apart(found.slots), apart(found.onto))
        ORACLE.unite(other, expected.slots, expected.onto)
        yield "unite", torch.equal(grown, other)


def _definition(
    estimate: LastBlockEstimate, grid: BlockGrid, options: dict[str, Any], gamma: float | Tensor
) -> Tensor:
    return vertical_slash_masks(estimate, grid, gammas=(gamma,), **options)[0]


def _gamma_masks(
    kernels: Kernels, case: Case, device: str, brief: bool
) -> Iterator[tuple[str, bool]]:
    grid = case.grid
    gen = torch.Generator().manual_seed(3)
    shape = (case.batch, case.heads, grid.num_rows, grid.num_cols)
    causal = grid.causal_mask()
    ties = torch.randint(0, 8, shape, generator=gen) / 2.0**7 * causal
    sharp = (torch.rand(shape, generator=gen) ** 8 + 1e-9) * causal
    ties[..., 0, :] = 0  # a row without mass
    spread = torch.linspace(0.2, 1.0, case.heads, device=device)
    gammas = (0.9,) if brief else (0.25, 0.9, 1.0, spread)
    for exact, gamma in product((True, False), gammas):
        mass = (ties if exact else sharp / sharp.sum(-1, keepdim=True)).to(device)
        reference = mass if exact else mass.double()
        found = kernels.gamma_mask(mass, gamma)
        passed = _agrees(found, partial(_first, gamma_masks, reference), gamma, exact)
        yield f"gamma_mask-{exact}", passed
        if exact:  # the sum of a whole map is not, and its ties would show it
            continue
        for slack in (1.5, 2.0, 64.0):
            choose = partial(spread_gamma_masks, row_slack=slack)
            found = kernels.gamma_mask(mass, gamma, row_slack=slack)
            yield (
                "gamma_mask-spread",
                _agrees(found, partial(_first, choose, reference), gamma, False),
            )


def _first(masks: Callable[..., tuple[Tensor, ...]], mass: Tensor, gamma: float | Tensor) -> Tensor:
    return masks(mass, (gamma,))[0]


def _sharing(kernels: Kernels, case: Case, device: str) -> Iterator[tuple[str, bool]]:
    grid, clusters = case.grid, 3
    gen = torch.Generator().manual_seed(4)
    lead = (case.batch, case.heads)

    def rows(*size: int) -> Tensor:
        x = torch.rand(*size, grid.num_cols, generator=gen) ** 4
        x = torch.where(torch.rand(x.shape, generator=gen) < 0.2, 0.0, x)
        x[..., 0] += 1e-3
        return (x / x.sum(-1, keepdim=True)).to(device)

    def coins(*size: int) -> Tensor:
        return (torch.rand(*size, generator=gen) < 0.6).to(device)

    slot = torch.tensor([h % 3 - 1 for h in range(case.heads)])  # -1: in no cluster
    cluster = torch.tensor([2, 0])
    slots = ClusterSlots(
        cluster=cluster.to(device),
        member=torch.stack([slot == s for s in range(2)]).to(device),
        slot=slot.clamp(min=0).to(device),
        head_cluster=cluster[slot.clamp(min=0)].to(device),
        clustered=(slot >= 0).to(device),
    )
    own, other = rows(*lead), rows(case.batch, clusters)
    for limit in (0.05, 0.3, 0.5):
        for others, which in ((None, None), (other, slots.head_cluster)):
            found = kernels.close_rows(own, others, which, limit=limit)
            under = ORACLE.close_rows(own, others, which, limit=limit - SLACK)
            over = ORACLE.close_rows(own, others, which, limit=limit + SLACK)
            yield "close_rows", bool((found >= under).all() and (found <= over).all())

    def masks(*size: int) -> Tensor:
        return coins(*size, grid.num_rows, grid.num_cols)

    branch = torch.full(lead, 3, dtype=torch.uint8, device=device)
    cost = torch.rand(lead, generator=gen).to(device)
    for known in (coins(case.batch, clusters), torch.zeros_like(coins(case.batch, clusters))):
        arguments = {"branch": branch, "cost": cost, "pivot_cost": 7.5}
        arguments |= {"shared_branch": 2, "pivot_branch": 1}
        eligible, alike = coins(*lead), coins(*lead)
        found = kernels.share_roles(eligible, alike, known, slots, **arguments)
        roles = ORACLE.share_roles(eligible, alike, known, slots, **arguments)
        names = ("shared", "dense", "heads", "branch", "cost")
        same = all(torch.equal(getattr(found, name), getattr(roles, name)) for name in names)
        yield "share_roles", same
        mask, lent, floor = masks(*lead), masks(case.batch, clusters), masks(*lead)
        for under_it in (None, floor):
            expected = ORACLE.lend(mask, roles.shared, lent, slots.head_cluster, under_it)
            given = kernels.lend(mask.clone(), roles.shared, lent, slots.head_cluster, under_it)
            yield "lend", torch.equal(given, expected)
        states = [
            Pivots(
                known=known.clone(),
                mask=lent.clone(),
                vertical=other.clone(),
                slash=other.clone(),
                covered=torch.zeros(case.batch, clusters, device=device),
            )
            for _ in range(2)
        ]
        sums = torch.stack([own, own.flip(-1)])
        covered = torch.rand(roles.heads.shape, generator=gen).to(device)
        pattern = masks(*roles.heads.shape)
        for backend, state in zip((kernels, ORACLE), states, strict=True):
            backend.keep_pivots(
                state, roles.heads, slots.cluster, pattern=pattern, sums=sums, covered=covered
            )
        names = ("known", "mask", "vertical", "slash", "covered")
        same = all(torch.equal(getattr(states[0], n), getattr(states[1], n)) for n in names)
        yield "keep_pivots", same


def _index(kernels: Kernels, case: Case, device: str) -> Iterator[tuple[str, bool]]:
    from sp_runtime.kernels.triton_index import row_schedule

    grid = case.grid
    gen = torch.Generator().manual_seed(5)
    shape = (case.batch, case.heads, grid.num_rows, grid.num_cols)
    mask = (torch.rand(shape, generator=gen) < 0.2).to(device)
    heads = (torch.rand(shape[:2], generator=gen) < 0.3).to(device)
    some_rows = (torch.rand(shape[:3], generator=gen) < 0.1).to(device)
    slots = torch.randint(0, case.heads, shape[:2], generator=gen).to(device)
    for dense, options in (
        (None, {}),
        (heads, {}),
        (some_rows, {}),
        (None, {"last_rows": 2}),
        (some_rows, {"last_rows": 1, "slots": slots}),
        (None, {"slots": apart(slots)}),
        (heads, {"slots": slots[:1].expand(case.batch, -1)}),
    ):
        found = kernels.build_index(mask, grid, dense, **options)
        expected = ORACLE.build_index(mask, grid, dense, **options)
        used = int(expected.row_ptr[-1])
        same = torch.equal(found.row_ptr, expected.row_ptr)
        same = same and torch.equal(found.col_idx[:used], expected.col_idx[:used])
        same = same and torch.equal(found.dense, expected.dense)
        yield "build_index", same and torch.equal(found.blocks(), expected.blocks())
        for group in (1, 2, case.heads):
            order, taken = row_schedule(found, group)
            same = torch.equal(order, row_order(expected, group).to(order.dtype))
            yield "row_order", same and taken.numel() == order.numel() + 1 and not taken.any()


def apart(table: Tensor) -> Tensor:
    """The same numbers, not side by side in memory."""
    return torch.stack((table, torch.full_like(table, -1)), dim=-1)[..., 0]


def _estimate(case: Case, device: str, exact: bool) -> LastBlockEstimate:
    gen = torch.Generator().manual_seed(2)
    shape = (2, case.batch, case.heads, case.kv_len)
    if exact:
        x = torch.randint(0, 4, shape, generator=gen) / 2.0**20
        x[..., 0] = 1 - x[..., 1:].double().sum(-1)
    else:
        x = torch.rand(shape, generator=gen, dtype=torch.float64) ** 6 + 1e-12
        x = (x / x.sum(-1, keepdim=True)).float()
    vertical, slash = x.to(device)
    return LastBlockEstimate(vertical=vertical, slash=slash)


def _double(estimate: LastBlockEstimate, grid: BlockGrid) -> LastBlockEstimate:
    """In float64, but with the float32 block sums: the order of bins is not what is rounded."""
    return LastBlockEstimate(
        vertical=estimate.vertical.double(),
        slash=estimate.slash.double(),
        sums=estimate.block_sums(grid),
    )


def _agrees(
    found: Tensor, choose: Callable[..., Tensor], gamma: float | Tensor, exact: bool
) -> bool:
    if exact:
        return torch.equal(found, choose(gamma))
    whole = bool((gamma >= 1).all()) if isinstance(gamma, Tensor) else gamma >= 1
    under = choose(gamma if whole else gamma - SLACK)
    over = choose(gamma if whole else gamma + SLACK)
    return bool((found >= under).all() and (found <= over).all())
