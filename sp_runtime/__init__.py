"""Slim runtime: block-sparse prefill attention driven by a profile."""

from sp_runtime.version import __version__

__all__ = ["__version__"]
