"""The child of fuzz.py: reads mutants of some targets, one after another, under limits.

Arguments: seed, a scratch folder, then jobs `TARGET:START:COUNT`. The mutant in hand stands in
`progress` in that folder, for the case that this process does not live to tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import (
    Profile,
    compute_profile_id,
    parse_profile,
    profile_to_json,
    with_profile_id,
)
from sp_runtime.strict_json import decode, encode, parse

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "profile-1.0"
ROOM_BYTES = 1 << 30
MUTANT_SECONDS = 10.0

Check = Callable[[random.Random], str]
"""Makes and reads one mutant: "refused", "equal" or "forged"; AssertionError is a finding."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fuzz = load("fuzz")
mutate = load("mutate")


def profile_damage(scratch: Path) -> Check:
    text = (GOLDEN / "profile.json").read_bytes()
    expected = parse_profile(text)

    def check(draw: random.Random) -> str:
        found = parse_profile(mutate.mutate_json_text(draw, text))
        assert found == expected, "accepted as something else"
        return "equal"

    return check


def profile_forgery(scratch: Path) -> Check:
    text = (GOLDEN / "profile.json").read_bytes()
    expected = parse_profile(text)

    def check(draw: random.Random) -> str:
        document = mutate.mutate_tree(draw, json.loads(text), most=3)
        found = parse_profile(sealed(document))
        assert found.profile_id == compute_profile_id(found), "wrong id accepted"
        again = parse_profile(profile_to_json(found).encode())
        assert again == found, "not read back as it was written"
        assert_rules(found)
        says_same = content(found) == content(expected)
        assert says_same == (found.profile_id == expected.profile_id), "the id does not tell"
        return "equal" if found == expected else "forged"

    return check


def sealed(document: Any) -> bytes:
    """The document with id and checksum recomputed, where it can be read at all."""
    if isinstance(document, dict):
        document.pop("checksum", None)
        try:
            newer = document.get("schema_version") not in ("1.0", None)
            bare = parse(json.dumps(document).encode(), "x")
            profile = decode(Profile, bare, "x", ignore_unknown=newer)
            document["profile_id"] = with_profile_id(profile).profile_id
            document["checksum"] = hashlib.sha256(encode(document).encode()).hexdigest()
        except (CorruptArtefactError, ValueError, TypeError, AttributeError):
            pass  # the reader refuses it for that; what sealing needs is no part of the reader
    return json.dumps(document).encode("utf-8", "surrogatepass")


def content(profile: Profile) -> Any:
    """What a profile says, by field; written apart from `compute_profile_id`."""

    def near(value: Any) -> Any:
        if isinstance(value, float):
            return round(value * 1000)
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if isinstance(value, int):
            return value * 1000
        if isinstance(value, dict):
            return tuple(sorted((key, near(item)) for key, item in value.items()))
        return tuple(near(item) for item in value)

    calibration = dataclasses.asdict(profile.calibration)
    prompts = sorted((p["sha256"], p["tokens"]) for p in calibration.pop("prompts"))
    del calibration["versions"], calibration["device"]
    heads = [dataclasses.asdict(plan) for plan in profile.plan.heads]
    patterns = profile.head_patterns
    shapes = patterns.minference if patterns is not None else None
    windows = patterns.moa if patterns is not None else None
    return near(
        {
            "model": dataclasses.asdict(profile.model),
            "prompts": prompts,
            "settings": calibration,
            "clustering": profile.clustering and dataclasses.asdict(profile.clustering),
            "clusters": sorted((c.members, c.anchor or (), c.enabled) for c in profile.clusters),
            "floor": profile.plan.recall_floor,
            "plan": [{k: v for k, v in h.items() if k not in ("recall", "cost")} for h in heads],
            "points": {p.name: dataclasses.asdict(p.point) for p in profile.points},
            "has_patterns": (patterns is not None, shapes is not None, windows is not None),
            "shapes": shapes
            and [(s.layer, s.head, s.kind, s.vertical, s.slash) for s in shapes.heads],
            "windows": windows
            and (windows.sink, [(w.layer, w.head, w.alpha, w.beta) for w in windows.heads]),
        }
    )


def assert_rules(profile: Profile) -> None:
    """What the runtime relies on, written apart from `check_profile`."""
    model = profile.model
    heads = {
        (layer, head)
        for layer, kind in enumerate(model.layer_types)
        if kind == "full_attention"
        for head in range(model.num_heads)
    }
    planned = [(plan.layer, plan.head) for plan in profile.plan.heads]
    assert planned == sorted(set(planned)), "heads planned twice"
    assert set(planned) in (heads, set()), "heads without a plan"
    by_head = {plan.ref: plan for plan in profile.plan.heads}
    for plan in profile.plan.heads:
        assert 0 < plan.gamma <= 1
        if plan.lender is not None:
            assert plan.lender.layer < plan.layer, "lender of a later layer"
            assert by_head[plan.lender].assignment in ("dense", "sampled")
    members = [member for cluster in profile.clusters for member in cluster.members]
    assert len(members) == len(set(members)), "a head in two clusters"
    assert set(members) <= heads
    for cluster in profile.clusters:
        assert cluster.anchor is None or cluster.anchor in cluster.members
    assert any(named.name == "default" for named in profile.points)
    for file in profile.files:
        assert os.sep not in file.name
        assert not file.name.startswith(".")


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


