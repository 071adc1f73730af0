"""What a user asks of an evaluation, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sp_profile.eval.folder import Evaluation
from sp_profile.eval.methods import MAX_SAMPLES
from sp_profile.run_config import DTYPE_NAMES, Dtype
from sp_profile.tasks import TaskData
from sp_runtime.errors import UsageError

Progress = Callable[[str, int, int], None]
"""Called with (`prompts` or `cells`, units done, units in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest:
    """Settings of one evaluation; lengths in tokens.

    profiles: (name, folder) pairs, the first one named "". public_key: minisign key, or its file,
    that must have signed each of them. methods, tasks: lists as the user
    writes them (see `expand_methods`, `resolve_tasks`). samples: prompts of each task and length.
    device: auto, cpu or cuda[:N]; a group of processes spreads over the GPUs itself.
    timed: take times; None: yes if one process runs alone. extend: the folder may grow.
    prepare_only: make the prompts and stop. max_seconds: begin no cell after so long.
    workers: processes that make prompts. timing_pass, recall_pass: only take times, or measure
    recall, on so many prompts of each cell, in a folder that holds the evaluation. audit: share of
    the heads whose recall is measured.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    profiles: tuple[tuple[str, Path], ...] = ()
    methods: str = "dense"
    tasks: str = "ruler"
    lengths: tuple[int, ...] = (4096,)
    samples: int = 25
    seed: int = 0
    dtype: Dtype = "float32"
    device: str | None = None
    kernels: str = "auto"
    block_size: int | None = None
    chat_template: bool = False
    include_text: bool = False
    public_key: str | None = None
    data: TaskData = field(default_factory=TaskData)
    timed: bool | None = None
    extend: bool = False
    prepare_only: bool = False
    max_seconds: float | None = None
    workers: int = 1
    timing_pass: int | None = None
    recall_pass: int | None = None
    audit: float = 0.25

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise UsageError(f"unknown dtype {self.dtype!r}", hint=", ".join(DTYPE_NAMES))
        if self.public_key is not None and not self.profiles:
            raise UsageError("--public-key is about a profile", hint="say --profile too")
        if self.recall_pass is not None and (self.timing_pass is not None or self.timed):
            raise UsageError("a recall pass takes no times", hint="take them in a run of their own")
        if not 0 < self.audit <= 1:
            raise UsageError(f"audit {self.audit} is not in (0, 1]", hint="try 0.25")
        for name in ("samples", "timing_pass", "recall_pass"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SAMPLES:
                raise UsageError(f"{name} {value} is not in [1, {MAX_SAMPLES}]", hint="try 25")
        for name in ("lengths", "workers"):
            values = getattr(self, name)
            least = min(values, default=0) if isinstance(values, tuple) else values
            if least < 1:
                raise UsageError(f"{name}: {least} is under 1")
        if self.max_seconds is not None and self.max_seconds < 0:
            raise UsageError(f"max_seconds {self.max_seconds} is negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOutcome:
    """What this process saw when its work ended.

    evaluation: None after `prepare_only`, and in every process of a group but the first.
    measured, resumed: cells. stopped: `max_seconds` ran out with cells left.
    """

    evaluation: Evaluation | None
    measured: int
    resumed: int
    stopped: bool
