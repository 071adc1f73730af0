"""Evaluations of a tiny model: results, resumption, growth, and what is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sp_profile.eval import forward, measure_cell, runner
from sp_profile.eval.cells import CellResult
from sp_profile.eval.folder import Evaluation, read_evaluation
from sp_profile.eval.prepare import PromptUnit, check_disjoint, read_prompt_file
from sp_profile.eval.request import EvalRequest
from sp_profile.eval.results import make_summary, store_results
from sp_profile.eval.runner import evaluate
from sp_profile.tasks import TaskData
from sp_runtime.errors import CorruptArtefactError, ResourceError, UsageError

STREAMING = "streaming:window=64:min_tokens=256"
METHODS = f"vertical_slash:gamma=0.5:min_budget=64:min_tokens=256,{STREAMING}@2"
REQUEST: dict[str, Any] = {
    "methods": METHODS,
    "tasks": "ppl,niah_single_1",
    "lengths": (512,),
    "samples": 3,
    "device": "cpu",
    "block_size": 64,
    "include_text": True,
}


def run(model: Path, folder: Path, **changes: Any) -> Evaluation:
    request = EvalRequest(model=str(model), **{**REQUEST, **changes})
    outcome = evaluate(request, folder, lambda what, done, total: None)
    assert outcome.evaluation is not None
    return outcome.evaluation


def without_times(evaluation: Evaluation) -> list[CellResult]:
    return [
        dataclasses.replace(
            cell, rows=tuple(dataclasses.replace(row, timing=None) for row in cell.rows)
        )
        for cell in evaluation.cells
    ]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "out"
    run(tiny_model, folder)
    return folder


def test_every_method_sees_the_same_prompts(finished: Path) -> None:
    evaluation = read_evaluation(finished)
    assert (len(evaluation.cells), evaluation.missing) == (6, 0)
    for task in ("ppl", "niah_single_1"):
        hashes = {
            cell.method: [row.prompt_sha256 for row in cell.rows]
            for cell in evaluation.cells
            if cell.task == task
        }
        dense = hashes.pop("dense")
        assert len(set(dense)) == 3
        assert all(found == dense[: len(found)] for found in hashes.values())
        assert sorted(map(len, hashes.values())) == [2, 3]


def test_rows_say_what_was_computed(finished: Path) -> None:
    cells = {
        (cell.method.split(":")[0], cell.task): cell for cell in read_evaluation(finished).cells
    }
    for (method, task), cell in cells.items():
        for row in cell.rows:
            assert row.timing is not None
            assert row.timing.attention <= row.timing.ttft
            assert (row.timing.index is None) == (method == "dense")
            assert (row.density == 1) == (method == "dense")
            assert (row.text is None) == (task == "ppl")
            assert row.score is not None
            assert row.score < 0 if task == "ppl" else row.score >= 0
        counted = [sum(counts) for counts in zip(*(b.counts for b in cell.branches), strict=True)]
        # Eight heads in two layers; the plain model tells nothing.
        assert counted == ([] if method == "dense" else [len(cell.rows)] * 8)
        assert method == "dense" or method in {branch.name for branch in cell.branches}
    losses = {m: [row.score for row in cells[m, "ppl"].rows] for m, t in cells if t == "ppl"}
    assert losses["dense"] != losses["vertical_slash"]


def test_the_loss_is_the_models_own(finished: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompts = read_prompt_file(finished, PromptUnit(task="ppl", length=512, samples=3)).prompts
    cell = next(
        c for c in read_evaluation(finished).cells if (c.method, c.task) == ("dense", "ppl")
    )
    for prompt, row in zip(prompts, cell.rows, strict=True):
        ids = torch.as_tensor(prompt.token_ids).long()[None]
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert row.score == pytest.approx(-loss, rel=1e-5)


def test_results_are_rebuilt_from_the_folder(finished: Path) -> None:
    import pyarrow.parquet as pq

    summary = make_summary(finished)
    store_results(finished, summary)
    table = pq.read_table(finished / "results.parquet")
    assert table.num_rows == 2 * (3 + 3 + 2)
    assert table.schema.metadata[b"sp.schema"] == b"sp.eval_rows/1"
    for cell in summary.overview.cells:
        scores = [
            row["score"]
            for row in table.to_pylist()
            if (row["method"], row["task"]) == (cell.method, cell.task)
        ]
        assert cell.score.mean == pytest.approx(np.mean(scores))
        assert cell.samples == len(scores)


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    finished: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = measure_cell.CellMeasurer.measure
    calls = []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(measure_cell.CellMeasurer, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path)
    assert len(read_evaluation(tmp_path).cells) == 2
    resumed = run(tiny_model, tmp_path)
    assert len(calls) == 3 + 4
    assert without_times(resumed) == without_times(read_evaluation(finished))


def test_growth_keeps_what_is_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"methods": STREAMING, "tasks": "ppl", "samples": 1}
    before = run(tiny_model, tmp_path, **small)
    with pytest.raises(UsageError, match="other methods"):
        run(tiny_model, tmp_path, **{**small, "methods": METHODS})
    with pytest.raises(UsageError, match="seed"):
        run(tiny_model, tmp_path, **small, seed=1, extend=True)
    after = run(tiny_model, tmp_path, **{**small, "samples": 2}, extend=True)
    assert set(without_times(before)) < set(without_times(after))
    assert {len(cell.rows) for cell in after.cells} == {1, 2}
    summary = make_summary(tmp_path)
    assert {cell.samples for cell in summary.overview.cells} == {2}


def test_a_prepared_folder_is_evaluated_later_and_without_the_data(
    tiny_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"word{n * n % 97}" for n in range(3000)))
    options = {"methods": "dense", "tasks": "ppl", "samples": 1}
    folder = tmp_path / "out"
    request = EvalRequest(
        model=str(tiny_model),
        **{**REQUEST, **options},
        data=TaskData(text=text),
        prepare_only=True,
    )
    assert evaluate(request, folder, lambda what, done, total: None).evaluation is None
    text.unlink()
    evaluation = run(tiny_model, folder, **options)
    assert (len(evaluation.cells), evaluation.missing) == (1, 0)


def test_times_can_be_taken_afterwards(finished: Path, tiny_model: Path) -> None:
    run(tiny_model, finished, tasks="ppl", methods=STREAMING, timing_pass=1)
    seconds = {
        (cell.method.split(":")[0], cell.task): cell.seconds
        for cell in make_summary(finished).overview.cells
    }
    counts = {key: value.prompts for key, value in seconds.items() if value is not None}
    assert counts["streaming", "ppl"] == 1
    assert counts["vertical_slash", "ppl"] == 3
    with pytest.raises(UsageError, match="no hip"):
        run(tiny_model, finished, methods="hip", timing_pass=1)


def test_no_cell_begins_after_the_time_is_up(tiny_model: Path, tmp_path: Path) -> None:
    request = EvalRequest(model=str(tiny_model), **REQUEST, max_seconds=0.0)
    outcome = evaluate(request, tmp_path, lambda what, done, total: None)
    assert outcome.stopped
    assert outcome.evaluation is not None
    assert outcome.evaluation.missing == 6


def test_logits_that_are_not_finite_fail_their_cell_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = forward.Forward.prefill

    def poisoned(self: Any, point: Any, ids: Any, **options: Any) -> Any:
        if point.method == "streaming":
            monkeypatch.setattr(self, "head", lambda hidden: hidden * float("nan"))
        return prefill(self, point, ids, **options)

    monkeypatch.setattr(forward.Forward, "prefill", poisoned)
    options = {"methods": STREAMING, "tasks": "niah_single_1", "samples": 1}
    evaluation = run(tiny_model, tmp_path, **options)
    assert [cell.method for cell in evaluation.cells] == ["dense"]
    ((cell, reason),) = evaluation.failed
    assert cell.method.point.method == "streaming"
    assert "not finite" in reason
    assert make_summary(tmp_path).overview.failed[0].reason == reason


def test_out_of_memory_names_the_cell_and_keeps_the_rest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure_cell, "decode_greedily", exhausted)
    with pytest.raises(ResourceError, match="dense on niah_single_1 at 512") as caught:
        run(tiny_model, tmp_path, methods="dense", samples=1)
    assert "kept" in (caught.value.hint or "")
    assert [cell.task for cell in read_evaluation(tmp_path).cells] == ["ppl"]


def test_memory_that_runs_out_once_is_tried_again_in_smaller_batches(
    tiny_model: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = measure_cell.decode_greedily
    batches = []

    def scarce(decoder: Any, head: Any, caches: Any, *arguments: Any, **options: Any) -> Any:
        batches.append(len(caches))
        if len(caches) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(decoder, head, caches, *arguments, **options)

    def batch(self: Any, done: Any, device: Any) -> int:
        return 3 if self._cache_share == measure_cell._CACHE_SHARE else 1

    monkeypatch.setattr(measure_cell, "decode_greedily", scarce)
    monkeypatch.setattr(measure_cell.CellMeasurer, "_batch", batch)
    evaluation = run(tiny_model, tmp_path, methods="dense")
    assert batches == [3, 1, 1, 1]
    known = {(cell.method, cell.task): cell for cell in without_times(read_evaluation(finished))}
    for cell in without_times(evaluation):
        assert cell.rows == known[cell.method, cell.task].rows


def test_own_prompts_are_compared_with_dense(tiny_model: Path, tmp_path: Path) -> None:
    for number in range(2):
        text = " ".join(f"line {n} is {n * n % (50 + number)}" for n in range(60))
        (tmp_path / f"{number}.txt").write_text(text)
    data = TaskData(prompts=tuple(str(tmp_path / f"{number}.txt") for number in range(2)))
    options = {"tasks": "agreement", "lengths": (2048,), "data": data}
    cells = {c.method.split(":")[0]: c for c in run(tiny_model, tmp_path / "out", **options).cells}
    for row in cells["dense"].rows:
        assert (row.score, row.equal) == (1, 1)
        assert row.kl == pytest.approx(0, abs=1e-5)
    for row in cells["vertical_slash"].rows:
        assert row.kl is not None
        assert row.kl > 1e-5
        assert row.score is not None
        assert 0 < row.score < 1
    assert make_summary(tmp_path / "out").overview.lengths == ()


def test_prompts_that_a_profile_was_made_from_are_refused(finished: Path) -> None:
    config = read_evaluation(finished).config
    prompts = read_prompt_file(finished, PromptUnit(task="ppl", length=512, samples=3)).prompts
    check_disjoint(finished, config, {"0" * 64})
    with pytest.raises(UsageError, match="prompt 1 of ppl"):
        check_disjoint(finished, config, {prompts[1].sha256})


def test_a_length_beyond_the_context_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        run(tiny_model, tmp_path, lengths=(8192,))
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_damage_is_named(finished: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    cell = next((folder / "cells").iterdir())
    cell.write_bytes(cell.read_bytes().replace(b"density", b"Density"))
    with pytest.raises(CorruptArtefactError, match=cell.name):
        read_evaluation(folder)
    prompts = next((folder / "prompts" / "files").glob("ppl*"))
    data = bytearray(prompts.read_bytes())
    data[len(data) // 2] ^= 0xFF
    prompts.write_bytes(data)
    with pytest.raises(CorruptArtefactError, match="ppl-512-3"):
        read_prompt_file(folder, PromptUnit(task="ppl", length=512, samples=3))


def test_a_method_that_needs_a_profile_is_refused_before_the_model_loads(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "load_model", None)
    with pytest.raises(UsageError, match="profile"):
        run(tiny_model, tmp_path, methods="moa")
