"""The torch definitions of every choice of blocks: the oracle of the Triton selection kernels.

All of them stay on the device of their inputs and never synchronise with the host; equal weights
are ordered by the lower index. Legend: R query block rows, C key block columns, N keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import SlashCover

# CUDA sorts rows up to this long many at a time, and longer ones one after another.
_LONG_ROW = 4096
# Any row reaches this share with its largest block.
LEAST_SHARE = 1e-6
# Weights sorted at a time: bounds the transient memory of a selection to about 150 MB.
_MAX_SORTED = 1 << 23


def gamma_mask(mass: Tensor, gamma: float | Tensor) -> Tensor:
    """The fewest blocks of every block row that reach a share of its attention mass.

    Row by row the shortest prefix of the causal blocks, largest first, up to and including the one
    with which the sum reaches gamma; blocks are not forced on here.

    Args:
        mass: float32 [..., R, C]; every row sums to 1 and future blocks are 0. The rows are the
            last R of C block rows, as in `BlockGrid`.
        gamma: threshold in (0, 1], a number or float32 broadcastable to mass.shape[:-2]; from 1 on
            every causal block is kept.

    Returns:
        bool [..., R, C]. A row without mass keeps every causal block.
    """
    return gamma_masks(mass, (gamma,))[0]


def gamma_masks(mass: Tensor, gammas: Sequence[float | Tensor]) -> tuple[Tensor, ...]:
    """`gamma_mask` at several thresholds, with one sort for all of them."""
    causal = _causal(mass)
    return tuple(mask & causal for mask in _leading_shares(mass, gammas))


def flat_gamma_masks(mass: Tensor, gammas: Sequence[float | Tensor]) -> tuple[Tensor, ...]:
    """As `gamma_masks`, but the fewest blocks of the whole map [R, C] together, not of each row.

    mass: float32 [..., R, C], not negative, future blocks 0; normalised here.
    """
    causal = _causal(mass)
    flat = mass.flatten(-2)
    share = (flat / flat.sum(-1, keepdim=True)).unsqueeze(-2)
    return tuple(mask.view_as(mass) & causal for mask in _leading_shares(share, gammas))


def spread_gamma_masks(
    mass: Tensor, gammas: Sequence[float | Tensor], *, row_slack: float
) -> tuple[Tensor, ...]:
    """As `flat_gamma_masks`, with no row far behind: row_slack 1 is `gamma_masks`.

    Beside the fewest blocks with which the map reaches gamma, every row has the fewest with which
    it misses at most row_slack times the 1 - gamma that the map may miss, and at least its largest.
    mass: as in `gamma_mask`. row_slack: at least 1.
    """
    if row_slack == 1:
        return gamma_masks(mass, gammas)
    floors = tuple(_row_floor(gamma, row_slack) for gamma in gammas)
    both = zip(flat_gamma_masks(mass, gammas), gamma_masks(mass, floors), strict=True)
    return tuple(flat | rows for flat, rows in both)


def _row_floor(gamma: float | Tensor, row_slack: float) -> float | Tensor:
    """The share of its mass that every row keeps; never 0, so that it keeps its largest block."""
    floor = 1 - row_slack * (1 - gamma)
    return floor.clamp(min=LEAST_SHARE) if isinstance(floor, Tensor) else max(floor, LEAST_SHARE)


def vertical_slash_masks(
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    gammas: Sequence[float | Tensor],
    min_budget: int,
    max_budget: int | None,
    slash_cover: SlashCover,
) -> tuple[Tensor, ...]:
    """`Kernels.vertical_slash` at several thresholds, with one sort for all of them."""
    low = budget_blocks(min_budget, grid.block_size)
    high = grid.num_cols if max_budget is None else budget_blocks(max_budget, grid.block_size)
    if high <= low:  # the budgets leave no choice
        few = torch.full(estimate.vertical.shape[:-1], high, device=estimate.vertical.device)
        columns = diagonals = [few] * len(gammas)
    else:
        columns = _needed_blocks(estimate.vertical, gammas, grid)
        diagonals = _needed_blocks(estimate.slash, gammas, grid)
    return tuple(
        cross_mask(
            estimate,
            grid,
            num_columns=num_columns.clamp(min=low).clamp(max=high),
            num_diagonals=num_diagonals.clamp(min=low).clamp(max=high),
            slash_cover=slash_cover,
        )
        for num_columns, num_diagonals in zip(columns, diagonals, strict=True)
    )


def cross_mask(
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    num_columns: Tensor,
    num_diagonals: Tensor,
    slash_cover: SlashCover,
) -> Tensor:
    """The union of the largest columns and diagonals: counts int64 [B, H], forced ones counted.

    Returns bool [B, H, R, C]; `slash_cover` as in `Kernels.vertical_slash`.
    """
    vertical, slash = estimate.block_sums(grid).clone()
    vertical[..., 0] = torch.inf
    slash[..., 0] = torch.inf
    columns = top_blocks(vertical, num_columns)
    diagonals = top_blocks(slash, num_diagonals)
    if slash_cover == "both":
        diagonals[..., 1:] |= diagonals[..., :-1].clone()
    device = columns.device
    rows = torch.arange(grid.first_row, grid.num_cols, device=device)
    distance = rows[:, None] - torch.arange(grid.num_cols, device=device)  # [R, C] in blocks
    on_diagonal = diagonals.index_select(-1, distance.clamp(min=0).flatten())
    mask = on_diagonal.unflatten(-1, distance.shape) | columns.unsqueeze(-2)
    return mask & (distance >= 0)


def budget_blocks(tokens: int, block_size: int) -> int:
    """A budget in tokens as blocks: rounded up, at least 1."""
    return max(1, -(-tokens // block_size))


def forced_mask(
    rows: int, cols: int, local_blocks: int, device: torch.device | str | None = None
) -> Tensor:
    """bool [R, C]: key block 0, the diagonal, and as many blocks before it; the last rows of a
    grid of C block rows.
    """
    diagonal = torch.arange(cols - rows, cols, device=device)[:, None]
    before = diagonal - torch.arange(cols, device=device)
    forced = (before >= 0) & (before <= local_blocks)
    forced[:, 0] = True
    return forced


def sqrt_jsd(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence over the last dimension, in nats: [0, 0.833].

    p, q: float32 distributions, broadcastable; 0 * ln(0 / x) counts as 0.
    """
    # The clamp keeps m positive where half of a denormal p vanishes.
    m = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny)
    divergence = torch.xlogy(p, p / m).sum(-1) + torch.xlogy(q, q / m).sum(-1)
    return (divergence / 2).clamp_min(0).sqrt()


