"""TFLOP/s on blocks against density, a panel for each length, from `sp-run bench kernel` JSON.

python benchmarks/plot_kernel.py OUT.png kernel-32k.json kernel-128k.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette, which colour-blind readers tell apart; markers differ as well.
STYLES = {
    "triton": ("this kernel", "#000000", "o", "-"),
    "triton-portable": ("this, portable", "#999999", "o", "--"),
    "fa4-sparse": ("FlashAttention-4, block-sparse", "#0072B2", "s", "-"),
    "fa4": ("FlashAttention-4, dense", "#56B4E9", "D", ""),
    "flex": ("FlexAttention", "#009E73", "^", "-"),
    "flexprefill": ("FlexPrefill's schedule", "#D55E00", "v", "-"),
    "cudnn": ("cuDNN, dense", "#CC79A7", "P", ""),
    "fa2": ("FlashAttention-2, dense", "#E69F00", "X", ""),
}


def measured(paths: Sequence[Path], mask: str) -> list[dict[str, Any]]:
    """Rows with a figure, of one kind of mask."""
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    return [row for row in rows if row["mask"] == mask and row["tflops"] is not None]


def panel(axes: Any, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Medians with bars from the 20th to the 80th percentile."""
    for kernel, (label, colour, marker, line) in STYLES.items():
        own = sorted((r for r in rows if r["kernel"] == kernel), key=lambda r: r["density"])
        if not own:
            continue
        x = [100 * row["density"] for row in own]
        y = [row["tflops"] for row in own]
        # A longer time is a lower rate: the 80th percentile of time is the lower end.
        low = [r["tflops"] * (1 - r["times"]["median_ms"] / r["times"]["p80_ms"]) for r in own]
        high = [r["tflops"] * (r["times"]["median_ms"] / r["times"]["p20_ms"] - 1) for r in own]
        axes.errorbar(
            x, y, yerr=[[max(0, v) for v in low], [max(0, v) for v in high]], label=label,
            color=colour, marker=marker, linestyle=line or "none", markersize=6, capsize=2,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = sorted({round(100 * row["density"], 1) for row in rows})
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("density: blocks computed / causal blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--mask", default="random")
    args = parser.parse_args()
    rows = measured(args.documents, args.mask)
    if not rows:
        parser.error(f"no {args.mask} rows with figures")
    keys = sorted({(row["shape"]["head_dim"], row["shape"]["length"]) for row in rows})
    columns = 2 * min(2, len(keys))
    lines = -(-len(STYLES) // columns)
    figure, panels = plt.subplots(
        1, len(keys), figsize=(1.4 + 4.6 * len(keys), 4 + 0.25 * lines), sharey=True, squeeze=False
    )
    for axes, (dim, length) in zip(panels[0], keys, strict=True):
        own = [r for r in rows if (r["shape"]["head_dim"], r["shape"]["length"]) == (dim, length)]
        heads = f"{own[0]['shape']['heads']} x {own[0]['shape']['kv_heads']} heads of {dim}"
        panel(axes, own, f"{length:,} tokens, {heads}")
    panels[0][0].set_ylabel("TFLOP/s on computed blocks")
    found = {text: handle for axes in panels[0] for handle, text in _legend(axes)}
    figure.legend(
        found.values(), found, loc="lower center", ncols=columns, frameon=False, fontsize=9
    )
    figure.suptitle(f"{rows[0]['environment']['device']}, {rows[0]['shape']['dtype']}", fontsize=10)
    figure.tight_layout(rect=(0, 0.02 + 0.045 * lines, 1, 1))
    figure.savefig(args.target, dpi=150)


def _legend(axes: Any) -> list[tuple[Any, str]]:
    handles, labels = axes.get_legend_handles_labels()
    return list(zip(handles, labels, strict=True))


if __name__ == "__main__":
    main()
