"""Recall passes over an evaluation of a tiny model: what they measure; nothing else moves."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from sp_profile.eval import measure_cell
from sp_profile.eval.cells import CellResult, HeadRecall
from sp_profile.eval.folder import Evaluation, read_evaluation
from sp_profile.eval.prepare import PromptUnit, read_prompt_file
from sp_profile.eval.recall_store import read_recalls
from sp_profile.eval.recalls import recall_cells
from sp_profile.eval.request import EvalRequest
from sp_profile.eval.results import EvalSummary, make_summary, read_summary, store_results
from sp_profile.eval.runner import evaluate
from sp_runtime.errors import CorruptArtefactError, UsageError

SLASH = "vertical_slash:gamma=0.5:min_budget=64:min_tokens=256"
STREAMING = "streaming:min_tokens=256:window=64"
ORACLE = "sampled:gamma=0.5:min_tokens=256:stride=1"
SHORT = "streaming:min_tokens=2048:window=128"
REQUEST: dict[str, Any] = {
    "methods": f"{SLASH},{STREAMING}",
    "tasks": "ppl,niah_single_1",
    "lengths": (512,),
    "samples": 3,
    "device": "cpu",
    "block_size": 64,
}


def run(model: Path, folder: Path, **changes: Any) -> None:
    request = EvalRequest(model=str(model), **{**REQUEST, **changes})
    evaluate(request, folder, lambda what, done, total: None)


def audited(folder: Path) -> Evaluation:
    return read_evaluation(folder / "recalls")


def by_method(evaluation: Evaluation, task: str) -> dict[str, CellResult]:
    return {cell.method: cell for cell in evaluation.cells if cell.task == task}


def places(recalls: tuple[HeadRecall, ...]) -> list[tuple[int, int]]:
    return [(one.layer, one.head) for one in recalls]


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "out"
    run(tiny_model, folder)
    return folder


@pytest.fixture(scope="module")
def finished(scored: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation with a recall pass of two prompts a task, of a method more than it scored."""
    folder = tmp_path_factory.mktemp("recalls") / "out"
    shutil.copytree(scored, folder)
    methods = f"{SLASH},{STREAMING},{ORACLE},{SHORT}"
    run(tiny_model, folder, methods=methods, recall_pass=2, audit=0.5)
    store_results(folder, make_summary(folder))
    return folder


@pytest.fixture(scope="module")
def summary(finished: Path) -> EvalSummary:
    return read_summary(finished / "summary.json")


def test_the_scores_stay_as_they_are(scored: Path, finished: Path) -> None:
    assert dataclasses.replace(read_evaluation(finished), path=scored) == read_evaluation(scored)
    before, after = (make_summary(folder) for folder in (scored, finished))
    assert before.recalls is None
    assert (before.overview, before.equal_density) == (after.overview, after.equal_density)


def test_blocks_are_those_of_the_scoring_run(finished: Path) -> None:
    for task in ("ppl", "niah_single_1"):
        scores = by_method(read_evaluation(finished), task)
        recalls = by_method(audited(finished), task)
        assert set(recalls) == {SLASH, STREAMING, ORACLE, SHORT}
        for method in (SLASH, STREAMING):
            rows = scores[method].rows[:2]
            assert [row.density for row in recalls[method].rows] == [row.density for row in rows]
            assert all(0 < row.density < 1 for row in rows)
            assert [row.estimation for row in recalls[method].rows] == [
                row.estimation for row in rows
            ]
            assert all(row.score is None for row in recalls[method].rows)


def test_heads_follow_from_the_prompt_and_not_from_the_method(finished: Path) -> None:
    chosen = []
    for task in ("ppl", "niah_single_1"):
        cells = by_method(audited(finished), task)
        for slash, streaming, oracle in zip(
            *(cells[method].rows for method in (SLASH, STREAMING, ORACLE)), strict=True
        ):
            assert places(slash.recalls) == places(streaming.recalls) == places(oracle.recalls)
            assert {one.branch for one in streaming.recalls} <= {"streaming"}
            assert slash.recalls != streaming.recalls
            chosen.append(places(slash.recalls))
    assert len({tuple(one) for one in chosen}) > 1
    assert 0 < sum(map(len, chosen)) < 4 * 8


