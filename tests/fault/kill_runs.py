"""Kill, race and interrupt real calibrations of the tiny model; print what became of them.

    python tests/fault/kill_runs.py --kills 200

Every process is a fork of this one, which has everything imported and nothing computed, so that a
run takes a fraction of a second. Exits with 1 if any run ends in another profile_id.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch
from sp_cli.profile_main import cli
from sp_cli.runner import run as run_command

from sp_profile.run_folder import open_run
from sp_runtime.profile import load_profile

PROMPTS = 4
WORDS = {"sky": 80, "sun": 12, "grass": 16, "sea": 20}


@dataclass(frozen=True)
class Ended:
    """A process's end: its exit code (negative: the signal) and what it printed."""

    code: int
    text: str


class Runs:
    """Calibrations of one configuration under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = tiny_models.save_model(root / "model", context=2048)
        # Clustering needs one prompt of 16 blocks; short ones make the moments of a kill differ.
        texts = [
            " ".join(f"The {word} is {1000003 * n + 7}." for n in range(count))
            for word, count in WORDS.items()
        ]
        lines = "".join(json.dumps({"text": text, "task": "own"}) + "\n" for text in texts)
        (root / "prompts.jsonl").write_text(lines)

    def calibrate(self, run: Path, **environ: str) -> Process:
        prompts = str(self.root / "prompts.jsonl")
        options = ["--model", str(self.model), "--prompts", prompts, "--device", "cpu"]
        return Process(["calibrate", *options, "-o", str(run)], environ)

    def finish(self, run: Path) -> str:
        """Run the same command to its end; the id of the profile that comes of it."""
        ended = self.calibrate(run).wait()
        assert ended.code == 0, ended
        profile = run.with_name(f"{run.name}-profile")
        options = ["-o", str(profile), "--min-tokens", "512", "--overwrite"]
        ended = Process(["cluster", str(run), *options], {}).wait()
        assert ended.code == 0, ended
        return load_profile(profile).profile_id


class Process:
    """A command of sp-profile in a fork of this process."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            for stream in (1, 2):
                os.dup2(writing, stream)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
            os.environ.update(environ)
            # A shell starts what runs in its background with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 1
            with contextlib.suppress(BaseException):
                code = run_command(cli, argv)
            os._exit(code)
        os.close(writing)
        self._output = reading

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        with os.fdopen(self._output, "rb") as stream:
            text = stream.read().decode()
        status = os.waitpid(self.pid, 0)[1]
        return Ended(os.waitstatus_to_exitcode(status), text)


def entries(run: Path) -> int:
    """How many prompts are finished, whatever else is there."""
    if not (run / "run.json").exists():
        return 0
    return len(open_run(run, allow_unfinished=True).entries)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@contextlib.contextmanager
def folder(runs: Runs) -> Iterator[Path]:
    """A new place for a run, removed afterwards with its profile."""
    path = runs.root / "run"
    yield path
    for used in (path, path.with_name("run-profile")):
        shutil.rmtree(used, ignore_errors=True)


