"""The ratios that the kernels are judged by, from the JSON of `kernel_evidence.sh`.

    python benchmarks/kernel_ratios.py FOLDER

Every ratio is of two medians of one run on one machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows_of(folder: Path, name: str, part: str = "rows") -> list[Row]:
    """The rows of FOLDER/name.json, none where that step did not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()).get(part, []) if path.exists() else []


def rate(rows: list[Row], kernel: str, length: int, density: float, mask: str = "random") -> float:
    """TFLOP/s of a kernel, NaN where it was not measured."""
    for row in rows:
        same = row["kernel"] == kernel and row["mask"] == mask and row["shape"]["length"] == length
        if same and abs(row["density"] - density) < 0.01 and row["tflops"] is not None:
            return float(row["tflops"])
    return float("nan")


def against(rows: list[Row], peer: str, length: int, densities: tuple[float, ...]) -> Iterator[str]:
    for density in densities:
        own, other = rate(rows, "triton", length, density), rate(rows, peer, length, density)
        if own != own or other != other:  # one of the two was not measured
            continue
        place = f"{length // 1024}k {100 * density:g} %"
        yield f"  {place:<10}{own:7.0f} / {other:4.0f} TFLOP/s {own / other:6.2f}"


def timer(row: Row) -> str:
    """How a row says that it was timed."""
    return str(row.get("environment", {}).get("timer", ""))


def kernel_lines(folder: Path) -> Iterator[str]:
    short, long = rows_of(folder, "kernel-32k"), rows_of(folder, "kernel-128k")
    narrow = rows_of(folder, "kernel-d64")
    sparse = (0.25, 0.1, 0.05)
    yield "against FlashAttention-4 block-sparse (must 0.85, goal above 1.0)"
    yield from against(short, "fa4-sparse", 32768, sparse)
    yield from against(long, "fa4-sparse", 131072, sparse)
    yield "against FlexAttention (must 1.3, goal 1.5)"
    yield from against(short, "flex", 32768, sparse)
    yield "against FlexPrefill's schedule (must 1.8, goal 2.1)"
    yield from against(short, "flexprefill", 32768, sparse)
    yield from against(long, "flexprefill", 131072, sparse)
    yield "all blocks on, against dense attention (must 0.90, goal 1.0)"
    for peer in ("fa4", "cudnn"):
        yield f"  {peer}"
        yield from against(short, peer, 32768, (1.0,))
        yield from against(long, peer, 131072, (1.0,))
    yield "head_dim 64 against FlexAttention (must 1.2, goal 1.5)"
    yield from against(narrow, "flex", 32768, (1.0, 0.25, 0.05))
    for row in rows_of(folder, "kernel-32k", "mass") + rows_of(folder, "kernel-128k", "mass"):
        ratio = "wrong" if row["ratio"] is None else f"{row['ratio']:.2f}"
        yield f"block mass of a head / its dense attention, {row['shape']['length']}: {ratio}"
        yield "  (at most 0.6, goal 0.5)"


def mask_lines(folder: Path) -> Iterator[str]:
    rows = [row for row in rows_of(folder, "masks") if row["times"] is not None]
    for length in sorted({row["shape"]["length"] for row in rows}):
        found = [row for row in rows if row["shape"]["length"] == length]
        own = {row["mask"]: row for row in found if row["kernel"] == "triton"}
        if "random" in own:
            base = own["random"]["tflops"]
            yield f"masks at {length} tokens: density, rate, and over that of random ones"
            for mask, row in own.items():
                share = row["tflops"] / base
                yield f"  {mask:<12}{row['density']:.3f}{row['tflops']:8.0f} TFLOP/s {share:6.2f}"
            yield "  (shared and neighbours: must 1.15, goal 1.4)"
        if {"pivot", "pivot-even"} <= own.keys():
            ratio = own["pivot"]["times"]["median_ms"] / own["pivot-even"]["times"]["median_ms"]
            yield f"  pivot / as many blocks spread evenly: {ratio:.3f} (at most 1.10, goal 1.03)"


def device_share(row: Row) -> str:
    """Estimate, decision and index in percent of a layer's device time, where it was measured."""
    parts = row.get("device_parts")
    if parts is None:
        return "-"
    around = sum(parts[f"{name}_ms"] for name in ("estimate", "decision", "index"))
    return f"{100 * around / sum(parts.values()):.0f} %"


def layer_lines(folder: Path) -> Iterator[str]:
    rows = rows_of(folder, "layer")
    if rows:
        yield "layer: tokens, density, ms, share of estimate + decision + index, the same share of"
        yield "  the device alone, graph ms (device alone), speed-up"
    for row in rows:
        if row["times"] is None:
            yield f"  {row['method']}: {row['problem']}"
            continue
        graph = "-" if row["graph_ms"] is None else f"{row['graph_ms']:.3f}"
        yield (
            f"  {row['method']:<24}{row['shape']['length']:>7}{row['density']:7.3f}"
            f"{row['times']['median_ms']:9.3f}{100 * row['overhead']:5.0f} %"
            f"{device_share(row):>7}{graph:>9}{row['speedup']:7.2f}"
        )
    for each in rows_of(folder, "layer", "crossovers"):
        yield f"  crossover {each['method']}: {each['tokens']} (must 16384, goal 8192)"


def model_lines(folder: Path) -> Iterator[str]:
    rows = rows_of(folder, "model")
    if rows:
        yield "model: tokens, density, TTFT ms = attention + index + MLP + rest, speed-up, GiB"
    for row in rows:
        parts = row["parts"]
        split = " ".join(
            f"{parts[f'{name}_ms']:6.0f}" for name in ("attention", "index", "mlp", "rest")
        )
        speed = "     -" if row["speedup"] is None else f"{row['speedup']:6.2f}"
        peak = row["peak_bytes"] or 0
        yield (
            f"  {row['method']:<24}{row['length']:>7}{row['density']:6.3f}"
            f"{row['ttft']['median_ms']:7.0f} {split}{speed}{peak / 2**30:6.1f}"
        )


def main() -> None:
    folder = Path(sys.argv[1])
    for lines in (kernel_lines, mask_lines, layer_lines, model_lines):
        for line in lines(folder):
            print(line)
    for name in ("kernel-32k", "kernel-128k", "kernel-d64", "masks"):
        held_up = [r["kernel"] for r in rows_of(folder, name) if "held up" in timer(r)]
        if held_up:
            print(f"{name}: times hold the host's: {', '.join(dict.fromkeys(held_up))}")
        bad = [row for row in rows_of(folder, name) if row["status"] != "ok"]
        for line in dict.fromkeys(
            f"{r['kernel']}: {r['status']}: {r['problem'][:200]}" for r in bad
        ):
            print(f"{name}: {line}")


if __name__ == "__main__":
    main()
