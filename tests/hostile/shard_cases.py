"""Hostile shards: how each `.npz` is made from a valid one, and what its refusal must say."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Members = dict[str, bytes]
Make = Callable[[bytes], bytes]


def members_of(data: bytes) -> Members:
    """The archive's members, unpacked."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def member(name: str, change: Callable[[bytes], bytes]) -> Make:
    """One member's bytes changed."""

    def make(data: bytes) -> bytes:
        members = members_of(data)
        members[f"{name}.npy"] = change(members[f"{name}.npy"])
        return archive([*members.items()])

    return make


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Make:
    """One array changed."""

    def changed(content: bytes) -> bytes:
        return npy(change(np.load(io.BytesIO(content), allow_pickle=False)))

    return member(name, changed)


def value(name: str, place: Any, to: Any) -> Make:
    """One number of an array replaced."""

    def change(found: np.ndarray) -> np.ndarray:
        found = found.copy()
        found[place] = to
        return found

    return array(name, change)


def meta(**changes: Any) -> Make:
    """Entries of the metadata replaced."""

    def changed(content: bytes) -> bytes:
        found = json.loads(np.load(io.BytesIO(content), allow_pickle=False).tobytes())
        return meta_bytes(json.dumps({**found, **changes}).encode())

    return member("meta", changed)


def meta_bytes(text: bytes) -> bytes:
    return npy(np.frombuffer(text, dtype=np.uint8))


def npy(found: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, found, allow_pickle=found.dtype.hasobject)
    return buffer.getvalue()


def header(text: str, *, version: bytes = b"\x01\x00") -> Callable[[bytes], bytes]:
    """The npy header replaced, the numbers kept."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<H", content[8:10])
        encoded = text.encode("latin1").ljust(118) + b"\n"
        return (
            b"\x93NUMPY"
            + version
            + struct.pack("<H", len(encoded))
            + encoded
            + content[10 + length :]
        )

    return change


def without(name: str) -> Make:
    def make(data: bytes) -> bytes:
        members = members_of(data)
        del members[f"{name}.npy"]
        return archive([*members.items()])

    return make


def with_members(*more: tuple[str, bytes]) -> Make:
    return lambda data: archive([*members_of(data).items(), *more])


def patched(old: bytes, new: bytes, *, last: bool = False) -> Make:
    """The first or last occurrence of some bytes replaced."""

    def make(data: bytes) -> bytes:
        place = data.rfind(old) if last else data.find(old)
        assert place >= 0
        return data[:place] + new + data[place + len(old) :]

    return make


def _end_record(data: bytes, **fields: int) -> bytes:
    """The archive with fields of its end record replaced."""
    names = ("disk", "start_disk", "here", "total", "size", "offset", "comment")
    values = dict(zip(names, struct.unpack("<HHHHIIH", data[-18:]), strict=True))
    return data[:-18] + struct.pack("<HHHHIIH", *{**values, **fields}.values())


def _zip64_locator(data: bytes) -> bytes:
    return data[:-22] + b"PK\x06\x07" + b"\0" * 16 + data[-22:]


def _encrypted(data: bytes) -> bytes:
    """The flag of encryption set in the first member's two headers."""
    content = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[data.find(mark) + offset] |= 1
    return bytes(content)


