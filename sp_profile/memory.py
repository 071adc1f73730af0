"""What running out of memory looks like, and how to try again after it."""

from __future__ import annotations

import gc

import torch

# No other error of a device is ever followed by another attempt: its state is unknown.
OUT_OF_MEMORY: tuple[type[Exception], ...] = (torch.OutOfMemoryError, MemoryError)


def release_memory() -> None:
    """Drop what nobody refers to any more, and the device memory that is kept for reuse."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