def shard(kind: str, scratch: Path) -> Check:
    import numpy as np

    from sp_profile.shard import PromptShard, shard_from_bytes, shard_to_bytes
    from sp_profile.thumbnail import num_cells

    # The file in base is of a release without pictures; they are fuzzed too.
    older = shard_from_bytes((HERE / "base" / "shard.npz").read_bytes(), "base")
    pixels = np.arange(older.num_heads * num_cells(older.grid.num_rows), dtype=np.uint8)
    valid = shard_to_bytes(dataclasses.replace(older, mass=pixels.reshape(older.num_heads, -1)))
    names = [f.name for f in dataclasses.fields(PromptShard) if f.name not in ("prompt", "grid")]

    def values(found: PromptShard) -> Any:
        arrays = (getattr(found, name) for name in names)
        return found.prompt, found.grid, [None if a is None else a.tolist() for a in arrays]

    expected = values(shard_from_bytes(valid, "shard"))

    def check(draw: random.Random) -> str:
        if kind == "damage":
            found = shard_from_bytes(mutate.mutate_bytes(draw, valid), "shard")
            assert values(found) == expected, "accepted as something else"
            return "equal"
        found = shard_from_bytes(mutate.mutate_archive(draw, valid), "shard")
        assert values(shard_from_bytes(shard_to_bytes(found), "shard")) == values(found)
        assert all(-0.02 <= value <= 1.02 for value in found.density)
        return "equal" if values(found) == expected else "forged"

    return check


def signature_damage(scratch: Path) -> Check:
    """Signed profiles of which profile.json (valid in itself) or the signature was changed."""
    from sp_profile.signing import load_signed_profile

    folder = scratch / "profile"
    shutil.copytree(GOLDEN, folder)
    key = str(GOLDEN.parent / "minisign.pub")
    signature, text = folder / "profile.json.minisig", folder / "profile.json"
    valid, signed = signature.read_bytes(), text.read_bytes()
    expected = load_signed_profile(folder, key)

    def check(draw: random.Random) -> str:
        signature.write_bytes(valid)
        text.write_bytes(signed)
        if draw.random() < 0.5:
            signature.write_bytes(mutate.mutate_bytes(draw, valid))
        else:
            text.write_bytes(sealed(mutate.mutate_tree(draw, json.loads(signed))))
        assert load_signed_profile(folder, key) == expected, "accepted as something else"
        return "equal"

    return check


def broken(kind: str, scratch: Path) -> Check:
    """Readers with a known defect, by which the tests check this harness."""

    def check(draw: random.Random) -> str:
        if draw.random() >= 0.2:
            raise CorruptArtefactError("refused")
        if kind == "crash":
            os.abort()
        elif kind == "hang":
            time.sleep(3600)
        elif kind == "memory":
            bytearray(ROOM_BYTES * 2)
        elif kind == "error":
            raise KeyError("untyped")
        assert kind != "miss", "accepted as something else"
        return "equal"

    return check


def make_check(target: str, scratch: Path) -> Check:
    subject, kind = target.rsplit("-", 1)
    if subject == "profile":
        return profile_damage(scratch) if kind == "damage" else profile_forgery(scratch)
    if subject == "shard":
        return shard(kind, scratch)
    if subject == "signature":
        return signature_damage(scratch)
    if subject == "broken":
        return broken(kind, scratch)
    return table(subject, kind, scratch)


def limit_memory() -> None:
    """At most ROOM_BYTES more than now, where the system knows such a limit."""
    if sys.platform.startswith("linux"):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(check: Check, name: str, seed: str) -> dict[str, Any]:
    """One mutant's outcome, with the fields of fuzz.Outcome."""
    found: dict[str, Any] = {"mutants": 1, "findings": []}
    began = time.process_time()
    target, number = name.split()
    try:
        found[check(random.Random(f"{target}/{seed}/{number}"))] = 1
    except CorruptArtefactError as error:
        found["refused"] = 1
        if len(error.message) > 1000 or not error.message.isprintable():
            found["findings"].append(f"{name}: its message is long or not printable")
    except Exception as error:  # the very thing that is looked for
        found["findings"].append(f"{name}: {type(error).__name__}: {str(error)[:150]!r}")
    found["slowest"] = time.process_time() - began
    if found["slowest"] > MUTANT_SECONDS:
        found["findings"].append(f"{name}: took {found['slowest']:.1f} s")
    return found


def main() -> None:
    seed, scratch = sys.argv[1], Path(sys.argv[2])
    jobs = [word.split(":") for word in sys.argv[3:]]
    checks = {}
    for target, _, _ in jobs:
        (scratch / target).mkdir(exist_ok=True)
        checks[target] = checks.get(target) or make_check(target, scratch / target)
    limit_memory()
    results = {target: fuzz.Outcome() for target, _, _ in jobs}
    progress = os.open(scratch / "progress", os.O_CREAT | os.O_WRONLY)
    for target, start, count in jobs:
        before = peak_bytes()
        for number in range(int(start), int(start) + int(count)):
            name = f"{target} {number}"
            os.pwrite(progress, name.encode().ljust(60), 0)
            results[target].add(fuzz.Outcome(**run(checks[target], name, seed)))
        peak = (peak_bytes() - before) / (1 << 20)
        results[target].peak_mib = max(results[target].peak_mib, peak)
    sys.stdout.write(json.dumps({name: dataclasses.asdict(o) for name, o in results.items()}))


if __name__ == "__main__":
    main()
