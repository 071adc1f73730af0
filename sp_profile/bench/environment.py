"""What a measurement ran on, for every row of a result."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from sp_runtime.version import __version__

PACKAGES = ("torch", "triton", "transformers", "flash-attn-4", "nvidia-cutlass-dsl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Device and versions. packages: (name, version) of those that are installed.

    capability: such as "9.0", "" on CPU. timer: how times were taken, see `clock`;
    "" where none were.
    """

    device: str
    capability: str
    cuda: str
    cudnn: str
    python: str
    sparse_prefill: str
    packages: tuple[tuple[str, str], ...]
    timer: str


def environment(device: torch.device, timer: str) -> Environment:
    """Of this process, measuring on `device` in the way that `timer` says."""
    on_gpu = device.type == "cuda"
    found = [(name, _version(name)) for name in PACKAGES]
    cudnn = torch.backends.cudnn.version() if on_gpu else None
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else f"cpu ({platform.machine()})",
        capability="{}.{}".format(*torch.cuda.get_device_capability(device)) if on_gpu else "",
        cuda=torch.version.cuda or "" if on_gpu else "",
        cudnn="" if cudnn is None else str(cudnn),
        python=platform.python_version(),
        sparse_prefill=__version__,
        packages=tuple((name, text) for name, text in found if text),
        timer=timer,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
