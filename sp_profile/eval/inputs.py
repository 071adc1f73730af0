"""Which device a process of an evaluation takes, and which data files its prompts draw on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sp_profile.eval.config import DataRecord
from sp_profile.eval.request import EvalRequest
from sp_profile.model_files import sha256_file
from sp_profile.models import resolve_device
from sp_profile.run_group import RunGroup, group_device
from sp_profile.tasks import TaskData
from sp_runtime.errors import UsageError


def choose_device(request: EvalRequest, group: RunGroup) -> torch.device:
    """The device asked for, or this process's share of the host's GPUs; UsageError."""
    if group.is_alone:
        return resolve_device(request.device)
    if request.device not in (None, "auto", "cpu", "cuda"):
        raise UsageError(
            f"--device {request.device} with {group.world_size} processes",
            hint="leave it out: they spread over the GPUs themselves; or use --device cpu",
        )
    if request.device == "cpu" or (request.device != "cuda" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device(group_device(group))
    torch.cuda.set_device(device)
    return device


def processes_on_device(group: RunGroup, device: torch.device) -> int:
    """How many of the group's processes share this one's device."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))
    return math.ceil(here / torch.cuda.device_count()) if device.type == "cuda" else here


def data_records(data: TaskData) -> tuple[DataRecord, ...]:
    """Every file that was named, by the content's hash."""
    named: list[tuple[str, Sequence[Path]]] = [
        (name, [path])
        for name in ("essay", "squad", "hotpotqa", "infinitebench", "text")
        if (path := getattr(data, name)) is not None
    ]
    if data.prompts:
        named.append(("prompts", [Path(path) for path in data.prompts]))
    return tuple(DataRecord(name=name, sha256=_content_sha256(paths)) for name, paths in named)


def _content_sha256(paths: Sequence[Path]) -> str:
    files = sorted(
        file
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
    if not files:
        raise UsageError(f"{paths[0]}: no such file", hint="check the path of the data file")
    hashes = [sha256_file(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode("ascii")).hexdigest()
