"""`sp-run env`: versions, device, and which kernels will run and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sp_runtime.version import __version__

from .options import device_option, kernels_option, with_output
from .output import Output
from .version import git_revision, version_line

if TYPE_CHECKING:
    import torch

    from sp_runtime.kernels.select import KernelChoice

_HEAD_DIMS = (64, 128)
_PACKAGES = ("torch", "triton", "transformers", "numpy", "scipy", "scikit-learn", "pyarrow")


@click.command()
@device_option
@kernels_option
@with_output
def env(output: Output, device: str | None, kernels: str) -> None:
    """Show versions, the device, and which kernels run and why.

    \b
    Examples:
      sp-run env
      sp-run env --device cuda:1 --kernels triton --json
    """
    import platform

    from sp_profile.models import resolve_device
    from sp_runtime.kernels.select import select_kernels

    chosen = resolve_device(device)
    choice = select_kernels(kernels, chosen)
    attention = [_attention(choice, head_dim) for head_dim in _HEAD_DIMS]
    versions = {name: _version(name) for name in _PACKAGES}
    output.document(
        {
            "schema": "sp.env",
            "version": __version__,
            "revision": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": versions,
            "device": {"name": str(chosen), "description": _describe(chosen)},
            "kernels": {"name": choice.name, "reason": choice.reason, "attention": attention},
        }
    )
    output.line(f"{'sparse-prefill':<15} {version_line('').strip()}")
    output.line(f"{'python':<15} {platform.python_version()} on {platform.platform()}")
    for name, found in versions.items():
        output.line(f"{name:<15} {found or 'not installed'}")
    output.line(f"{'device':<15} {chosen}: {_describe(chosen)}")
    output.line(f"{'kernels':<15} {choice.name}: {choice.reason}")
    for line in attention:
        output.line(f"{'attention':<15} {line}")


def _attention(choice: KernelChoice, head_dim: int) -> str:
    """Which attention kernel runs in bfloat16 and blocks of 128."""
    import torch

    shape = f"head_dim {head_dim}, bfloat16, block size 128"
    return f"{shape}: {choice.kernels.describe(head_dim, 128, torch.bfloat16)}"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    found = torch.cuda.get_device_properties(device)
    memory = found.total_memory / 2**30
    return f"{found.name}, compute capability {found.major}.{found.minor}, {memory:.0f} GiB"
