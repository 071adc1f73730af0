"""Recalls summed up: weights and tails against a literal computation, pairing, and equal recall."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.eval.cells import HeadRecall, PromptRow
from sp_profile.eval.methods import expand_methods
from sp_profile.eval.recall_store import read_recalls, store_recalls
from sp_profile.eval.recalls import PairedRecalls, RecallCell
from sp_profile.eval.summary import name_methods
from sp_runtime.errors import CorruptArtefactError

METHODS = name_methods(expand_methods("streaming,hip", samples=3, profile_points={})[1:])
ONE, OTHER = (method.label for method in METHODS)
Prompts = list[list[float]]


def row(number: int, recalls: list[float], *, dense: bool = False) -> PromptRow:
    """A prompt's row; its blocks are its number of heads in hundredths."""
    return PromptRow(
        index=number,
        prompt_sha256=f"{number}",
        score=None,
        density=1.0 if dense else len(recalls) / 100,
        estimation=0.01,
        path="dense" if dense else "sparse",
        new_tokens=0,
        timing=None,
        text=None,
        recalls=()
        if dense
        else tuple(
            HeadRecall(layer=0, head=head, branch="streaming", recall=value)
            for head, value in enumerate(recalls)
        ),
    )


def cell(method: str, task: str, prompts: Prompts, *, dense: bool = False) -> RecallCell:
    rows = tuple(row(number, recalls, dense=dense) for number, recalls in enumerate(prompts))
    return RecallCell(method=method, task=task, length=512, rows=rows)


recall = st.floats(0, 1)
tasks = st.lists(
    st.lists(st.lists(recall, min_size=1, max_size=12), min_size=1, max_size=5),
    min_size=1,
    max_size=3,
)


@given(tasks=tasks)
def test_heads_prompts_and_tasks_weigh_alike(tasks: list[Prompts]) -> None:
    paired = PairedRecalls(METHODS, [cell(ONE, str(n), t) for n, t in enumerate(tasks)])
    (found,) = paired.draw([ONE], 512)
    means = [np.mean([np.mean(heads) for heads in prompts]) for prompts in tasks]
    assert found.recall[0] == pytest.approx(np.mean(means))
    blocks = [np.mean([len(heads) / 100 for heads in prompts]) for prompts in tasks]
    assert found.density[0] == pytest.approx(np.mean(blocks))
    weighed = sorted(
        (value, 1 / (len(tasks) * len(prompts) * len(heads)))
        for prompts in tasks
        for heads in prompts
        for value in heads
    )
    reached = np.cumsum([weight for _, weight in weighed])
    assert found.recall_p10[0] == weighed[int((reached < 0.1 - 1e-9).sum())][0]
    assert found.recall.shape == found.recall_p10.shape == (2001,)
    every = [value for value, _ in weighed]
    for draws in (found.recall, found.recall_p10):
        assert every[0] - 1e-9 <= draws.min()
        assert draws.max() <= every[-1] + 1e-9


def test_prompts_without_heads_are_left_out_for_all_and_dense_ones_keep_all() -> None:
    cells = [cell(ONE, "a", [[0.5, 0.7], [], [0.9]]), cell(OTHER, "a", [[], [], []], dense=True)]
    paired = PairedRecalls(METHODS, cells)
    one, other = paired.draw([ONE, OTHER], 512)
    assert one.recall[0] == pytest.approx((0.6 + 0.9) / 2)
    assert (other.recall == 1).all()
    assert [len(rows) for rows in paired.rows([ONE, OTHER], 512)] == [2, 2]


def test_only_tasks_that_all_have_are_compared() -> None:
    cells = [cell(ONE, "a", [[0.5]]), cell(ONE, "b", [[0.9]]), cell(OTHER, "b", [[0.8]])]
    paired = PairedRecalls(METHODS, cells)
    assert paired.tasks([ONE, OTHER], 512) == ("b",)
    assert [draws.recall[0] for draws in paired.draw([ONE, OTHER], 512)] == [0.9, 0.8]
    assert paired.draw([ONE], 512)[0].recall[0] == pytest.approx(0.7)
    assert paired.draw([ONE], 256) == paired.draw([], 512) == ()


def test_other_heads_or_prompts_are_refused() -> None:
    ours, theirs = cell(ONE, "a", [[0.5, 0.6]]), cell(OTHER, "a", [[0.5]])
    with pytest.raises(CorruptArtefactError, match="prompt 0 of a at 512"):
        PairedRecalls(METHODS, [ours, theirs]).draw([ONE, OTHER], 512)
    moved = dataclasses.replace(ours.rows[0], prompt_sha256="9")
    theirs = dataclasses.replace(theirs, rows=(moved,))
    with pytest.raises(CorruptArtefactError, match="prompt 0 of a at 512"):
        PairedRecalls(METHODS, [ours, theirs]).draw([ONE, OTHER], 512)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    cells = (cell(ONE, "a", [[0.5, 1 / 3], []]), cell(OTHER, "a", [[], []], dense=True))
    store_recalls(tmp_path / "recalls.parquet", cells)
    assert read_recalls(tmp_path / "recalls.parquet") == cells


@pytest.fixture(scope="module")
def at_recall() -> Iterator[object]:
    """`plan_recalls.at_recall`."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    names = ("plan_recalls", "plan_evaluation", "report_text")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from plan_recalls import at_recall

        yield at_recall
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("recalls", "expected"),
    [
        ([0.97, 0.90, 0.93], [0.3 + 0.2 / 2]),  # in any order: 0.93 costs 0.3 and 0.97 costs 0.5
        ([0.95, 0.95, 0.95], [0.5]),
        ([0.96, 0.97, 0.98], [np.nan]),
        ([0.90, 0.91, 0.92], [np.nan]),
    ],
)
def test_a_sweep_is_read_between_its_settings(
    at_recall, recalls: list[float], expected: list[float]
) -> None:
    found = at_recall(np.array([recalls]), np.array([[0.5, 0.2, 0.3]]), 0.95)
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_a_draw_beyond_the_sweep_goes_on_along_its_end(at_recall) -> None:
    recalls = np.array([[0.94, 0.96], [0.95, 0.97], [0.96, 0.98], [0.92, 0.94]])
    found = at_recall(recalls, np.broadcast_to([0.2, 0.4], recalls.shape), 0.95)
    assert found == pytest.approx([0.3, 0.2, 0.1, 0.5])
    assert np.isnan(at_recall(recalls[:, :1], recalls[:, :1], 0.94)).all()
