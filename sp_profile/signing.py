"""Detached signatures over profile.json, in minisign's form; the library is the extra `sign`.

profile.json carries the hashes of all other files, so its signature covers the whole profile. The
signed bytes are those that are then parsed: nothing is read twice.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sp_profile.artefact import verify_files
from sp_profile.atomic import publish_bytes
from sp_runtime.errors import CorruptArtefactError, UnsupportedError, UsageError
from sp_runtime.profile import PROFILE_NAME, Profile, load_profile, parse_profile
from sp_runtime.profile_source import SIGNATURE_NAME, find_profile
from sp_runtime.strict_json import read_bytes

_MAX_KEY_BYTES = 1 << 14


def sign_profile(path: str | Path, key: Path, *, password: str | None = None) -> Path:
    """Sign a whole profile and return the signature's path, beside its profile.json.

    key: minisign secret key file. password: of an encrypted one.
    Raises CorruptArtefactError rather than signing a damaged profile, and UsageError for a key
    that cannot be used.
    """
    minisign = _library()
    file = profile_file(path)
    load_profile(file)
    data = read_bytes(file)
    profile = parse_profile(data, str(file))
    verify_files(file.parent, profile)
    comment = f"timestamp:{int(time.time())}\tfile:{PROFILE_NAME}\tid:{profile.profile_id}\thashed"
    try:
        with minisign.SecretKey.from_bytes(_key_bytes(key)) as secret:
            if secret.is_encrypted():
                if password is None:
                    raise UsageError(
                        f"{key}: the key is encrypted",
                        hint="give its password; see --password-file",
                    )
                secret.decrypt(password)
            signature = secret.sign(data, trusted_comment=comment)
    except minisign.Error as error:
        raise UsageError(f"{key}: the key cannot be used: {error}") from error
    target = file.with_name(SIGNATURE_NAME)
    publish_bytes(target, bytes(signature) + b"\n")
    return target


def is_encrypted(key: Path) -> bool:
    """Whether a secret key file needs a password; UsageError where it is no key."""
    minisign = _library()
    try:
        with minisign.SecretKey.from_bytes(_key_bytes(key)) as secret:
            return bool(secret.is_encrypted())
    except minisign.Error as error:
        raise UsageError(f"{key}: the key cannot be used: {error}") from error


def load_signed_profile(path: str | Path, public_key: str) -> Profile:
    """`load_profile` for a profile that must be signed; path: as there, a hub name too.

    public_key: a minisign public key in base64, or the path of its file.
    Raises CorruptArtefactError where the signature is missing or not of this key and content, and
    UsageError for a public key that is none.
    """
    minisign = _library()
    key = _public_key(minisign, public_key)
    file = find_profile(path)
    load_profile(file)  # names what is missing or damaged before signatures are spoken of
    data = read_bytes(file)
    name = f"{file.with_name(SIGNATURE_NAME)}"
    try:
        text = read_bytes(file.with_name(SIGNATURE_NAME))
    except FileNotFoundError:
        raise CorruptArtefactError(
            f"{name}: the profile is not signed", hint="sign it with `sp-profile sign`"
        ) from None
    if len(text) > _MAX_KEY_BYTES:
        raise CorruptArtefactError(f"{name}: is no signature")
    try:
        key.verify(data, minisign.Signature.from_bytes(text))
    except minisign.Error as error:
        raise CorruptArtefactError(
            f"{name}: the signature is not of this profile and key: {error}",
            hint="use the profile as its author published it, and the author's public key",
        ) from error
    return parse_profile(data, str(file))


def profile_file(path: str | Path) -> Path:
    """The profile.json that a folder or a file stands for."""
    given = Path(path)
    return given if given.name == PROFILE_NAME else given / PROFILE_NAME


def _public_key(minisign: Any, text: str) -> Any:
    try:
        if len(text) < 200 and Path(text).is_file():
            return minisign.PublicKey.from_bytes(_key_bytes(Path(text)))
        return minisign.PublicKey.from_base64(text)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{text[:60]!r} is neither a minisign public key nor its file",
            hint="such as RWQf6LRCGA9i53ml...GFO3, or minisign.pub",
        ) from error


def _key_bytes(path: Path) -> bytes:
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such key file") from error
    if len(data) > _MAX_KEY_BYTES:
        raise UsageError(f"{path}: is no minisign key")
    return data


def _library() -> Any:
    try:
        import minisign
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "signatures need the package py-minisign", hint="pip install 'sparse-prefill[sign]'"
        ) from error
    return minisign
