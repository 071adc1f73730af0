"""The scripts that turn benchmark documents into ratios and a plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sp_profile.bench.clock import DEVICE_OR_HOST

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def row(kernel: str, density: float, rate: float, mask: str = "random") -> dict:
    return {
        "kernel": kernel,
        "mask": mask,
        "status": "ok",
        "problem": "",
        "density": density,
        "tflops": rate,
        "times": {"median_ms": 1000 / rate, "p20_ms": 990 / rate, "p80_ms": 1020 / rate},
        "shape": {
            "length": 32768, "heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": "bfloat16",
        },
        "environment": {"device": "a GPU"},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row("triton", 0.25, 600), row("fa4-sparse", 0.25, 500), row("triton", 1, 660)]
    rows.append({**row("fa4", 1, 1), "tflops": None, "status": "failed", "problem": "no luck"})
    rows[-1]["environment"] = {"timer": DEVICE_OR_HOST}
    (tmp_path / "kernel-32k.json").write_text(json.dumps({"rows": rows, "mass": []}))
    masks = [row("triton", 0.1, 500), row("triton", 0.1, 750, "shared")]
    (tmp_path / "masks.json").write_text(json.dumps({"rows": masks}))
    parts = {
        "estimate_ms": 0.1, "decision_ms": 0.1, "index_ms": 0.05, "attention_ms": 0.75,
        "mass_ms": 0.0,
    }  # fmt: skip
    layer = {
        **row("-", 0.1, 1), "method": "plan", "overhead": 0.5, "graph_ms": 1.1, "speedup": 2.0,
        "device_parts": parts,
    }  # fmt: skip
    (tmp_path / "layer.json").write_text(json.dumps({"rows": [layer], "crossovers": []}))
    return tmp_path


def script(name: str, *words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_ratios_are_of_what_was_measured_alone(folder: Path) -> None:
    text = script("kernel_ratios.py", folder)
    assert "32k 25 %" in text
    assert "600 /  500 TFLOP/s   1.20" in text
    assert "shared" in text
    assert "750 TFLOP/s   1.50" in text
    assert "nan" not in text
    (line,) = [each for each in text.splitlines() if each.startswith("  plan")]
    assert line.split() == [
        "plan",
        "32768",
        "0.100",
        "1000.000",
        "50",
        "%",
        "25",
        "%",
        "1.100",
        "2.00",
    ]
    assert "kernel-32k: times hold the host's: fa4" in text
    assert "kernel-32k: fa4: failed: no luck" in text


def test_the_plot_is_a_picture(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    target = folder / "kernel.png"
    script("plot_kernel.py", target, folder / "kernel-32k.json")
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_evidence_script_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", str(BENCHMARKS / "kernel_evidence.sh")], check=True)
