"""Mutated artefacts against their readers: `python tests/hostile/fuzz.py --count 12000`.

Every mutant is read in a child process with bounded memory and time, so that a parser that crashes,
hangs or eats memory is seen. A mutant is a finding where the child dies or is late, where anything
but the typed error comes out, and where it passes unnoticed:

- damage (nothing recomputed): what a reader accepts must equal what was written;
- forgery (hashes, checksum and profile_id recomputed as an attacker would): what a reader accepts
  must keep every rule of the format, be written and read back unchanged, and carry another
  profile_id wherever it says something else. Measured figures are no part of the identity: there
  the hash of the file tells, in profile.json, in the journal and under the signature.

Mutant I of target T under seed S is always the same: `--target T --seed S --start I --count 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "profile-1.0"
BATCH = 400
BATCH_SECONDS = 180.0
# Target: its share of the mutants.
TARGETS = {
    "profile-damage": 5,
    "profile-forgery": 5,
    "heads-damage": 2,
    "heads-forgery": 2,
    "heads-values": 1,
    "similarity-damage": 1,
    "similarity-forgery": 2,
    "masks-damage": 1,
    "masks-forgery": 2,
    "masks-values": 1,
    "shard-damage": 3,
    "shard-forgery": 3,
    "signature-damage": 1,
}


@dataclass(kw_only=True)
class Outcome:
    """What became of the mutants of one target.

    refused: by the typed error; equal: accepted as what was written; forged: accepted as another,
    valid artefact. slowest: CPU seconds. peak_mib: resident memory beyond that before them.
    """

    mutants: int = 0
    refused: int = 0
    equal: int = 0
    forged: int = 0
    slowest: float = 0.0
    peak_mib: float = 0.0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.mutants += other.mutants
        self.refused += other.refused
        self.equal += other.equal
        self.forged += other.forged
        self.slowest = max(self.slowest, other.slowest)
        self.peak_mib = max(self.peak_mib, other.peak_mib)
        self.findings += other.findings


Job = tuple[str, int, int]
"""Target, number of its first mutant, how many."""
Check = Callable[[random.Random], str]
"""Makes and reads one mutant: "refused", "equal" or "forged"; AssertionError is a finding."""


def run_jobs(jobs: list[Job], seed: int, seconds: float = BATCH_SECONDS) -> dict[str, Outcome]:
    """Jobs in one child process; a mutant that kills it costs itself and a new process."""
    results = {target: Outcome() for target, _, _ in jobs}
    while jobs:
        with tempfile.TemporaryDirectory(prefix="sp-fuzz-") as scratch:
            words = [":".join(map(str, job)) for job in jobs]
            command = [sys.executable, str(HERE / "fuzz_child.py"), str(seed), scratch, *words]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
                if done.returncode == 0:
                    _merge(results, json.loads(done.stdout))
                    return results
                end = (done.stderr.strip().splitlines() or [""])[-1]
                reason = f"child ended with {done.returncode}: {end}"
            except subprocess.TimeoutExpired:
                reason = f"not done after {seconds:g} s"
            target, at = _progress(Path(scratch), jobs)
        before, jobs = _split(jobs, target, at)
        # What came before it was well; it is run again, so that it is counted.
        for name, outcome in run_jobs(before, seed, seconds).items():
            results[name].add(outcome)
        results[target].add(Outcome(mutants=1, findings=[f"{target} {at}: {reason}"]))
    return results


def _merge(results: dict[str, Outcome], found: dict[str, dict[str, Any]]) -> None:
    for target, fields in found.items():
        results[target].add(Outcome(**fields))


def _progress(scratch: Path, jobs: list[Job]) -> tuple[str, int]:
    """The mutant in hand when the child ended; the first one, if it came to none."""
    try:
        target, number = (scratch / "progress").read_text("ascii").split()
        return target, int(number)
    except (OSError, ValueError):
        return jobs[0][0], jobs[0][1]


def _split(jobs: list[Job], target: str, at: int) -> tuple[list[Job], list[Job]]:
    """The jobs before and after one mutant."""
    for number, (name, start, count) in enumerate(jobs):
        if name == target and start <= at < start + count:
            before = [*jobs[:number], (name, start, at - start)]
            after = [(name, at + 1, start + count - at - 1), *jobs[number + 1 :]]
            return [j for j in before if j[2]], [j for j in after if j[2]]
    raise AssertionError(f"{target} {at} is in no job")


def plan(count: int, only: str | None, start: int) -> list[list[Job]]:
    """The jobs of each child; their counts add up to `count` or a few more."""
    chosen = {only: 1} if only is not None else TARGETS
    parts = sum(chosen.values())
    children: list[list[Job]] = [[]]
    for target, part in chosen.items():
        left, place = -(-count * part // parts), start
        while left > 0:
            room = BATCH - sum(job[2] for job in children[-1])
            if room <= 0:
                children.append([])
                continue
            size = min(left, room)
            children[-1].append((target, place, size))
            left, place = left - size, place + size
    return children


def report(results: dict[str, Outcome], seed: int, seconds: float) -> str:
    """The text that is kept."""
    lines = [
        f"{'target':<20}{'mutants':>8}{'refused':>9}{'equal':>7}{'forged':>8}{'findings':>10}"
        f"{'slowest':>10}{'memory':>10}"
    ]
    total = Outcome()
    for target, found in results.items():
        total.add(found)
        lines.append(_row(target, found))
    lines.append(_row("all", total))
    lines.append("")
    lines.append("refused: typed error; equal: read as what was written; forged: ids recomputed,")
    lines.append("another valid artefact; slowest mutant in CPU seconds; memory beyond the start")
    lines.append(f"seed {seed}, {seconds:.0f} s, {versions()}")
    lines += [f"FINDING {finding}" for finding in total.findings]
    return "\n".join(lines) + "\n"


def _row(name: str, found: Outcome) -> str:
    return (
        f"{name:<20}{found.mutants:>8}{found.refused:>9}{found.equal:>7}{found.forged:>8}"
        f"{len(found.findings):>10}{found.slowest:>8.2f} s{found.peak_mib:>6.0f} MiB"
    )


def versions() -> str:
    import importlib.metadata as metadata

    packages = " ".join(f"{name} {metadata.version(name)}" for name in ("pyarrow", "numpy"))
    return f"Python {platform.python_version()} {packages}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("-o", "--output", type=Path, help="keep the text there")
    chosen = parser.parse_args()
    started = time.monotonic()
    results: dict[str, Outcome] = {}
    planned = plan(chosen.count, chosen.target, chosen.start)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for found in pool.map(lambda jobs: run_jobs(jobs, chosen.seed), planned):
            for target, outcome in found.items():
                results.setdefault(target, Outcome()).add(outcome)
    text = report(results, chosen.seed, time.monotonic() - started)
    sys.stdout.write(text)
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(text, "ascii", errors="backslashreplace")
    return 1 if "FINDING" in text else 0


if __name__ == "__main__":
    sys.exit(main())
