"""The methods as slow, obvious float64 code for one head at a time: the oracle of the patterns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sp_runtime.block_index import BlockGrid


class LiteralMethods:
    """Each function follows the method's text word by word; arrays are float64."""

    @staticmethod
    def attention(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
        """Causal softmax [Nq, N] of the last Nq of N positions."""
        q, k = q.astype(np.float64), k.astype(np.float64)
        offset = len(k) - len(q)
        out = np.zeros((len(q), len(k)))
        for i in range(len(q)):
            scores = k[: offset + i + 1] @ q[i] * scale
            weights = np.exp(scores - scores.max())
            out[i, : offset + i + 1] = weights / weights.sum()
        return out

    @staticmethod
    def rows(grid: BlockGrid) -> list[range]:
        """The queries (relative to the chunk) of each block row."""
        size = grid.block_size
        spans = []
        for row in range(grid.first_row, grid.num_cols):
            start = max(row * size, grid.q_offset)
            stop = min((row + 1) * size, grid.kv_len)
            spans.append(range(start - grid.q_offset, stop - grid.q_offset))
        return spans

    @classmethod
    def mass(cls, attention: np.ndarray, grid: BlockGrid, stride: int = 1) -> np.ndarray:
        """Exact, or from every stride-th query counted from the end of the row."""
        out = np.zeros((grid.num_rows, grid.num_cols))
        for row, whole in enumerate(cls.rows(grid)):
            span = [i for i in whole if (whole[-1] - i) % stride == 0]
            for i in span:
                for col in range(grid.num_cols):
                    keys = slice(col * grid.block_size, (col + 1) * grid.block_size)
                    out[row, col] += attention[i, keys].sum() / len(span)
        return out

    @staticmethod
    def gamma_mask(mass: np.ndarray, gamma: float) -> np.ndarray:
        first_row = mass.shape[1] - mass.shape[0]
        mask = np.zeros(mass.shape, dtype=bool)
        for row in range(mass.shape[0]):
            cols = range(first_row + row + 1)
            total = 0.0
            for col in sorted(cols, key=lambda c: (-mass[row, c], c)):
                mask[row, col] = True
                total += mass[row, col]
                if gamma < 1 and total >= gamma:
                    break
        return mask

    @classmethod
    def spread_mask(cls, mass: np.ndarray, gamma: float, slack: float) -> np.ndarray:
        """The largest blocks of the map until it reaches gamma, and what rows need besides."""
        if slack == 1:
            return cls.gamma_mask(mass, gamma)
        mask = cls.gamma_mask(mass, max(1 - slack * (1 - gamma), 1e-6))
        first_row = mass.shape[1] - mass.shape[0]
        places = [(r, c) for r in range(mass.shape[0]) for c in range(first_row + r + 1)]
        total, wanted = 0.0, gamma * mass.sum()
        for place in sorted(places, key=lambda at: (-mass[at], at)):
            mask[place] = True
            total += mass[place]
            if gamma < 1 and total >= wanted:
                break
        return mask

    @staticmethod
    def forced(grid: BlockGrid) -> np.ndarray:
        mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
        for row in range(grid.num_rows):
            mask[row, 0] = True
            mask[row, grid.first_row + row] = True
        return mask

    @staticmethod
    def last_block(attention: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """vertical [N] and slash [N] of the last min(block_size, Nq) queries."""
        num_queries, num_keys = attention.shape
        count = min(block_size, num_queries)
        vertical, slash = np.zeros(num_keys), np.zeros(num_keys)
        for i in range(num_queries - count, num_queries):
            position = num_keys - num_queries + i
            past = attention[i, : position + 1] / count
            vertical[: position + 1] += past
            slash[: position + 1] += past[::-1]  # distances 0, 1, ...
        return vertical, slash

    @staticmethod
    def bins(x: np.ndarray, grid: BlockGrid) -> np.ndarray:
        size = grid.block_size
        return np.array([x[c * size : (c + 1) * size].sum() for c in range(grid.num_cols)])

    @staticmethod
    def sqrt_jsd(p: np.ndarray, q: np.ndarray) -> float:
        total = 0.0
        for a, b in zip(p.tolist(), q.tolist(), strict=True):
            m = (a + b) / 2
            total += 0.5 * a * math.log(a / m) if a > 0 else 0.0
            total += 0.5 * b * math.log(b / m) if b > 0 else 0.0
        return math.sqrt(max(total, 0.0))

    @staticmethod
    def needed(weights: np.ndarray, gamma: float, block_size: int) -> int:
        """n_v or n_s before clipping."""
        count, total = 0, 0.0
        for weight in sorted(weights.tolist(), reverse=True):
            total += weight
            if gamma < 1 and total > gamma:
                break
            count += 1
        return (count + 1) // block_size + 1

    @staticmethod
    def largest(bins: np.ndarray, count: int) -> list[int]:
        """The `count` largest bins, bin 0 first; ties to the lower index."""
        order = sorted(range(1, len(bins)), key=lambda c: (-bins[c], c))
        return [0, *order][:count]

    @classmethod
    def cross(
        cls,
        vertical: np.ndarray,
        slash: np.ndarray,
        grid: BlockGrid,
        counts: tuple[int, int],
        cover: str,
    ) -> np.ndarray:
        columns = cls.largest(cls.bins(vertical, grid), counts[0])
        diagonals = set()
        for o in cls.largest(cls.bins(slash, grid), counts[1]):
            diagonals |= {o} if cover == "one" else {o, o + 1}
        mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
        for row in range(grid.num_rows):
            for col in range(grid.first_row + row + 1):
                mask[row, col] = col in columns or grid.first_row + row - col in diagonals
        return mask

    @classmethod
    def vertical_slash(
        cls,
        vertical: np.ndarray,
        slash: np.ndarray,
        grid: BlockGrid,
        *,
        gamma: float,
        min_budget: int,
        max_budget: int | None,
        cover: str,
    ) -> np.ndarray:
        low = max(1, math.ceil(min_budget / grid.block_size))
        high = math.inf if max_budget is None else max(1, math.ceil(max_budget / grid.block_size))
        counts = [
            int(min(max(cls.needed(x, gamma, grid.block_size), low), high))
            for x in (vertical, slash)
        ]
        return cls.cross(vertical, slash, grid, (counts[0], counts[1]), cover)

    @classmethod
    def minimum(
        cls, vertical: np.ndarray, slash: np.ndarray, grid: BlockGrid, min_budget: int, cover: str
    ) -> np.ndarray:
        count = max(1, math.ceil(min_budget / grid.block_size))
        return cls.cross(vertical, slash, grid, (count, count), cover)

    @staticmethod
    def key_means(k: np.ndarray, grid: BlockGrid) -> np.ndarray:
        size = grid.block_size
        k = k.astype(np.float64)
        return np.stack([k[c * size : (c + 1) * size].mean(0) for c in range(grid.num_cols)])

    @staticmethod
    def softmax(x: np.ndarray) -> np.ndarray:
        weights = np.exp(x - x.max())
        return weights / weights.sum()

    @classmethod
    def pooled_row(cls, q: np.ndarray, k: np.ndarray, grid: BlockGrid, scale: float) -> np.ndarray:
        last = q.astype(np.float64)[-min(grid.block_size, len(q)) :].mean(0)
        return cls.softmax(cls.key_means(k, grid) @ last * scale)

    @classmethod
    def query_aware(
        cls, q: np.ndarray, k: np.ndarray, grid: BlockGrid, gamma: float, scale: float
    ) -> np.ndarray:
        keys = cls.key_means(k, grid)
        entries: list[tuple[float, int, int]] = []
        for row, span in enumerate(cls.rows(grid)):
            mean = q.astype(np.float64)[span.start : span.stop].mean(0)
            cols = grid.first_row + row + 1
            shares = cls.softmax(keys[:cols] @ mean * scale) / grid.num_rows
            entries += [(share, row, col) for col, share in enumerate(shares)]
        mask = cls.forced(grid)
        total = 0.0
        for share, row, col in sorted(entries, key=lambda e: (-e[0], e[1], e[2])):
            mask[row, col] = True
            total += share
            if gamma < 1 and total >= gamma:
                break
        return mask


@pytest.fixture(scope="session")
def literal() -> type[LiteralMethods]:
    """The oracle, as a fixture because test modules cannot import one another."""
    return LiteralMethods
