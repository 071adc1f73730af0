"""Detached signatures: what they cover, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

minisign = pytest.importorskip("minisign")

from sp_profile.artefact import SIGNATURE_NAME, write_profile  # noqa: E402
from sp_profile.signing import is_encrypted, load_signed_profile, sign_profile  # noqa: E402
from sp_runtime.errors import CorruptArtefactError, UsageError  # noqa: E402
from sp_runtime.profile import (  # noqa: E402
    NamedPoint,
    load_profile,
    profile_to_json,
    with_profile_id,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "profile-1.0"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(secret key file, public key file, public key in base64)."""
    folder = tmp_path_factory.mktemp("keys")
    pair = minisign.KeyPair.generate()
    (folder / "secret.key").write_bytes(bytes(pair.secret_key) + b"\n")
    (folder / "minisign.pub").write_bytes(bytes(pair.public_key) + b"\n")
    return folder / "secret.key", folder / "minisign.pub", pair.public_key.to_base64().decode()


@pytest.fixture
def signed(tmp_path, keys):
    folder = tmp_path / "profile"
    shutil.copytree(GOLDEN, folder)
    sign_profile(folder, keys[0])
    return folder


def refused(folder, key):
    with pytest.raises(CorruptArtefactError) as caught:
        load_signed_profile(folder, key)
    return caught.value.message


def test_a_signed_profile_loads_with_the_key_or_its_file(signed, keys):
    expected = load_profile(GOLDEN)
    assert load_signed_profile(signed, keys[2]) == expected
    assert load_signed_profile(signed / "profile.json", str(keys[1])) == expected


def test_the_form_is_that_of_the_library(signed, keys):
    # The reference tool's own check: `minisign -V -P KEY -m profile.json` does the same.
    key = minisign.PublicKey.from_file(keys[1])
    key.verify_file(signed / "profile.json")
    comment = minisign.Signature.from_file(signed / SIGNATURE_NAME).trusted_comment
    assert load_profile(signed).profile_id in comment


def test_a_missing_signature_is_refused(signed, keys):
    (signed / SIGNATURE_NAME).unlink()
    assert "is not signed" in refused(signed, keys[2])


def test_the_signature_of_another_key_is_refused(signed):
    other = minisign.KeyPair.generate().public_key.to_base64().decode()
    assert "not of this profile and key" in refused(signed, other)


def test_a_forged_profile_is_refused(signed, keys):
    """Valid in itself, with its own id and checksum: only the signature tells."""
    profile = load_profile(signed)
    point = dataclasses.replace(profile.point(), gamma=0.5)
    points = (NamedPoint(name="default", point=point), *profile.points[1:])
    forged = with_profile_id(dataclasses.replace(profile, points=points))
    (signed / "profile.json").write_text(profile_to_json(forged))
    assert load_profile(signed) == forged
    assert "not of this profile and key" in refused(signed, keys[2])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 300,
        b"\xff" * 300,
        b"untrusted comment: x\n",
        b"untrusted comment: x\nAAAA\ntrusted comment: y\nAAAA\n",
        b"a" * 100_000,
    ],
    ids=["empty", "nul", "not text", "one line", "short base64", "large"],
)
def test_what_is_no_signature_is_refused(signed, keys, content):
    (signed / SIGNATURE_NAME).write_bytes(content)
    refused(signed, keys[2])


def test_every_flipped_bit_but_those_of_the_untrusted_comment_is_refused(signed, keys):
    path = signed / SIGNATURE_NAME
    valid = path.read_bytes()
    start = valid.index(b"\n") + 1
    for place in range(start, len(valid) - 1, 7):
        content = bytearray(valid)
        content[place] ^= 1 << (place % 7)
        path.write_bytes(bytes(content))
        refused(signed, keys[2])


def test_tables_are_under_the_signature(signed, keys):
    """Their hashes are in profile.json, so that a table that is swapped is refused by its hash."""
    from sp_profile.artefact import read_heads

    profile = load_signed_profile(signed, keys[2])
    (signed / "heads.parquet").write_bytes((signed / "masks.parquet").read_bytes())
    with pytest.raises(CorruptArtefactError, match=r"heads\.parquet"):
        read_heads(signed, profile)


def test_a_damaged_profile_is_not_signed(tmp_path, keys):
    folder = tmp_path / "profile"
    shutil.copytree(GOLDEN, folder)
    (folder / SIGNATURE_NAME).unlink()
    (folder / "masks.parquet").write_bytes(b"")
    with pytest.raises(CorruptArtefactError, match=r"masks\.parquet"):
        sign_profile(folder, keys[0])
    assert not (folder / SIGNATURE_NAME).exists()


def test_encrypted_keys_need_their_password(tmp_path, keys):
    secret = minisign.SecretKey.from_file(keys[0])
    secret.encrypt("open sesame", opslimit=1 << 15, memlimit=1 << 24)
    (tmp_path / "encrypted.key").write_bytes(bytes(secret) + b"\n")
    folder = tmp_path / "profile"
    shutil.copytree(GOLDEN, folder)
    assert is_encrypted(tmp_path / "encrypted.key")
    assert not is_encrypted(keys[0])
    for password in (None, "wrong"):
        with pytest.raises(UsageError):
            sign_profile(folder, tmp_path / "encrypted.key", password=password)
    sign_profile(folder, tmp_path / "encrypted.key", password="open sesame")
    load_signed_profile(folder, keys[2])


@pytest.mark.parametrize("key", ["", "x", "RWQ", "/nowhere/minisign.pub", "a" * 5000])
def test_what_is_no_public_key_is_a_usage_error(signed, key):
    with pytest.raises(UsageError, match="public key"):
        load_signed_profile(signed, key)


def test_a_missing_or_wrong_secret_key_is_a_usage_error(signed, tmp_path, keys):
    (tmp_path / "no.key").write_bytes(b"no key")
    for path in (tmp_path / "gone.key", tmp_path / "no.key", keys[1]):
        with pytest.raises(UsageError):
            sign_profile(signed, path)


def test_replacing_a_signed_profile_takes_its_signature_away(signed):
    profile = load_profile(signed)
    plain = dataclasses.replace(profile, plan=dataclasses.replace(profile.plan, heads=()))
    write_profile(signed, plain, overwrite=True)
    assert not (signed / SIGNATURE_NAME).exists()


def test_without_the_library_it_says_what_to_install():
    code = (
        "import sys; sys.modules['minisign'] = None\n"
        "from sp_profile.signing import load_signed_profile\n"
        "from sp_runtime.errors import UnsupportedError\n"
        "try: load_signed_profile('x', 'y')\n"
        "except UnsupportedError as error: print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sparse-prefill[sign]" in done.stdout


def test_the_runtime_needs_no_signing():
    code = (
        "import sys; import sp_runtime.profile as p; p.load_profile(sys.argv[1]);"
        "sys.exit(bool({'minisign', 'cryptography', 'sp_profile'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(GOLDEN)], check=True)