SHARD_CASES: dict[str, tuple[Make, str]] = {
    # Archives
    "empty": (lambda data: b"", "shard archive"),
    "not-a-zip": (lambda data: b"x" * 500, "shard archive"),
    "truncated": (lambda data: data[: len(data) // 2], "shard archive"),
    "directory-only": (lambda data: data[data.find(b"PK\x01\x02") :], "shard archive"),
    "trailing-bytes": (lambda data: data + b"\0" * 9, "shard archive"),
    "comment": (lambda data: _end_record(data, comment=5) + b"12345", "shard archive"),
    "directory-huge": (lambda data: _end_record(data, size=1 << 30), "shard archive"),
    "directory-offset": (lambda data: _end_record(data, offset=1 << 31), "shard archive"),
    "zip64-locator": (_zip64_locator, "shard archive"),
    "many-members": (with_members(*((f"{n}.npy", b"") for n in range(80))), "members"),
    "member-twice": (
        lambda data: archive([*members_of(data).items(), ("heads.npy", b"")]),
        "duplicate",
    ),
    "member-missing": (without("masks"), "masks is missing"),
    "meta-missing": (without("meta"), "meta is missing"),
    "member-leaves-the-folder": (with_members(("../../x.npy", b"x")), "no part of a shard"),
    "member-unknown": (with_members(("code.py", b"print(1)")), "no part of a shard"),
    "lzma": (
        lambda data: archive([*members_of(data).items()], zipfile.ZIP_LZMA),
        "neither stored nor deflated",
    ),
    "encrypted": (_encrypted, "shard archive"),
    "size-bomb": (member("masks", lambda content: content + b"\0" * (8 << 20)), "masks takes"),
    "checksum-wrong": (patched(b"density.npy", b"density.npz"), "shard archive"),
    # Members
    "pickled-objects": (
        array("density", lambda found: found.astype(object)),
        "density has a damaged npy header",
    ),
    "pickle": (member("density", lambda content: b"\x80\x04K\x01."), "damaged npy header"),
    "header-code": (
        member("density", header("__import__('os').abort()")),
        "density has a damaged npy header",
    ),
    "header-nested": (member("density", header("(" * 1900 + ")" * 1900)), "damaged npy header"),
    "header-unary": (member("density", header("-" * 3900 + "1")), "damaged npy header"),
    "header-huge": (
        member(
            "density",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }"),
        ),
        "density has a header that does not match its data",
    ),
    "header-negative": (
        member("density", header("{'descr': '<f4', 'fortran_order': False, 'shape': (-8,), }")),
        "density has a damaged npy header",
    ),
    "header-version-3": (
        member("density", lambda content: content[:6] + b"\x03" + content[7:]),
        "damaged npy header",
    ),
    "fortran-order": (
        array("recall_exact", lambda found: np.asfortranarray(found)),
        "recall_exact has a header that does not match its data",
    ),
    "dtype-double": (
        array("density", lambda found: found.astype(np.float64)),
        "density",
    ),
    "dtype-big-endian": (array("heads", lambda found: found.astype(">i4")), "heads is"),
    "shape-transposed": (array("heads", lambda found: found.T.copy()), "heads is"),
    "shape-flat": (array("masks", lambda found: found.reshape(-1)), "masks is"),
    # Values
    "density-nan": (value("density", 0, np.nan), "density has values outside"),
    "density-above-one": (value("density", 0, 2), "density has values outside"),
    "cost-infinite": (value("candidate_cost", (0, 0), np.inf), "candidate_cost has values"),
    "jsd-nan": (value("a_hat_jsd", (0, 1), np.nan), "a_hat_jsd has values outside"),
    "head-negative": (value("heads", (0, 0), -1), "heads must be"),
    "heads-unsorted": (array("heads", lambda found: found[::-1].copy()), "heads must be"),
    "head-twice": (value("heads", 1, (0, 0)), "heads must be"),
    "padding-set": (array("masks", lambda found: found | 1), "masks has padding bits set"),
    "recall-of-a-later-layer": (value("recall_exact", (0, -1), 0.5), "recall_exact must be -1"),
    # Metadata
    "meta-not-json": (member("meta", lambda content: meta_bytes(b"{")), "meta is not JSON"),
    "meta-not-ascii": (member("meta", lambda content: meta_bytes(b"\xff")), "meta is not JSON"),
    "meta-deep": (member("meta", lambda content: meta_bytes(b"[" * 9000)), "meta is not JSON"),
    "meta-list": (member("meta", lambda content: meta_bytes(b"[]")), "meta is not of format"),
    "meta-nan": (meta(tokens=float("nan")), "meta is not JSON"),
    "meta-duplicate-key": (
        member("meta", lambda content: meta_bytes(b'{"format":1,"format":2}')),
        "meta is not JSON",
    ),
    "meta-integer-huge": (
        member("meta", lambda content: meta_bytes(b'{"tokens":' + b"9" * 5000 + b"}")),
        "meta is not JSON",
    ),
    "meta-large": (
        member("meta", lambda content: meta_bytes(b" " * 100_000)),
        "meta takes",
    ),
    "format-other": (meta(format="sp.shard/2"), "meta is not of format"),
    "tokens-huge": (meta(tokens=1 << 40), "tokens is not an integer"),
    "tokens-bool": (meta(tokens=True), "tokens is not an integer"),
    "tokens-other": (meta(tokens=65), "masks"),
    "block-size-odd": (meta(block_size=65), "block_size"),
    "heads-huge": (meta(num_heads=1 << 17), "unpacks to more"),
    "candidates-negative": (meta(num_candidates=-1), "num_candidates is not an integer"),
    "sha256-path": (meta(prompt_sha256="../" * 20 + "abcd"), "prompt_sha256"),
    "task-number": (meta(task=1), "task is not a string"),
    "task-escape": (meta(task="\x1b[2J"), "task"),
}
