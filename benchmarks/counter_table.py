"""What `profile_counters.sh` asks Nsight Compute for, and the table of what it answers.

    python benchmarks/counter_table.py metrics AVAILABLE.txt    the metrics of this chip, for ncu
    python benchmarks/counter_table.py table FOLDER             of counters.csv and launches.json

Metric names are those of compute capability 9.0 (Nsight Compute 2023 to 2025). Warp-group products
(wgmma) count in the tensor pipe as `sm__pipe_tensor_cycles_active`.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from report_text import table

# Names of kernels in results, and of their functions as ncu shows them.
FUNCTIONS = {"hopper": "hopper_kernel", "portable": "block_sparse_kernel"}

DURATION = "gpu__time_duration.sum"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
WGMMA = "sm__inst_executed_pipe_tensor_op_gmma.sum"
XU = "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
ACTIVE, ELAPSED = "sm__cycles_active.avg", "sm__cycles_elapsed.avg"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
DRAM_READ, DRAM_WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
L2_HITS, L2_BYTES = "lts__t_sector_hit_rate.pct", "lts__t_bytes.sum"
L2 = "lts__throughput.avg.pct_of_peak_sustained_elapsed"
REGISTERS = "launch__registers_per_thread"
_SINGLE = (
    DURATION, TENSOR, WGMMA, XU, ISSUE, ACTIVE, ELAPSED, OCCUPANCY, DRAM_READ, DRAM_WRITE, DRAM,
    L2_HITS, L2_BYTES, L2, REGISTERS,
)  # fmt: skip
# Where warps stand, per issued instruction; `selected` is the one that issues and no stall.
REASONS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle",
    "long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction",
    "not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait",
)  # fmt: skip
_UNITS = {
    "ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0,
    "s": 1e3, "second": 1e3, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12,
}  # fmt: skip


def stall(reason: str) -> str:
    return f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio"


METRICS = (*_SINGLE, *map(stall, REASONS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One profiled launch. density: blocks over causal blocks; operations: of whole blocks."""

    kernel: str
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    density: float
    operations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """Of one launch, alone on the GPU with cold caches; None where this chip has no such counter.

    Shares are in percent: tensor_pipe, dram, l2 of the peak over the whole duration; issue_slots,
    exp_pipe (the pipe of exponentials), occupancy while an SM is active; sm_active of the duration.
    wgmma: warp-group products issued. stalls: (reason, percent of the warps' time), largest first.
    """

    launch: Launch
    duration_ms: float
    tflops: float
    tensor_pipe: float | None
    wgmma: float | None
    exp_pipe: float | None
    issue_slots: float | None
    sm_active: float | None
    occupancy: float | None
    registers: float | None
    dram_bytes: float | None
    dram: float | None
    l2_bytes: float | None
    l2: float | None
    l2_hits: float | None
    stalls: tuple[tuple[str, float], ...]


def chosen_metrics(available: str) -> tuple[list[str], list[str]]:
    """The metrics to ask for and those that the chip lacks, by what `ncu --query-metrics` lists.

    Everything where the list names none at all: then it is not what was expected. Launch facts are
    in no such list.
    """
    names = {line.split()[0] for line in available.splitlines() if line.strip()}
    found = [m for m in METRICS if m.split(".")[0] in names or m.startswith("launch__")]
    if not any(m.split(".")[0] in names for m in METRICS):
        return list(METRICS), []
    return found, [metric for metric in METRICS if metric not in found]