def test_recall_is_that_of_the_models_own_attention(finished: Path, tiny_model: Path) -> None:
    """In the first layer, whose inputs no method changes; streaming: 128 sinks, 64 near keys."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    prompts = read_prompt_file(finished, PromptUnit(task="ppl", length=512, samples=3)).prompts
    cell = by_method(audited(finished), "ppl")[STREAMING]
    seen = 0
    for prompt, row in zip(prompts, cell.rows, strict=False):
        ids = torch.as_tensor(prompt.token_ids).long()[None]
        with torch.no_grad():
            attention = model(input_ids=ids, output_attentions=True).attentions[0][0].double()
        count = ids.shape[1]
        blocks = torch.arange(count) // 64
        behind = blocks[:, None] - blocks[None, :]
        kept = (behind <= 1) | (blocks[None, :] < 2)
        inside = (attention * kept).sum(-1)
        for one in row.recalls:
            if one.layer == 0:
                means = [inside[one.head, blocks == block].mean() for block in blocks.unique()]
                assert one.recall == pytest.approx(float(torch.stack(means).mean()), abs=1e-4)
                seen += 1
    assert seen


def test_a_path_that_was_dense_keeps_everything(finished: Path, summary: EvalSummary) -> None:
    for cell in audited(finished).cells:
        if cell.method == SHORT:
            assert {(row.path, row.recalls) for row in cell.rows} == {("dense", ())}
    assert summary.recalls is not None
    (row,) = [one for one in summary.recalls.lengths if one.method == SHORT]
    assert (row.recall.mean, row.recall_p10.mean, row.density, row.heads) == (1, 1, 1, 0)


def test_the_summary_is_of_every_method_of_the_pass(summary: EvalSummary) -> None:
    recalls = summary.recalls
    assert recalls is not None
    assert (recalls.share, recalls.missing, recalls.failed) == (0.5, 0, ())
    rows = {row.method: row for row in recalls.lengths}
    assert set(rows) == {SLASH, STREAMING, ORACLE, SHORT}
    for row in recalls.lengths:
        assert set(row.tasks) == {"ppl", "niah_single_1"}
        assert row.recall.low <= row.recall.mean <= row.recall.high
        assert row.recall_p10.mean <= row.recall.mean
    assert rows[ORACLE].recall.mean > 0.5  # its mask reaches gamma in every block row


def test_the_file_holds_what_the_folder_holds(finished: Path, tmp_path: Path) -> None:
    assert read_recalls(finished / "recalls.parquet") == recall_cells(audited(finished))
    with pytest.raises(CorruptArtefactError, match="eval_recalls"):
        read_recalls(finished / "results.parquet")


def test_an_interrupted_pass_goes_on_and_ends_the_same(
    scored: Path,
    finished: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(scored, folder)
    measure, calls = measure_cell.CellMeasurer.measure, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(measure_cell.CellMeasurer, "measure", interrupted)
    options: dict[str, Any] = {"recall_pass": 2, "audit": 0.5}
    # The methods in another order, and in two requests.
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, folder, methods=f"{ORACLE},{STREAMING}", **options)
    assert len(audited(folder).cells) == 3
    run(tiny_model, folder, methods=f"{SHORT},{STREAMING},{SLASH},{ORACLE}", **options)
    assert len(calls) == 4 + 5
    assert {cell.id: cell.rows for cell in audited(folder).cells} == {
        cell.id: cell.rows for cell in audited(finished).cells
    }


def test_a_pass_needs_no_scores(tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": STREAMING, "tasks": "ppl", "samples": 1}
    run(tiny_model, tmp_path, **options, prepare_only=True)
    run(tiny_model, tmp_path, **options, recall_pass=1)
    summary = make_summary(tmp_path)
    store_results(tmp_path, summary)
    assert summary.overview.cells == ()
    assert summary.recalls is not None
    assert [row.method for row in summary.recalls.lengths] == [STREAMING]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audit": 0.25}, "audit: 0.5, 0.25"),
        ({"methods": "dense"}, "its recall is 1"),
        ({"tasks": "vt"}, "no vt"),
        ({"lengths": (1024,)}, "no 1024"),
        ({"seed": 1}, "no seed 1"),
        ({"block_size": 128}, "no block_size 128"),
        ({"audit": 0.0}, "audit 0.0"),
        ({"timed": True}, "takes no times"),
        ({"timing_pass": 1}, "takes no times"),
        ({"recall_pass": 0}, "recall_pass 0"),
    ],
)
def test_what_is_no_part_of_the_evaluation_is_refused(
    finished: Path, tiny_model: Path, options: dict[str, Any], message: str
) -> None:
    before = {file: file.read_bytes() for file in finished.rglob("*.json*")}
    with pytest.raises(UsageError, match=message):
        run(tiny_model, finished, **{"recall_pass": 2, "audit": 0.5, **options})
    assert before == {file: file.read_bytes() for file in finished.rglob("*.json*")}
