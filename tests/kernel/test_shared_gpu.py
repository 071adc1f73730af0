"""On a GPU that several processes share: no attention call loses a tile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 6
SECONDS = 12


def test_processes_that_take_turns_on_a_gpu_compute_every_tile():
    program = str(Path(__file__).with_name("shared_gpu_run.py"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", program, str(SECONDS)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, ended[0][1]
    found = [out.split() for out, _ in ended]
    assert all(int(words[1]) > 0 for words in found)
    assert [words[3] for words in found] == ["0"] * PROCESSES
