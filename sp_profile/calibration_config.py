"""What a user asks of a calibration, validated before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from sp_profile.run_config import DTYPE_NAMES, Dtype
from sp_profile.tasks import TASKS
from sp_runtime.block_index import BLOCK_SIZES
from sp_runtime.errors import UsageError, nearest
from sp_runtime.operating_point import SlashCover

# From here on 128 x 128 blocks are fine enough; below, a prompt would have too few of them.
_LONG_PROMPT = 8192
_FULL_BUDGET = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """Settings of one calibration; lengths and budgets in tokens.

    prompts: files, folders or `-`; without any, `samples` prompts of every task at every length.
    device: auto, cpu or cuda[:N]; kernels: auto, triton or reference.
    block_size: 64 or 128; None: 64 where the longest prompt is under 8192 tokens, else 128.
    gamma: attention mass that a recorded mask covers, in (0, 1].
    chat_template: whether prompts become a chat turn; None: if the tokenizer has a template.
    sample_stride: every sample_stride-th query makes the sampled masks.
    min_budget, max_budget, slash_cover, sink, local_blocks, row_slack: as in `OperatingPoint`;
        min_budget None: a sixteenth of the longest prompt, at least two blocks and at most 1024
        tokens.
    peers: measure flexprefill and xattention too, for the curves.
    max_bad_share: largest share of prompts with attention that is not finite, in [0, 1).
    keep_going: leave out prompts that cannot be read or do not fit into the context.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    prompts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = TASKS
    lengths: tuple[int, ...] = (1024, 2048)
    samples: int = 1
    dtype: Dtype = "float32"
    device: str = "auto"
    kernels: str = "auto"
    block_size: int | None = None
    gamma: float = 0.9
    seed: int = 0
    chat_template: bool | None = None
    sample_stride: int = 16
    min_budget: int | None = None
    max_budget: int | None = None
    slash_cover: SlashCover = "both"
    sink: int = 128
    local_blocks: int = 1
    row_slack: float = 2.0
    peers: bool = False
    max_bad_share: float = 0.1
    keep_going: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.gamma <= 1, f"gamma {self.gamma} is not in (0, 1]", "try 0.9")
        _require(
            self.block_size is None or self.block_size in BLOCK_SIZES,
            f"block size {self.block_size} is not supported",
            f"use one of {', '.join(map(str, BLOCK_SIZES))}",
        )
        _require(
            self.dtype in DTYPE_NAMES,
            f"unknown dtype {self.dtype!r}",
            f"use one of {', '.join(DTYPE_NAMES)}",
        )
        for task in self.tasks:
            hint = nearest(task, TASKS) or f"use one of {', '.join(TASKS)}"
            _require(task in TASKS, f"unknown task {task!r}", hint)
        if not self.prompts:
            _require(bool(self.tasks and self.lengths), "no tasks or no lengths", "or give prompts")
            _require(self.samples >= 1, f"samples {self.samples} is under 1", "try 1")
        for length in self.lengths:
            _require(length >= 1, f"length {length} is under 1", "in tokens")
        _require(
            1 <= self.sample_stride <= 64,
            f"sample stride {self.sample_stride} is not in [1, 64]",
            "try 16",
        )
        _require(
            self.min_budget is None or self.min_budget >= 1,
            f"min_budget {self.min_budget} is under 1",
            "in tokens",
        )
        _require(
            self.max_budget is None or self.max_budget >= (self.min_budget or 1),
            f"max_budget {self.max_budget} is under min_budget {self.min_budget}",
            "leave it out for no bound",
        )
        _require(self.slash_cover in ("both", "one"), "slash_cover is both or one", "try both")
        _require(self.sink >= 0, f"sink {self.sink} is negative", "in tokens")
        _require(self.local_blocks >= 0, f"local_blocks {self.local_blocks} is negative", "try 1")
        _require(
            1 <= self.row_slack <= 64, f"row_slack {self.row_slack} is not in [1, 64]", "try 2"
        )
        _require(
            0 <= self.max_bad_share < 1,
            f"share of bad prompts {self.max_bad_share} is not in [0, 1)",
            "try 0.1",
        )

    def resolve_block_size(self, longest: int) -> int:
        """The block size for a longest prompt of so many tokens."""
        if self.block_size is not None:
            return self.block_size
        return BLOCK_SIZES[0] if longest < _LONG_PROMPT else BLOCK_SIZES[-1]

    def resolve_min_budget(self, longest: int, block_size: int) -> int:
        """The minimum budget for a longest prompt of so many tokens."""
        if self.min_budget is not None:
            return self.min_budget
        budget = min(_FULL_BUDGET, max(2 * block_size, longest // 16))
        return budget if self.max_budget is None else min(budget, self.max_budget)


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise UsageError(message, hint=hint)
