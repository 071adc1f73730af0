"""Mutants of a profile's Parquet tables, and what the tools rely on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutate
from fuzz import GOLDEN, Check

from sp_runtime.profile import Profile, parse_profile


def table(name: str, kind: str, scratch: Path) -> Check:
    """kind: damage (the published hash), forgery (a corrected one), values (rewritten cells)."""
    from sp_profile import artefact

    reader = {
        "heads": artefact.read_heads,
        "similarity": artefact.read_similarity,
        "masks": artefact.read_masks,
    }[name]
    read = columns_of(reader)
    folder = scratch / "profile"
    shutil.copytree(GOLDEN, folder)
    path = folder / f"{name}.parquet"
    valid = path.read_bytes()
    profile = parse_profile((folder / "profile.json").read_bytes())
    expected = read(folder, profile)

    def mutant(draw: random.Random) -> bytes:
        if kind == "values":
            return changed_cells(draw, valid)
        if draw.random() < 0.5:
            return mutate.mutate_bytes(draw, valid)
        # Half of the damage in the footer, where the structure is.
        start = len(valid) - 8 - int.from_bytes(valid[-8:-4], "little")
        return valid[:start] + mutate.mutate_bytes(draw, valid[start:])

    def check(draw: random.Random) -> str:
        data = mutant(draw)
        path.write_bytes(data)
        known = profile if kind == "damage" else with_hash(profile, path.name, data)
        found = read(folder, known)
        if kind == "values":
            assert_table(name, found, known)
            return "equal" if found == expected else "forged"
        assert found == expected, "accepted as something else"
        return "equal"

    return check


def columns_of(read: Callable[..., Any]) -> Callable[[Path, Profile], Any]:
    """A table's values as one comparable object."""

    def columns(folder: Path, profile: Profile) -> Any:
        found = read(folder, profile)
        if hasattr(found, "to_pydict"):
            return found.to_pydict()
        if dataclasses.is_dataclass(found):
            return [getattr(found, f.name).tolist() for f in dataclasses.fields(found)]
        return [row for group in found for row in group]

    return columns


def with_hash(profile: Profile, name: str, data: bytes) -> Profile:
    digest = hashlib.sha256(data).hexdigest()
    files = tuple(
        dataclasses.replace(file, sha256=digest, bytes=len(data)) if file.name == name else file
        for file in profile.files
    )
    return dataclasses.replace(profile, files=files)


def changed_cells(draw: random.Random, valid: bytes) -> bytes:
    """A valid Parquet file whose cells, rows or columns are other ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pq.read_table(io.BytesIO(valid))
    groups = pq.read_metadata(io.BytesIO(valid)).row_group(0).num_rows
    for _ in range(draw.randint(1, 2)):
        number = draw.randrange(found.num_columns)
        name, kind = found.schema.names[number], found.schema.field(number).type
        values = found.column(number).to_pylist()
        edit = draw.randrange(12)
        if edit == 0:
            order = [*range(found.num_rows)]
            draw.shuffle(order)
            found = found.take(pa.array(order[: draw.randint(0, len(order))], type=pa.int64()))
            continue
        if edit == 1:
            found = found.drop_columns([name])
            continue
        for _ in range(draw.randint(1, 3)):
            if values:
                row = draw.randrange(len(values))
                values[row] = other_value(draw, values[row], draw.choice(values))
        try:
            array = pa.array(values, type=kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
        found = found.set_column(number, pa.field(name, array.type, nullable=False), array)
        if not found.num_columns:
            break
    buffer = io.BytesIO()
    pq.write_table(found, buffer, row_group_size=max(groups, 1), write_page_checksum=True)
    return buffer.getvalue()


def other_value(draw: random.Random, value: Any, other: Any) -> Any:
    if isinstance(value, float):
        pool = (other, value + 0.01, -value, 0.0, 1.0, 2.0, -1.0, float("nan"), float("inf"))
        return draw.choice(pool)
    if isinstance(value, int):
        return draw.choice((other, value + 1, value - 1, -1, 0, (1 << 31) - 1))
    if isinstance(value, bytes):
        return draw.choice((other, mutate.mutate_bytes(draw, value), value[::-1], b""))
    return draw.choice((other, "dense", "x", "", value.upper(), value * 100))


def assert_table(name: str, found: Any, profile: Profile) -> None:
    """What the tools rely on, written apart from the readers' checks."""
    if name == "heads":
        assert found["assignment"] == [plan.assignment for plan in profile.plan.heads]
        assert all(-0.01 <= value <= 1.01 for value in found["density"])
        assert all(-1.01 <= value <= 1.01 for value in found["recall_anchor"])
    else:
        tokens = {prompt.sha256: prompt.tokens for prompt in profile.calibration.prompts}
        assert len(found) == len(tokens) * len(profile.plan.heads)
        for row in found:
            assert row.tokens == tokens[row.prompt_sha256]
            assert 8 * len(row.bits) - 8 < row.blocks <= 8 * len(row.bits)
