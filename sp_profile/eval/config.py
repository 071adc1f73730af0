"""What one evaluation folder holds, resolved: written first into it, compared on every resume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from sp_profile.eval.cells import Cell
from sp_profile.eval.methods import MethodPlan
from sp_profile.run_config import Dtype, first_difference
from sp_runtime.block_index import BLOCK_SIZES
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.strict_json import OPTIONAL

EVAL_SCHEMA = "sp.eval/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecord:
    """A data file of the user's by the name of its option; sha256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRecord:
    """A profile by the name that methods call it; "" is the first one."""

    name: str
    profile_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """The resolved configuration of an evaluation; two with equal ones measure the same.

    model: its public name. kernels: as asked for.
    block_size: None: the profile's, or the runtime's own. samples: most prompts of a cell.
    methods: dense first; each has its own number of samples. data: of files that prompts draw on.
    audit: in a recall pass, the share of the heads whose recall is measured.
    """

    schema: str = EVAL_SCHEMA
    model: str
    revision: str | None
    trust_remote_code: bool
    fingerprint: ModelFingerprint
    profiles: tuple[ProfileRecord, ...]
    dtype: Dtype
    kernels: str
    block_size: int | None
    seed: int
    chat_template: bool
    include_text: bool
    data: tuple[DataRecord, ...]
    methods: tuple[MethodPlan, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    audit: float | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"block size {self.block_size} is not supported",
                hint=f"use one of {', '.join(map(str, BLOCK_SIZES))}",
            )
        if not self.tasks or not self.lengths:
            raise UsageError("no tasks or no lengths", hint="such as --task ruler --length 4096")
        for length in self.lengths:
            if length < 1:
                raise UsageError(f"length {length} is under 1", hint="in tokens")

    @property
    def reported(self) -> tuple[MethodPlan, ...]:
        """The methods, each with the most samples it was asked for."""
        most: dict[str, MethodPlan] = {}
        for method in self.methods:
            known = most.setdefault(method.label, method)
            if method.samples > known.samples:
                most[method.label] = method
        return tuple(most.values())

    @property
    def samples(self) -> int:
        """The most prompts that any method needs of a task and length."""
        return max(method.samples for method in self.methods)

    def cells(self) -> tuple[Cell, ...]:
        """All cells: methods with many samples first, then long lengths, and dense before others.

        So what is finished when a run stops early is paired, whatever the method, the methods that
        were asked for on a few prompts alone come last, and a group of processes ends with its
        smallest cells.
        """
        rounds = sorted({method.samples for method in self.methods}, reverse=True)
        return tuple(
            Cell(method=method, task=task, length=length)
            for samples in rounds
            for length in sorted(self.lengths, reverse=True)
            for task in self.tasks
            for method in self.methods
            if method.samples == samples
        )


def merged(stored: EvalConfig, asked: EvalConfig, *, extend: bool) -> EvalConfig:
    """What a folder that holds `stored` becomes when `asked` is run in it.

    Data files need not be named again once the prompts are made. Equal configurations resume.
    With `extend` the methods, profiles, tasks and lengths of both are united, those of `stored`
    first; a method asked for with another number of samples is evaluated with both, and reported
    with the larger one. Raises UsageError naming what differs otherwise.
    """
    kept = dataclasses.replace(
        asked,
        methods=stored.methods,
        tasks=stored.tasks,
        lengths=stored.lengths,
        profiles=_united(stored.profiles, asked.profiles),
        data=asked.data or stored.data,
    )
    wider = dataclasses.replace(stored, profiles=kept.profiles)
    difference = first_difference(wider, kept)
    if difference is not None:
        raise UsageError(
            "the folder holds an evaluation with another configuration (there, here): "
            f"{difference}",
            hint="use another output folder, or the settings of that evaluation",
        )
    united = dataclasses.replace(
        kept,
        methods=tuple(dict.fromkeys((*stored.methods, *asked.methods))),
        tasks=tuple(dict.fromkeys((*stored.tasks, *asked.tasks))),
        lengths=tuple(sorted({*stored.lengths, *asked.lengths})),
    )
    if united != stored and not extend:
        raise UsageError(
            "the folder holds an evaluation of other methods, tasks, lengths or samples",
            hint="pass --extend to add to it, or use another output folder",
        )
    return united


def _united(
    stored: tuple[ProfileRecord, ...], asked: tuple[ProfileRecord, ...]
) -> tuple[ProfileRecord, ...]:
    """Both, if no name stands for two profiles; the clash is left for the comparison otherwise."""
    names = {record.name: record for record in (*stored, *asked)}
    if any(names[record.name] != record for record in stored):
        return asked
    return tuple(names.values())