def random_kills(runs: Runs, count: int, seed: int, expected: str, seconds: float) -> list[dict]:
    """Kill a calibration after a random time, then finish it; one row a kill."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        with folder(runs) as run:
            process = runs.calibrate(run)
            delay = draw.uniform(0, seconds)
            time.sleep(delay)
            process.send(signal.SIGKILL)
            code = process.wait().code
            kept = entries(run)
            found = runs.finish(run)
        rows.append({"kill": number, "after_s": round(delay, 3), "code": code, "kept": kept,
                     "same_id": found == expected})  # fmt: skip
    return rows


def race(runs: Runs, count: int, expected: str) -> dict:
    """Start the same calibration many times at once."""
    with folder(runs) as run:
        ends = [process.wait() for process in [runs.calibrate(run) for _ in range(count)]]
        refused = [end.text for end in ends if end.code == 7]
        return {
            "codes": sorted(end.code for end in ends),
            "refused_by_name": all("is in use by process" in text for text in refused),
            "same_id": runs.finish(run) == expected,
        }


def refusal(runs: Runs, expected: str) -> dict:
    """A stopped holder keeps its lock, a killed one does not."""
    with folder(runs) as run:
        holder = runs.calibrate(run)
        wait_until(lambda: entries(run) >= 1)
        holder.send(signal.SIGSTOP)
        second = runs.calibrate(run).wait()
        holder.send(signal.SIGKILL)
        holder.send(signal.SIGCONT)
        holder.wait()
        named = f"in use by process {holder.pid} on {socket.gethostname()} since" in second.text
        return {"code": second.code, "named": named, "same_id": runs.finish(run) == expected}


def interrupt(runs: Runs, expected: str) -> dict:
    """SIGINT in the middle of the work; again where a busy machine sent it after the end."""
    for _ in range(20):
        found = interrupt_once(runs, expected)
        if found["code"] != 0:
            break
    return found


def interrupt_once(runs: Runs, expected: str) -> dict:
    with folder(runs) as run:
        process = runs.calibrate(run)
        wait_until(lambda: entries(run) >= 1)
        process.send(signal.SIGINT)
        end = process.wait()
        kept = entries(run)
        return {"code": end.code, "text": end.text, "kept": kept,
                "same_id": runs.finish(run) == expected}  # fmt: skip


def group(runs: Runs, expected: str, victim: int | None) -> dict:
    """Two ranks share a run; one of them may be killed, and a stranger comes by."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with folder(runs) as run:
        ranks = [runs.calibrate(run, RANK=str(rank), LOCAL_RANK=str(rank), **common)
                 for rank in range(2)]  # fmt: skip
        wait_until(lambda: entries(run) >= 1)
        stranger = None
        if victim is not None:
            ranks[victim].send(signal.SIGKILL)
            stranger = runs.calibrate(run).wait()
        ends = [process.wait() for process in ranks]
        journals = sorted(path.name for path in run.glob("journal*"))
        complete = entries(run) == PROMPTS
        return {
            "codes": [end.code for end in ends],
            "texts": [end.text for end in ends],
            "stranger": None if stranger is None else [stranger.code, stranger.text],
            "journals": journals,
            "complete": complete,
            "same_id": runs.finish(run) == expected,
        }


def import_all() -> None:
    """Import once here what commands import when they run, and every fork would again."""
    for name in (
        "sp_profile.calibrate",
        "sp_profile.cluster",
        "torch.distributed.rendezvous",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args()
    import_all()
    torch.set_num_threads(1)  # a pool of threads would not outlive a fork
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name))
        with folder(runs) as run:
            start = time.monotonic()
            assert runs.calibrate(run).wait().code == 0
            seconds = time.monotonic() - start
            expected = runs.finish(run)
        kills = random_kills(runs, options.kills, options.seed, expected, seconds)
        found = {
            "profile_id": expected,
            "uninterrupted_s": round(seconds, 3),
            "kills": kills,
            "race": race(runs, 8, expected),
            "refusal": refusal(runs, expected),
            "interrupt": interrupt(runs, expected),
            "group": group(runs, expected, None),
            "group, rank 1 killed": group(runs, expected, 1),
            "group, rank 0 killed": group(runs, expected, 0),
        }
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for row in kills:
        print(
            f"kill {row['kill'] + 1}: after {row['after_s']:.3f} s of {seconds:.3f} s, "
            f"{row['kept']} of {PROMPTS} prompts kept, "
            f"{'same id' if row['same_id'] else 'ANOTHER ID'}"
        )
    struck = sum(row["code"] == -signal.SIGKILL for row in kills)
    others = [found[key] for key in found if isinstance(found[key], dict)]
    same = all(row["same_id"] for row in (*kills, *others))
    print(f"{len(kills)} runs, {struck} of them killed by SIGKILL before their end; "
          f"{sum(row['same_id'] for row in kills)} resumed to {expected}")  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
