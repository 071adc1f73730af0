"""Mutations of artefacts: bytes, JSON trees, tables and shards; each follows its `Random` alone."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

TOKENS = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"0", b"-", b"1e999", b"NaN", b"null", b"true",
    b"\x00", b"\xff", b"\n", b'{"a":', b"[[[[[[[[", b"99999999999999999999", b"\\u0000", b"\\ud800",
)  # fmt: skip
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, -0.0, 1e-9, 1.0005, 2.0, 64, 65, 1 << 31, 1 << 52,
    (1 << 53) - 1, "", "a", "dense", "borrow", "../x", "\x1b[2J", "\u202e", "a" * 64, "0" * 64,
    "x" * 70_000, [], {}, [0], [0, 0], [2, 1], [[0, 0]], {"layer": 0}, [None], "1.0", "2.0", "1.7",
)  # fmt: skip


def mutate_bytes(draw: random.Random, data: bytes, most: int = 3) -> bytes:
    """Other bytes: one to `most` flips, overwrites, cuts, copies, swaps, tokens, truncations."""
    while (changed := _edited(draw, data, most)) == data:
        pass
    return changed


def _edited(draw: random.Random, data: bytes, most: int) -> bytes:
    content = bytearray(data)
    for _ in range(draw.randint(1, most)):
        place = draw.randrange(len(content) + 1) if content else 0
        length = min(draw.choice((1, 1, 2, 4, 16, 64, 400)), len(content) - place)
        kind = draw.randrange(8)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(content):
            content[place] = draw.randrange(256)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = content[place : place + length]
        elif kind == 4:
            content[place:place] = draw.choice(TOKENS)
        elif kind == 5:
            content[place : place + length] = draw.randbytes(length)
        elif kind == 6:
            other = draw.randrange(len(content) + 1)
            content[place : place + length] = content[other : other + length]
        elif draw.random() < 0.2:
            del content[place:]
    return bytes(content)


def mutate_tree(draw: random.Random, document: Any, most: int = 2) -> Any:
    """Another JSON document: one to `most` values, keys or places of it changed."""
    # Compared as text: to Python True is 1.
    before = json.dumps(document, sort_keys=True)
    while True:
        changed = copy.deepcopy(document)
        for _ in range(draw.randint(1, most)):
            parent, key = _somewhere(draw, changed)
            if parent is not None:
                _edit(draw, parent, key)
        if json.dumps(changed, sort_keys=True) != before:
            return changed


def _somewhere(draw: random.Random, document: Any) -> tuple[Any, Any]:
    """A container and a key in it, at any depth."""
    parent, key, node = None, None, document
    while isinstance(node, (dict, list)) and node and (parent is None or draw.random() < 0.8):
        keys = [*node] if isinstance(node, dict) else range(len(node))
        parent, key = node, draw.choice(keys)
        node = node[key]
    return parent, key


def _edit(draw: random.Random, parent: Any, key: Any) -> None:
    value = parent[key]
    kind = draw.randrange(9)
    if kind == 0:
        parent[key] = copy.deepcopy(draw.choice(NASTY))
    elif kind == 1:
        del parent[key]
    elif kind == 2 and isinstance(parent, list):
        parent.insert(draw.randrange(len(parent) + 1), copy.deepcopy(value))
    elif kind == 3 and isinstance(parent, list):
        other = draw.randrange(len(parent))
        parent[key], parent[other] = parent[other], value
    elif kind == 4 and isinstance(parent, dict):
        parent[draw.choice(("extra", "__class__", "Gamma", "a" * 300, key + "_", ""))] = value
    elif kind == 5 and isinstance(parent, dict):
        other_key = draw.choice([*parent])
        parent[key], parent[other_key] = parent[other_key], value
    else:
        parent[key] = _nudged(draw, value)


def _nudged(draw: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, value * 2, value + (1 << 40), str(value)))
    if isinstance(value, float):
        return draw.choice((value + 0.001, value - 0.01, value * 2, -value, 0.0, 1.0, int(value)))
    if isinstance(value, str):
        place = draw.randrange(len(value) + 1)
        return draw.choice(
            (value[:place], value[::-1], value.upper(), value + "\u00e9", value[:place] + "/")
        )
    if value is None:
        return copy.deepcopy(draw.choice(NASTY))
    return [value]


def mutate_json_text(draw: random.Random, text: bytes) -> bytes:
    """Edits of the text, and of the tree written in one of several spellings."""
    if draw.random() < 0.5:
        return mutate_bytes(draw, text)
    document = mutate_tree(draw, json.loads(text))
    return json.dumps(document, indent=draw.choice((None, 1)), ensure_ascii=draw.random() < 0.5)\
        .encode("utf-8", "surrogatepass")  # fmt: skip


def mutate_archive(draw: random.Random, data: bytes) -> bytes:
    """A shard archive with right checksums around changed, lost, renamed or new members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(draw.randint(1, 2)):
        number = draw.randrange(len(members))
        name, content = members[number]
        kind = draw.randrange(6)
        if kind == 0:
            members[number] = (name, mutate_bytes(draw, content))
        elif kind == 1:
            # The numbers alone: the header, 64 or 128 bytes long, stays.
            place = draw.randrange(min(128, len(content)), len(content) + 1)
            members[number] = (name, content[:place] + mutate_bytes(draw, content[place:]))
        elif kind == 2:
            changed = bytearray(content)
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            members[number] = (name, bytes(changed))
        elif kind == 3 and len(members) > 1:
            del members[number]
        elif kind == 4:
            other = draw.randrange(len(members))
            members[number] = (name, members[other][1])
        else:
            members[number] = (draw.choice(("x.npy", "../a.npy", name.upper(), "")), content)
    buffer = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in dict(members).items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()