def read_rows(text: str) -> Iterator[dict[str, float | str]]:
    """The launches of `ncu --csv --page raw`: a line of names, one of units, one a launch.

    Times in milliseconds and sizes in bytes, whatever unit ncu chose; other values as they are.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, units, *rows = csv.reader(lines)
    for row in rows:
        found: dict[str, float | str] = {}
        for name, unit, value in zip(names, units, row, strict=True):
            try:
                found[name] = float(value.replace(",", "")) * _UNITS.get(unit, 1.0)
            except ValueError:
                found[name] = value
        yield found


def counters(launch: Launch, row: dict[str, float | str]) -> Counters:
    """Of one line; SystemExit where it belongs to another kernel."""
    function = str(row["Kernel Name"])
    if not function.startswith(FUNCTIONS[launch.kernel]):
        raise SystemExit(f"counters of {function} where {launch.kernel} was launched")

    def value(metric: str) -> float | None:
        found = row.get(metric)
        return found if isinstance(found, float) else None

    duration = value(DURATION)
    if not duration:
        raise SystemExit(f"no {DURATION} for {launch.kernel}: were counters readable?")
    active, elapsed = value(ACTIVE), value(ELAPSED)
    read, written = value(DRAM_READ), value(DRAM_WRITE)
    return Counters(
        launch=launch,
        duration_ms=duration,
        tflops=launch.operations / duration / 1e9,
        tensor_pipe=value(TENSOR),
        wgmma=value(WGMMA),
        exp_pipe=value(XU),
        issue_slots=value(ISSUE),
        sm_active=None if active is None or not elapsed else 100 * active / elapsed,
        occupancy=value(OCCUPANCY),
        registers=value(REGISTERS),
        dram_bytes=None if read is None or written is None else read + written,
        dram=value(DRAM),
        l2_bytes=value(L2_BYTES),
        l2=value(L2),
        l2_hits=value(L2_HITS),
        stalls=_stalls({reason: value(stall(reason)) or 0.0 for reason in REASONS}),
    )


def _stalls(cycles: dict[str, float]) -> tuple[tuple[str, float], ...]:
    whole = sum(cycles.values())
    reasons = [(name, 100 * n / whole) for name, n in cycles.items() if n and name != "selected"]
    return tuple(sorted(reasons, key=lambda each: -each[1]))


def markdown(found: list[Counters]) -> str:
    """One line a launch."""
    rows = []
    for each in found:
        launch = each.launch
        rows.append(
            (
                f"{launch.kernel}, {launch.length // 1024}k, {launch.head_dim}",
                f"{100 * launch.density:.0f} %",
                f"{each.duration_ms:.3f}",
                f"{each.tflops:.0f}",
                _percent(each.tensor_pipe),
                _percent(each.exp_pipe),
                _percent(each.issue_slots),
                _percent(each.sm_active),
                _percent(each.occupancy),
                _rate(each.dram_bytes, each.duration_ms),
                _percent(each.dram),
                _rate(each.l2_bytes, each.duration_ms),
                _percent(each.l2_hits),
                ", ".join(f"{name} {share:.0f} %" for name, share in each.stalls[:3]),
            )
        )
    columns = (
        "kernel, tokens, head_dim", "density", "ms", "TFLOP/s", "tensor pipe", "exp pipe",
        "issue slots", "SMs active", "occupancy", "DRAM TB/s", "of peak", "L2 TB/s", "L2 hits",
        "warps wait for",
    )  # fmt: skip
    return table(columns, rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def _rate(size: float | None, milliseconds: float) -> str:
    return "-" if size is None else f"{size / milliseconds / 1e9:.2f}"


def write_table(folder: Path) -> str:
    """counters.json and counters.md of a folder; SystemExit where the launches do not match."""
    document = json.loads((folder / "launches.json").read_text())
    launches = [Launch(**launch) for launch in document["launches"]]
    rows = list(read_rows((folder / "counters.csv").read_text()))
    if len(rows) != len(launches):
        raise SystemExit(f"{len(launches)} launches were made, ncu profiled {len(rows)}")
    found = [counters(launch, row) for launch, row in zip(launches, rows, strict=True)]
    document["launches"] = [dataclasses.asdict(each) for each in found]
    (folder / "counters.json").write_text(json.dumps(document, indent=1) + "\n")
    text = markdown(found)
    (folder / "counters.md").write_text(text)
    return text


def main() -> None:
    action, path = sys.argv[1], Path(sys.argv[2])
    if action == "metrics":
        found, missing = chosen_metrics(path.read_text())
        for metric in missing:
            print(f"this chip has no {metric}", file=sys.stderr)
        print(",".join(found))
    else:
        print(write_table(path))


if __name__ == "__main__":
    main()
