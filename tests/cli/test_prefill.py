"""The prefill command on a tiny model: results, files, chunks, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
DENSE_ALIKE = pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def compared(command: Command, tiny_model: Path, tiny_profile: Path, prompt: Path) -> Any:
    """Every block on in chunks, compared with dense: (document, rows of the stored file)."""
    file = prompt.with_name("results.jsonl")
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--profile", tiny_profile, prompt),
        *("--method", "vertical_slash", "--min-budget", "4096", "--chunk-size", "500"),
        *("--min-tokens", "600", "--compare", "dense", "--generate", "4"),
        *("--include-text", "--json", "-o", file),
    )
    assert done.code == 0, done.err
    assert done.err == ""
    return done.document(), [json.loads(line) for line in file.read_text().splitlines()]


def test_document_and_file_say_the_same(compared: Any) -> None:
    document, rows = compared
    assert document["schema"] == "sp.prefill"
    assert document["errors"] == []
    assert (document["revision"], document["trust_remote_code"]) == (None, False)
    assert len(document["results"]) == len(rows) == 1
    assert rows[0]["schema"] == "sp.prefill_result"
    for name, value in document["results"][0].items():
        assert rows[0][name] == value
    assert rows[0]["method"] == "vertical_slash"
    assert json.loads(rows[0]["point"])["min_budget"] == 4096
    config = json.loads(rows[0]["config"])
    assert document["config"] == config
    assert (config["generate"], config["chunk_size"], config["compare_dense"]) == (4, 500, True)


def test_every_block_on_is_dense_attention(compared: Any) -> None:
    result = compared[0]["results"][0]
    agreement = result["agreement"]
    assert agreement["positions"] == agreement["of_positions"] == result["tokens"]
    assert agreement["kl_mean"] == DENSE_ALIKE
    assert agreement["kl_max"] == DENSE_ALIKE
    assert agreement["hidden_rel"] == DENSE_ALIKE
    assert agreement["top1"] == 1
    assert agreement["generated_equal"] is True
    assert result["text"] == result["dense_text"]
    assert 1 <= len(result["generated"]) == result["generated_tokens"] <= 4


def test_chunks_and_branches_are_counted(compared: Any) -> None:
    result = compared[0]["results"][0]
    chunks = -(-result["tokens"] // 500)
    assert chunks == 3
    sparsity = result["sparsity"]
    # The first chunk ends under min_tokens; the decoding after the prompt counts nowhere.
    assert sparsity["path"] == "mixed"
    assert sparsity["reasons"] == ["short: 500 < min_tokens 600"]
    assert sparsity["density"] == pytest.approx(1)
    assert 0 < sparsity["estimation"] < 1
    assert sparsity["branches"]["dense"] == 2 * 4
    assert sparsity["branches"]["vertical_slash"] == 2 * 4 * 2
    assert [layer["layer"] for layer in sparsity["layers"]] == [0, 1]


def test_times_are_of_one_run(compared: Any) -> None:
    result = compared[0]["results"][0]
    for timing in (result["timing"], result["dense_timing"]):
        assert 0 < timing["attention_seconds"] < timing["ttft_seconds"]
        assert timing["runs_seconds"] == [timing["ttft_seconds"]]
        assert timing["warmup_runs"] == 0
        assert timing["peak_memory_bytes"] is None
    ratio = result["dense_timing"]["ttft_seconds"] / result["timing"]["ttft_seconds"]
    assert result["speedup"] == pytest.approx(ratio)


def test_plan_stored_as_parquet_with_tables_for_people(
    command: Command, tiny_model: Path, tiny_profile: Path, prompt: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    file = tmp_path / "results.parquet"
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--profile", tiny_profile, prompt),
        *("--compare", "dense", "--agreement-sample", "50", "--gamma", "0.5", "-v", "-o", file),
        *("--audit", "0.5"),
    )
    assert done.code == 0, done.err
    assert " heads, recall " in done.out
    assert "--gamma: no effect under rule plan" in done.err
    assert max(len(line) for line in done.out.splitlines()) <= 80
    assert "\x1b" not in done.out
    assert "prompt  " in done.out
    assert any(kind in done.out for kind in ("v-slash", "q-aware", "sampled", "shared"))
    assert "top-1" in done.out
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 1
    assert (
        rows[0]["profile_id"]
        == json.loads((tiny_profile / "profile.json").read_text())["profile_id"]
    )
    assert rows[0]["agreement"]["positions"] == 50
    assert rows[0]["agreement"]["of_positions"] == rows[0]["tokens"]
    assert len(rows[0]["sparsity"]["layers"]) == 2
    assert 0 < len(rows[0]["sparsity"]["audits"]) < 8
    assert 0 < rows[0]["sparsity"]["density"] <= 1


def test_short_prompt_from_standard_input_is_dense_and_says_so(
    command: Command, tiny_model: Path, tiny_profile: Path
) -> None:
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--profile", tiny_profile, "-"),
        *("--no-chat-template", "--json", "--repeat", "2", "--warmup", "1"),
        stdin=b"a short prompt",
    )
    assert done.code == 0, done.err
    result = done.document()["results"][0]
    assert result["tokens"] == 14
    assert result["sparsity"]["path"] == "dense"
    assert result["sparsity"]["reasons"] == ["short: 14 < min_tokens 256"]
    assert result["sparsity"]["branches"]["dense"] == 8
    assert len(result["timing"]["runs_seconds"]) == 2
    assert result["timing"]["warmup_runs"] == 1


def test_show_as_tables_and_as_document(command: Command, tiny_profile: Path) -> None:
    done = command("sp-profile", "show", tiny_profile)
    assert done.code == 0, done.err
    assert max(len(line) for line in done.out.splitlines()) <= 80
    assert "\x1b" not in done.out
    for word in ("profile", "clusters", "plan", "predicted cost", "operating points"):
        assert word in done.out
    document = command("sp-profile", "show", tiny_profile / "profile.json", "--json").document()
    stored = json.loads((tiny_profile / "profile.json").read_text())
    assert document["profile"] == stored
    assert document["summary"]["heads"] == len(stored["plan"]["heads"]) == 8
    assert sum(document["summary"]["assignments"].values()) == 8
