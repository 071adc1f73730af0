"""Passes over an evaluation that exists: times, or recalls, of the first prompts of its cells.

A pass has a folder of its own inside the evaluation's, and resumes and grows as that does. It
scores nothing, and what the evaluation found stays as it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sp_profile.eval.config import EvalConfig
from sp_profile.eval.folder import RECALLS, TIMES
from sp_profile.eval.methods import DENSE
from sp_profile.eval.request import EvalRequest
from sp_profile.run_group import RunGroup
from sp_runtime.errors import UsageError


def pass_folder(request: EvalRequest) -> str | None:
    """The name of the folder of the pass that is asked for, None for an evaluation itself."""
    if request.timing_pass is not None:
        return TIMES
    return None if request.recall_pass is None else RECALLS


def pass_config(
    request: EvalRequest, asked: EvalConfig, stored: EvalConfig, group: RunGroup
) -> EvalConfig:
    """What the pass measures in the evaluation `stored`.

    Recall may be measured of methods that were not scored; dense attention is left out, as it keeps
    everything. Raises UsageError where the pass is not over a part of the evaluation, or several
    processes would take times at once.
    """
    methods = asked.methods
    if request.timing_pass is not None:
        if not group.is_alone:
            raise UsageError("a timing pass runs alone", hint="start it without torchrun")
        _require_methods(asked, stored)
    else:
        methods = tuple(method for method in methods if method.label != DENSE)
        if not methods:
            raise UsageError(
                "dense attention keeps everything, so its recall is 1",
                hint="name other methods with --method",
            )
    _require_part(asked, stored)
    count = request.timing_pass or request.recall_pass or 1
    return dataclasses.replace(
        asked,
        methods=tuple(dataclasses.replace(method, samples=count) for method in methods),
        data=stored.data,
        audit=None if request.recall_pass is None else request.audit,
    )


def part_of(asked: EvalConfig, stored: EvalConfig) -> EvalConfig:
    """The part of an evaluation whose prompts a pass reads."""
    return dataclasses.replace(stored, tasks=asked.tasks, lengths=asked.lengths)


def has_pass(folder: Path, name: str) -> bool:
    """Whether an evaluation's folder holds a pass of this name."""
    return (folder / name / "run.json").exists()


def _require_methods(asked: EvalConfig, stored: EvalConfig) -> None:
    labels = {method.label for method in stored.methods}
    _refuse([method.label for method in asked.methods if method.label not in labels])


def _require_part(asked: EvalConfig, stored: EvalConfig) -> None:
    """Refuse tasks, lengths and settings that are not the evaluation's."""
    unknown = [
        *(task for task in asked.tasks if task not in stored.tasks),
        *(str(length) for length in asked.lengths if length not in stored.lengths),
    ]
    if asked.fingerprint != stored.fingerprint or asked.dtype != stored.dtype:
        unknown.append("this model or dtype")
    for name in ("block_size", "seed", "chat_template"):
        if getattr(asked, name) != getattr(stored, name):
            unknown.append(f"{name} {getattr(asked, name)}")
    _refuse(unknown)


def _refuse(unknown: list[str]) -> None:
    if unknown:
        raise UsageError(
            f"the folder's evaluation has no {unknown[0]}", hint="take a part of what it holds"
        )
