"""Scripts of this folder that print a JSON line for everything they check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Reported = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def reported() -> Reported:
    """Runs a script and reads its lines: reported(script, *arguments, interpreted=False).

    In a child process: Triton reads TRITON_INTERPRET on import, and the rest of the suite must not
    run with it.
    """

    def run(script: str, *arguments: str, interpreted: bool = False) -> list[dict[str, Any]]:
        interpreter = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if interpreted else {}
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script)), *arguments],
            env={**os.environ, **interpreter},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
