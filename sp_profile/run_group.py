"""Processes that share one run: who they are, and how the first one's word reaches the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sp_runtime.errors import SpError, UsageError

_TIMEOUT = timedelta(minutes=30)  # the first process may still hash weights or count tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """This process's place among those that a launcher such as torchrun started together.

    rank in [0, world_size); local_rank: its number on this host; run_id: the launcher's name of
    the run, "" where there is none. Alone: rank 0 of 1.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    run_id: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.local_rank < 0:
            raise UsageError(
                f"rank {self.rank} of {self.world_size}, local rank {self.local_rank}: not a place "
                "in a group of processes",
                hint="start the command with torchrun, or unset RANK and WORLD_SIZE",
            )

    @property
    def is_first(self) -> bool:
        """Whether this process prepares the folder and speaks for the group."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1


def current_group(environ: Mapping[str, str] = os.environ) -> RunGroup:
    """The group that torchrun's variables describe; UsageError where they are no numbers."""
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return RunGroup()
    return RunGroup(
        rank=_number(environ, "RANK"),
        world_size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK" if "LOCAL_RANK" in environ else "RANK"),
        run_id=environ.get("TORCHELASTIC_RUN_ID", ""),
    )


def group_device(group: RunGroup) -> str:
    """The name of the device that this process uses: `cuda:k`, spread over the host's GPUs.

    Raises UsageError on a host without a GPU.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise UsageError("this host has no GPU", hint="use --device cpu")
    return f"cuda:{group.local_rank % count}"


class Exchange:
    """The launcher's key-value store: one process tells, the others wait and hear.

    store: anything with the `set` and `get` of `torch.distributed.Store`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def tell(self, key: str, text: str) -> None:
        """Make `text` known to the group."""
        self._store.set(f"sp/{key}", text)

    def hear(self, key: str) -> str:
        """What was told under `key`; SpError if nobody tells it in half an hour."""
        try:
            text: str = self._store.get(f"sp/{key}").decode("utf-8")
        # DistError is a RuntimeError: the store's host is gone, or nothing came.
        except RuntimeError as error:
            raise SpError(
                "the first process of the group did not answer",
                hint="its own message says why; run the same command again to resume",
            ) from error
        return text


def connect(group: RunGroup) -> Exchange:
    """Reach the group's store through MASTER_ADDR and MASTER_PORT.

    Raises UsageError where they are missing, SpError where nothing answers there.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", group.rank, group.world_size, timeout=_TIMEOUT))
    except ValueError as error:
        raise UsageError(
            f"the group of {group.world_size} processes cannot meet: {error}",
            hint="start the command with torchrun, or set MASTER_ADDR and MASTER_PORT",
        ) from error
    except RuntimeError as error:
        raise SpError(
            f"the group of {group.world_size} processes cannot meet: {error}",
            hint="check that MASTER_ADDR and MASTER_PORT can be reached from every host",
        ) from error
    return Exchange(store)


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise UsageError(
            f"the variable {name} is {environ[name]!r}, not a number",
            hint="start the command with torchrun, or unset RANK and WORLD_SIZE",
        ) from None
