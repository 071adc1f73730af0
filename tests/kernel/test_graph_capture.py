"""On a GPU: layers captured in a CUDA graph equal eager ones, selection equals its definition, and
no prompt length compiles anything new.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


decision_check = load("decision_check")
kc, sc = decision_check.kc, decision_check.sc


@pytest.fixture
def poisoned(monkeypatch):
    """Buffers start as NaN or wild numbers, so that an element which no kernel writes shows."""
    monkeypatch.setattr(torch, "empty", torch.empty)
    decision_check.poison()


@pytest.mark.parametrize("q_len", [1500, 700], ids="q{}".format)
def test_a_replayed_graph_equals_an_eager_forward(q_len):
    shape = kc.Shape(
        q_len=q_len, kv_len=1500, heads=6, kv_heads=2, block=128, dtype="bfloat16", batch=2
    )
    results = list(decision_check.check_graphs(shape))
    assert len(results) == 2 * len(decision_check.POINTS)
    assert not [line for line in results if not line[2]]


def test_fifty_lengths_compile_what_the_first_one_does():
    results = list(decision_check.check_lengths(50))
    assert results
    assert not [line for line in results if not line[2]]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", sc.SMALL + sc.LARGE, ids=sc.Case.label)
def test_selection_equals_its_definition(case):
    results = list(decision_check.check_selections((case,)))
    assert results
    assert not [line for line in results if not line[2]]


@pytest.mark.usefixtures("poisoned")
def test_the_last_block_estimate_equals_float64():
    results = list(decision_check.check_estimates())
    assert results
    assert not [line for line in results if not line[2]]
