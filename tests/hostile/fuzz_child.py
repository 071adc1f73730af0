"""The child of fuzz.py: reads mutants of some targets, one after another, under limits.

Arguments: seed, a scratch folder, then jobs `TARGET:START:COUNT`. The mutant in hand stands in
`progress` in that folder, for the case that this process does not live to tell.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import fuzz
import fuzz_profiles
import fuzz_shards
import fuzz_tables
from fuzz import Check

from sp_runtime.errors import CorruptArtefactError

ROOM_BYTES = 1 << 30
MUTANT_SECONDS = 10.0


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
        if kind == "damage":
            return fuzz_profiles.profile_damage(scratch)
        return fuzz_profiles.profile_forgery(scratch)
    if subject == "shard":
        return fuzz_shards.shard(kind, scratch)
    if subject == "signature":
        return fuzz_profiles.signature_damage(scratch)
    if subject == "broken":
        return broken(kind, scratch)
    return fuzz_tables.table(subject, kind, scratch)


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
