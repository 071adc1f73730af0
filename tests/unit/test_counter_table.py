"""Hardware counters: which are asked for, and the table of what Nsight Compute prints."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
COLUMNS = {
    "ID": ("", "0"),
    "Kernel Name": ("", "hopper_kernel"),
    "gpu__time_duration.sum": ("nsecond", "2,000,000"),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": ("%", "71.25"),
    "sm__cycles_active.avg": ("cycle", "900"),
    "sm__cycles_elapsed.avg": ("cycle", "1,000"),
    "dram__bytes_read.sum": ("byte", "3,000,000,000"),
    "dram__bytes_write.sum": ("Gbyte", "1"),
    "lts__t_sector_hit_rate.pct": ("%", "n/a"),
    STALL.format("barrier"): ("inst", "3"),
    STALL.format("gmma"): ("inst", "5"),
    STALL.format("wait"): ("inst", "1"),
    STALL.format("selected"): ("inst", "1"),
}


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "counter_table.py"), *map(str, words)],
        capture_output=True,
        text=True,
    )


def folder_of(tmp_path: Path, launches: list[dict[str, Any]], kernels: list[str]) -> Path:
    """A run's folder, with ncu's noise before the lines of the table."""
    text = io.StringIO()
    text.write("==PROF== Connected\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    writer.writerow(unit for unit, _ in COLUMNS.values())
    for name in kernels:
        values = {key: value for key, (_, value) in COLUMNS.items()} | {"Kernel Name": name}
        writer.writerow(values.values())
    (tmp_path / "counters.csv").write_text(text.getvalue())
    document = {"device": "a GPU", "torch": "2", "launches": launches}
    (tmp_path / "launches.json").write_text(json.dumps(document))
    return tmp_path


def launch(kernel: str) -> dict[str, Any]:
    return {
        "kernel": kernel, "length": 32768, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "density": 0.25, "operations": 1_300_000_000_000,
    }  # fmt: skip


def test_the_table_by_hand(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        [launch("hopper"), launch("portable")],
        ["hopper_kernel", "block_sparse_kernel"],
    )
    done = script("table", folder)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[2]
    assert line.startswith("| hopper, 32k, 128 | 25 % | 2.000 | 650 | 71.2 % | - |")
    assert "gmma 50 %, barrier 30 %, wait 10 %" in line
    assert (folder / "counters.md").read_text() in done.stdout
    first, second = json.loads((folder / "counters.json").read_text())["launches"]
    assert (first["duration_ms"], first["tflops"]) == pytest.approx((2.0, 650.0))
    assert first["dram_bytes"] == pytest.approx(4e9)  # 2 TB/s
    assert "| 2.00 |" in line
    assert first["sm_active"] == pytest.approx(90)
    assert first["l2_hits"] is first["occupancy"] is None
    assert second["launch"]["kernel"] == "portable"


@pytest.mark.parametrize(
    ("launches", "kernels", "message"),
    [
        (["hopper", "portable"], ["hopper_kernel"], "2 launches were made, ncu profiled 1"),
        (["hopper"], ["block_sparse_kernel"], "counters of block_sparse_kernel"),
    ],
)
def test_counters_of_other_launches_are_refused(
    tmp_path: Path, launches: list[str], kernels: list[str], message: str
) -> None:
    done = script("table", folder_of(tmp_path, [launch(name) for name in launches], kernels))
    assert done.returncode == 1
    assert message in done.stderr


def test_metrics_are_those_of_the_chip(tmp_path: Path) -> None:
    listed = tmp_path / "available.txt"
    listed.write_text(
        "Device NVIDIA H100 (GH100)\n"
        "gpu__time_duration          Counter  the time\n"
        f"{STALL.format('gmma').removesuffix('.ratio')}  Ratio  warps\n"
    )
    done = script("metrics", listed)
    wanted = ["gpu__time_duration.sum", "launch__registers_per_thread", STALL.format("gmma")]
    assert done.stdout.strip().split(",") == wanted
    assert "this chip has no lts__t_bytes.sum" in done.stderr
    listed.write_text("==ERROR== no list\n")
    assert len(script("metrics", listed).stdout.split(",")) > 30


def test_the_script_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", str(BENCHMARKS / "profile_counters.sh")], check=True)
