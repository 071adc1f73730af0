"""The profile that a command is given: a path or a hub name, signed where a key is asked for."""

from __future__ import annotations

from pathlib import Path

from sp_runtime.profile import Profile, load_profile


def read_profile(path: str | Path, public_key: str | None = None) -> Profile:
    """`load_profile`; with a public key (minisign, base64 or its file) only if that signed it.

    Raises CorruptArtefactError for damage and for a missing or wrong signature, UsageError where
    there is no profile.
    """
    if public_key is None:
        return load_profile(path)
    from sp_profile.signing import load_signed_profile

    return load_signed_profile(path, public_key)
