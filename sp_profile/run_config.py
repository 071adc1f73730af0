"""What one calibration run measures, resolved: written first into its folder."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
from dataclasses import dataclass, field
from typing import Literal, get_args

from sp_profile.candidates import Candidate, LentMask, MaskSettings
from sp_runtime.block_index import BLOCK_SIZES
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.profile import PromptRecord
from sp_runtime.strict_json import OPTIONAL
from sp_runtime.version import __version__

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The resolved configuration of a run; two runs with equal ones measure the same.

    model: its public name. prompts: ascending by sha256, without duplicates.
    device: `cpu` or the GPU's name. kernels: the backend that ran. gamma in (0, 1].
    sample_stride: every how many queries of a block row the sampled masks see.
    lending: further sampled masks whose borrowers' recall is measured. oracle_gammas: at which each
    head's own exact mask is. Runs of earlier releases have neither.
    max_bad_share: largest share of quarantined prompts that is not a failure.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    fingerprint: ModelFingerprint
    prompts: tuple[PromptRecord, ...]
    dtype: Dtype
    device: str
    kernels: str
    block_size: int
    gamma: float
    sample_stride: int
    seed: int
    chat_template: bool
    max_bad_share: float
    settings: MaskSettings
    candidates: tuple[Candidate, ...]
    versions: tuple[tuple[str, str], ...]
    lending: tuple[LentMask, ...] = field(default=(), metadata=OPTIONAL)
    oracle_gammas: tuple[float, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block size {self.block_size} is not supported")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"gamma {self.gamma} is not in (0, 1]")
        names = [prompt.sha256 for prompt in self.prompts]
        if not names or any(a >= b for a, b in itertools.pairwise(names)):
            raise UsageError("prompts must be ascending by sha256, without duplicates")


def computing_versions() -> tuple[tuple[str, str], ...]:
    """(package, version) of what results depend on, sorted by package."""
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return tuple(sorted({**others, "sparse-prefill": __version__}.items()))


def first_difference(ours: object, theirs: object, path: str = "") -> str | None:
    """`field: A, B` for the first field in which two configurations differ; None: equal."""
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        for field in dataclasses.fields(ours):
            name = f"{path}.{field.name}" if path else field.name
            found = first_difference(getattr(ours, field.name), getattr(theirs, field.name), name)
            if found is not None:
                return found
        return None
    if ours == theirs:
        return None
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        if len(ours) != len(theirs):
            return f"{path}: {len(ours)} items, {len(theirs)} items"
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            found = first_difference(a, b, f"{path}[{number}]")
            if found is not None:
                return found
    return f"{path}: {ours!r}, {theirs!r}"
