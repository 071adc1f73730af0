"""One cell of an evaluation, a method on a task at a length: its identity, rows and file."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

from sp_profile.eval.branches import HeadBranches
from sp_profile.eval.methods import MethodPlan
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.strict_json import OPTIONAL, decode, encode, parse

CELL_SCHEMA = "sp.eval_cell/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one cell evaluates; lengths in tokens."""

    method: MethodPlan
    task: str
    length: int

    @property
    def id(self) -> str:
        """32 hexadecimal digits for point, profile, task, length and samples."""
        key = _Key(
            point=self.method.point,
            profile=self.method.profile,
            task=self.task,
            length=self.length,
            samples=self.method.samples,
        )
        return hashlib.sha256(encode(key).encode("ascii")).hexdigest()[:32]

    def __str__(self) -> str:
        return f"{self.method.label} on {self.task} at {self.length}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Key:
    point: OperatingPoint
    profile: str
    task: str
    length: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where a cell was measured. kernels: the backend. processes: of the group that measured;
    more than one may have shared the device."""

    device: str
    kernels: str
    processes: int
    versions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTiming:
    """Seconds of one prefill; index is None where some layer did not run the block-sparse kernel.

    ttft: from token ids on the device to the first token id on the host. attention: inside the
    attention functions. index: of that, estimates, decisions and the index, all but the kernel.
    """

    ttft: float
    attention: float
    index: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRecall:
    """What the mask of one audited head kept of its attention, in [0, 1]; see `HeadAudit`."""

    layer: int
    head: int
    branch: str
    recall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One prompt by one method.

    index: of the prompt in its task and length. score: of the task's metric, larger is better;
    None in a timing or recall pass, which decodes nothing.
    density, estimation: blocks computed and the cost of estimates, over causal blocks.
    new_tokens: how many were decoded. text: what was generated, quoted; None unless asked for.
    timing: None where it was not measured.
    kl, kl_last, equal: task agreement alone, whose score is the share of positions with dense
    attention's most likely token: divergence from dense (nats), mean and at the last position, and
    1 where the generated texts are equal.
    recalls: of the audited heads, in a recall pass; none where the whole path was dense, which
    keeps everything.
    """

    index: int
    prompt_sha256: str
    score: float | None
    density: float
    estimation: float
    path: str
    new_tokens: int
    timing: PromptTiming | None
    text: str | None
    kl: float | None = None
    kl_last: float | None = None
    equal: float | None = None
    recalls: tuple[HeadRecall, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        for name in ("score", "density", "estimation", "kl", "kl_last"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{name} {value} is not finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """A finished cell; rows ascending by index. untimed: why no times were taken, or "".

    branches: what the heads took over the rows; empty where it was not recorded.
    """

    schema: str = CELL_SCHEMA
    id: str
    method: str
    task: str
    length: int
    metric: str
    environment: Environment
    warmup_runs: int
    untimed: str
    rows: tuple[PromptRow, ...]
    branches: tuple[HeadBranches, ...] = field(default=(), metadata=OPTIONAL)


def cell_to_bytes(result: CellResult) -> bytes:
    """The cell's file."""
    return encode(result).encode("ascii") + b"\n"


def cell_from_bytes(data: bytes, name: str) -> CellResult:
    """Parse and check a cell's file; CorruptArtefactError names file and field."""
    result = decode(CellResult, parse(data, name), name)
    if result.schema != CELL_SCHEMA:
        raise CorruptArtefactError(f"{name}: schema: is not {CELL_SCHEMA}")
    indices = [row.index for row in result.rows]
    if not indices or indices != sorted(set(indices)):
        raise CorruptArtefactError(f"{name}: rows: are none, or not ascending by index")
    return result
