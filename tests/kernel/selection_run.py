"""Runs every selection kernel under Triton's interpreter and prints one JSON line a check.

    TRITON_INTERPRET=1 python tests/kernel/selection_run.py

Started by test_selection_interpreted.py; the tiles are small, so that short rows take several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import selection_cases as sc
from interpreted_run import poison

from sp_runtime.kernels.triton_backend import TritonKernels
from sp_runtime.kernels.triton_map import MapConfig
from sp_runtime.kernels.triton_select import SelectConfig

CASES = (
    sc.Case(q_len=1, kv_len=1, block=64, heads=2),
    sc.Case(q_len=190, kv_len=190, block=64, batch=2),
    sc.Case(q_len=70, kv_len=1100, block=128),
)


class SmallTiles(TritonKernels):
    select = SelectConfig(tokens=256, bins=8, row=8)
    map_search = MapConfig(part=16, parts=6, compared=8, added=2, gathered=8, searched=16)


def main() -> None:
    torch.set_num_threads(1)
    poison()
    kernels = SmallTiles(capability=(8, 0), hopper=False)
    for case in CASES:
        for name, passed in sc.check_selection(kernels, case, "cpu", brief=True):
            print(json.dumps({"check": name, "case": case.label(), "passed": passed}), flush=True)


if __name__ == "__main__":
    main()