def sort_descending(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and order (int64) of the last dimension, largest first; ties keep their order.

    x: float32, not negative. On CUDA a few long rows are sorted as one array, which takes a fixed
    number of launches instead of some for every row.
    """
    if x.is_cuda and x.dtype == torch.float32 and x.shape[-1] > _LONG_ROW:
        return sort_as_one(x)
    ordered = x.sort(dim=-1, descending=True, stable=True)
    return ordered.values, ordered.indices


def sort_as_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """`sort_descending` by one sort of (row, value) pairs packed into int64."""
    length, limit = x.shape[-1], (1 << 31) - 1
    rows = x.reshape(-1, length).clamp_min(0)
    # The bits of floats that are not negative are ordered as the floats are.
    falling = limit - rows.view(torch.int32).long()
    number = torch.arange(rows.shape[0], device=x.device)[:, None]
    packed, order = ((number << 32) | falling).flatten().sort(stable=True)
    bits = (limit - (packed & 0xFFFFFFFF)).int()
    order = order.view_as(rows) - number * length
    return bits.view(torch.float32).view(x.shape), order.view(x.shape)


def top_blocks(weights: Tensor, count: Tensor) -> Tensor:
    """bool [..., C]: the `count` (int64 [...]) largest bins of weights [..., C]."""
    order = weights.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(weights.shape[-1], device=weights.device)
    keep = rank < count.unsqueeze(-1)
    return torch.empty_like(keep).scatter_(-1, order, keep)


def take_heads(x: Tensor, heads: Tensor) -> Tensor:
    """x [B, H, ...] at heads int64 [B, S] -> [B, S, ...]; arbitrary where heads is -1."""
    index = heads.clamp(min=0).view(*heads.shape, *([1] * (x.dim() - 2)))
    return x.gather(1, index.expand(*heads.shape, *x.shape[2:]))


def _needed_blocks(
    weights: Tensor, gammas: Sequence[float | Tensor], grid: BlockGrid
) -> list[Tensor]:
    """int64 [B, H] for each gamma, n_v or n_s of weights [B, H, N] before the budgets."""
    reached = sort_descending(weights)[0].cumsum(-1)
    counts = []
    for gamma in gammas:
        # The sum of all entries is 1 but for rounding, which must not drop entries at gamma 1.
        if isinstance(gamma, Tensor):
            spread = gamma.unsqueeze(-1)
            within = (reached <= spread) | (spread >= 1)
        else:
            within = reached <= gamma if gamma < 1 else torch.ones_like(reached, dtype=torch.bool)
        counts.append((within.sum(-1) + 1) // grid.block_size + 1)
    return counts


def _causal(mass: Tensor) -> Tensor:
    rows, cols = mass.shape[-2:]
    return torch.ones(rows, cols, dtype=torch.bool, device=mass.device).tril(cols - rows)


def _leading_shares(weights: Tensor, gammas: Sequence[float | Tensor]) -> tuple[Tensor, ...]:
    """bool [..., R, C], `_shortest_prefixes` of every row, a bounded number of rows at a time."""
    lead, (rows, cols) = weights.shape[:-2], weights.shape[-2:]
    flat = weights.reshape(-1, rows, cols)
    spread = [
        gamma.expand(lead).reshape(-1, 1, 1) if isinstance(gamma, Tensor) else gamma
        for gamma in gammas
    ]
    step = max(1, _MAX_SORTED // (rows * cols))
    parts = []
    for start in range(0, flat.shape[0], step):
        part = slice(start, start + step)
        chosen = [gamma[part] if isinstance(gamma, Tensor) else gamma for gamma in spread]
        parts.append(_shortest_prefixes(flat[part], chosen))
    return tuple(torch.cat(masks).view(*lead, rows, cols) for masks in zip(*parts, strict=True))


def _shortest_prefixes(weights: Tensor, gammas: Sequence[float | Tensor]) -> list[Tensor]:
    """bool, the largest entries of the last dimension up to the one whose sum reaches gamma."""
    ordered, order = sort_descending(weights)
    before = pad(ordered.cumsum(-1)[..., :-1], (1, 0))
    masks = []
    for gamma in gammas:
        # Rounding could end the sum short of 1, or reach it early: 1 means every entry.
        if isinstance(gamma, Tensor):
            keep = (before < gamma) | (gamma >= 1)
        else:
            keep = before < gamma if gamma < 1 else torch.ones_like(before, dtype=torch.bool)
        masks.append(torch.empty_like(keep).scatter_(-1, order, keep))
    return masks
