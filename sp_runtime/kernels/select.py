"""Which kernel backend runs on a device, and why."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.fa4_launch import HINT, fa4_obstacle
from sp_runtime.kernels.reference import ReferenceKernels

BackendName = Literal["auto", "triton", "reference", "fa4"]

BACKEND_NAMES: tuple[str, ...] = get_args(BackendName)
MIN_CAPABILITY = (8, 0)
_BY_NAME = "asked for by name"


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelChoice:
    """A backend and the reason it was chosen, as one line for a report."""

    kernels: Kernels
    name: str
    reason: str


def select_kernels(name: str, device: torch.device | str) -> KernelChoice:
    """The backend `name` on `device`; "auto" is Triton where it can run and else the reference.

    An explicit name never falls back, and "fa4" (the Triton kernels with FlashAttention-4's
    attention) is only ever taken by name. Raises UsageError for an unknown name, UnsupportedError
    where the named backend cannot run, or where a capable GPU lacks the package triton.
    """
    device = torch.device(device)
    if name not in BACKEND_NAMES:
        raise UsageError(f"unknown kernels {name!r}", hint=f"use one of {', '.join(BACKEND_NAMES)}")
    if name == "reference":
        return _reference(_BY_NAME)
    if name == "fa4":
        return _fa4(device)
    obstacle = _triton_obstacle(device)
    if obstacle is None:
        reason = _BY_NAME if name == "triton" else f"{device.type} device of {_arch(device)}"
        return _triton(reason)
    if name == "triton":
        raise UnsupportedError(
            f"the triton kernels cannot run on {device}: {obstacle}",
            hint="use auto or reference kernels; `sp-run env` says why",
        )
    return _reference(obstacle)


def _triton_obstacle(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this device, or None."""
    if device.type != "cuda":
        return f"{device.type} device; triton needs a CUDA GPU"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        needed = ".".join(map(str, MIN_CAPABILITY))
        return f"{_arch(device)} is under {needed}, the lowest that the triton kernels support"
    return None


def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"compute capability {major}.{minor}"


def _reference(reason: str) -> KernelChoice:
    return KernelChoice(kernels=ReferenceKernels(), name=ReferenceKernels.name, reason=reason)


def _triton(reason: str) -> KernelChoice:
    _require_triton()
    # By name and on demand: importing the runtime must not import triton.
    backend = importlib.import_module("sp_runtime.kernels.triton_backend")
    return KernelChoice(kernels=backend.TritonKernels(), name="triton", reason=reason)


def _fa4(device: torch.device) -> KernelChoice:
    obstacle = fa4_obstacle(device)
    if obstacle is not None:
        raise UnsupportedError(f"the fa4 kernels cannot run on {device}: {obstacle}", hint=HINT)
    _require_triton()
    backend = importlib.import_module("sp_runtime.kernels.fa4_backend")
    return KernelChoice(kernels=backend.FA4Kernels(), name="fa4", reason=_BY_NAME)


def _require_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError(
            "the package triton is not installed",
            hint='install triton, or use kernels="reference" (slow on a GPU)',
        )
