"""MoA's offline choice: for every head a window that grows with the prompt, under one budget.

Source: MoA (arXiv 2406.14909): per head the local window alpha + beta * N at N tokens, beside a
sink that every head keeps; under a bound on the mean density of all heads over the calibrated
lengths.

Where this differs: what is maximised is the attention mass inside the window and the sink, mean
over heads and calibrated lengths (the paper estimates the loss of accuracy by gradients), and each
length counts alike (the paper looks for a Pareto front over lengths).

The solver: one option a head, all heads together within a budget, is a multiple-choice knapsack.
Steps along each head's upper concave hull are taken in the order of mass gained a block. Until the
first step that does not fit this is the optimum of the linear relaxation, which that step,
taken in part, completes: its value is an upper bound on every choice, and it is reported. What is
left of the budget then goes to whatever still fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sp_profile.head_search import Progress, SearchConfig, measure_heads
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.profile import HeadWindow, Profile, PromptRecord, WindowTable, full_attention_heads

Matrix = npt.NDArray[np.float64]
SINK = 64
BETAS = (0, 31, 62, 125, 250, 375, 500, 750, 1000)  # thousandths of the prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowOption:
    """alpha: in tokens; beta: in thousandths of the prompt."""

    alpha: int
    beta: int

    def tokens(self, length: int) -> int:
        """The window at a length, as the runtime rounds it."""
        return max(1, self.alpha + -(-self.beta * length // 1000))


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """choice: int64 [LH], the option of every head. value, bound: mean over heads of what is
    gained, and of what no choice within the budget can pass. cost: mean over heads."""

    choice: npt.NDArray[np.int64]
    value: float
    bound: float
    cost: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSearch:
    """table: the windows. prompts: that it ran on. mass, bound, density: of the allocation."""

    table: WindowTable
    prompts: tuple[PromptRecord, ...]
    mass: float
    bound: float
    density: float


def search_windows(
    profile: Profile,
    config: SearchConfig,
    progress: Progress,
    *,
    density: float,
    sink: int = SINK,
) -> WindowSearch:
    """Choose a window for every full-attention head.

    density: bound on the mean over heads and lengths of the computed share of causal blocks, in
    (0, 1]. sink: first tokens that every head keeps.
    Raises UsageError where no windows are within the budget, and as `measure_heads`.
    """
    if not 0 < density <= 1:
        raise UsageError(f"density {density} is not in (0, 1]", hint="try 0.5")
    if sink < 0:
        raise UsageError(f"sink {sink} is negative", hint="in tokens")
    block_size = profile.calibration.block_size
    curves: dict[str, dict[int, Matrix]] = {}

    def observe(prompt: PromptRecord, inputs: LayerInputs, mass: Tensor) -> None:
        curve = kept_by_diagonals(mass, inputs.grid, sink)
        curves.setdefault(prompt.sha256, {})[inputs.layer] = curve.cpu().numpy()

    prompts = measure_heads(profile, config, observe, progress)
    options = window_options(max(prompt.tokens for prompt in prompts), block_size)
    by_length: dict[int, list[Matrix]] = {}
    for prompt in prompts:
        layers = curves[prompt.sha256]
        kept = np.concatenate([layers[layer] for layer in sorted(layers)])  # [LH, C]
        by_length.setdefault(prompt.tokens, []).append(
            kept[:, [diagonals(o, prompt.tokens, block_size) - 1 for o in options]]
        )
    values = np.mean([np.mean(found, axis=0) for _, found in sorted(by_length.items())], axis=0)
    costs = np.mean(
        [window_densities(options, n, block_size, sink) for n in sorted(by_length)], axis=0
    )
    found = allocate(values, costs, density)
    heads = tuple(
        HeadWindow(
            layer=ref.layer,
            head=ref.head,
            alpha=options[pick].alpha,
            beta=options[pick].beta / 1000,
            mass=round(float(min(values[number, pick], 1.0)), 6),
        )
        for number, (ref, pick) in enumerate(
            zip(full_attention_heads(profile.model), found.choice.tolist(), strict=True)
        )
    )
    lengths = ", ".join(map(str, sorted(by_length)))
    source = f"searched on {len(prompts)} calibration prompts of {lengths} tokens"
    return WindowSearch(
        table=WindowTable(source=source, density=density, sink=sink, heads=heads),
        prompts=prompts,
        mass=found.value,
        bound=found.bound,
        density=found.cost,
    )


def window_options(longest: int, block_size: int) -> tuple[WindowOption, ...]:
    """alpha: 0 and doublings of a block up to the longest prompt; beta: `BETAS`; smallest first."""
    alphas = [0] + [
        block_size << n for n in range(max(1, math.ceil(longest / block_size)).bit_length())
    ]
    pairs = [(alpha, beta) for beta in BETAS for alpha in alphas if alpha or beta]
    return tuple(WindowOption(alpha=alpha, beta=beta) for alpha, beta in pairs)


def diagonals(option: WindowOption, length: int, block_size: int) -> int:
    """Block diagonals that the window touches at a length, at most as many as there are."""
    touched = (option.tokens(length) + block_size - 2) // block_size + 1
    return min(touched, math.ceil(length / block_size))


def kept_by_diagonals(mass: Tensor, grid: BlockGrid, sink: int) -> Tensor:
    """float64 [H, C]: attention mass in the sink and the first 1, 2, ... block diagonals.

    mass: float32 [H, R, C] of a whole prompt, so that R = C.
    """
    cols = torch.arange(grid.num_cols, device=mass.device)
    in_sink = (cols * grid.block_size < sink) | (cols == 0)
    distance = (cols[:, None] - cols).clamp(min=0)
    local = torch.where(in_sink, 0.0, mass).double().flatten(1)
    by_distance = torch.zeros(len(mass), grid.num_cols, dtype=torch.float64, device=mass.device)
    by_distance.index_add_(1, distance.flatten(), local)
    first = mass[..., in_sink].sum((-2, -1), dtype=torch.float64)
    return (first[:, None] + by_distance.cumsum(-1)) / grid.num_rows


def window_densities(
    options: Sequence[WindowOption], length: int, block_size: int, sink: int
) -> Matrix:
    """float64 [K]: blocks of each option at a length over causal blocks."""
    blocks = math.ceil(length / block_size)
    cols = np.arange(blocks)
    distance = cols[:, None] - cols
    in_sink = (cols * block_size < sink) | (cols == 0)
    local = np.bincount(distance[(distance >= 0) & ~in_sink], minlength=blocks).cumsum()
    first = int(((distance >= 0) & in_sink).sum())
    causal = blocks * (blocks + 1) // 2
    counts = [first + local[diagonals(option, length, block_size) - 1] for option in options]
    return np.array(counts, dtype=np.float64) / causal


def allocate(values: Matrix, costs: Matrix, budget: float) -> Allocation:
    """One option a head, most value in all, mean cost within the budget.

    values: float64 [LH, K]; costs: float64 [K], positive. UsageError where the cheapest option of
    every head is over the budget already.
    """
    heads = len(values)
    if costs.min() > budget:
        raise UsageError(
            f"density {budget:g} is under {costs.min():.4f}, what the smallest windows compute",
            hint=f"try {min(1.0, math.ceil(costs.min() * 100) / 100 + 0.01):.2f}",
        )
    hulls = [_hull(row, costs) for row in values]
    choice = np.array([hull[0] for hull in hulls], dtype=np.int64)
    left = budget * heads - float(costs[choice].sum())
    steps = []
    for head, hull in enumerate(hulls):
        for number, (low, high) in enumerate(itertools.pairwise(hull)):
            gain, price = values[head, high] - values[head, low], costs[high] - costs[low]
            steps.append((-gain / price, head, number, high, price))
    bound: float | None = None
    stopped: set[int] = set()
    for slope, head, _, option, price in sorted(steps):
        if head in stopped:
            continue
        if price <= left + 1e-12:
            choice[head], left = option, left - price
            continue
        if bound is None:  # the relaxation takes a part of this step, and is done
            bound = float(values[np.arange(heads), choice].sum()) - slope * left
        stopped.add(head)
    _spend(values, costs, choice, left)
    value = float(values[np.arange(heads), choice].sum())
    return Allocation(
        choice=choice,
        value=value / heads,
        bound=(value if bound is None else max(bound, value)) / heads,
        cost=float(costs[choice].mean()),
    )


def _hull(values: npt.NDArray[np.float64], costs: Matrix) -> list[int]:
    """Options on the upper concave hull, from the cheapest to the most valuable."""
    order = sorted(range(len(costs)), key=lambda k: (costs[k], -values[k], k))
    hull: list[int] = []
    for option in order:
        if hull and values[option] <= values[hull[-1]]:
            continue  # dearer and no better
        while len(hull) >= 2:
            low, mid = hull[-2:]
            rise = (values[mid] - values[low]) * (costs[option] - costs[low])
            if rise > (values[option] - values[low]) * (costs[mid] - costs[low]):
                break
            hull.pop()
        hull.append(option)
    return hull


def _spend(values: Matrix, costs: Matrix, choice: npt.NDArray[np.int64], left: float) -> None:
    """Use what is left of the budget, the largest gain that fits first; changes `choice`."""
    while True:
        price = costs[None] - costs[choice][:, None]
        gain = values - values[np.arange(len(values)), choice][:, None]
        gain[price > left + 1e-12] = 0
        head, option = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[head, option] <= 1e-12:
            return
        left -= float(price[head, option])
        choice[head] = option
