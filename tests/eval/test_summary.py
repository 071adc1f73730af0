"""From cells to means, paired differences and scores at equal density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sp_profile.eval.branches import HeadBranches
from sp_profile.eval.cells import CellResult, cell_from_bytes, cell_to_bytes
from sp_profile.eval.config import EvalConfig
from sp_profile.eval.equal_density import equal_density
from sp_profile.eval.folder import Evaluation
from sp_profile.eval.results import EvalSummary, read_summary
from sp_profile.eval.summary import Overview, PairedScores
from sp_profile.eval.summary import summarise as summarise_scores
from sp_profile.figures.pareto import plot_pareto
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.strict_json import encode_pretty

Make = Callable[..., CellResult]
Config = Callable[..., EvalConfig]
Evaluate = Callable[..., Evaluation]
SWEEP = "vertical_slash:gamma={0.7,0.8,0.9},streaming@2,hip:top_k={128,256}"


def summarise(evaluation: Evaluation, timed: Evaluation | None) -> Overview:
    paired = PairedScores(evaluation.config, evaluation.cells)
    return summarise_scores(evaluation, timed, paired)


@pytest.fixture
def swept(make_config: Config, make_cell: Make, make_evaluation: Evaluate) -> Evaluation:
    """Two tasks; a sweep whose score rises linearly with its density, and others beside it."""
    config = make_config(SWEEP, tasks=("vt", "cwe"))
    densities = dict(
        zip((m.label for m in config.methods), (1.0, 0.2, 0.4, 0.6, 0.3, 0.1, 0.5), strict=True)
    )
    ripple = np.array([0.1, -0.1, 0.05, -0.05])
    cells = [
        make_cell(
            method,
            (densities[method.label] / 2 + ripple)[: method.samples].tolist(),
            densities[method.label] - 0.05,
            task=task,
            estimation=0.05,
            ttft=0.1 + densities[method.label],
        )
        for method in config.methods
        for task in config.tasks
    ]
    return make_evaluation(config, cells)


def test_differences_are_paired(swept: Evaluation) -> None:
    overview = summarise(swept, None)
    rows = {row.method: row for row in overview.lengths}
    dense = rows["dense"]
    assert dense.difference is None
    for label, row in rows.items():
        if label != "dense":
            assert row.difference is not None
            # The same ripple on both sides of a pair leaves no spread.
            assert row.difference.low == pytest.approx(row.difference.high, abs=1e-12)
    lowest = rows["vertical_slash:gamma=0.7"].difference
    assert lowest is not None
    assert lowest.mean == pytest.approx(-0.4)
    assert dense.score.high - dense.score.low > 0.01
    assert dense.tasks == ("vt", "cwe")


def test_equal_density_is_interpolated_and_never_extrapolated(swept: Evaluation) -> None:
    overview = summarise(swept, None)
    equal = equal_density(overview, PairedScores(swept.config, swept.cells))
    assert equal.reference == "vertical_slash"
    at = {(p.family, p.density): p for p in equal.curves}
    assert at["vertical_slash", 0.3].score.mean == pytest.approx(0.15)
    assert ("vertical_slash", 0.7) not in at
    assert at["hip", 0.3].difference is not None
    assert at["hip", 0.3].difference.mean == pytest.approx(0)
    assert at["hip", 0.15].difference is None
    matched = {point.method: point for point in equal.matched}
    streaming = matched["streaming"]
    assert streaming.difference is not None
    assert streaming.difference.mean == pytest.approx(0, abs=1e-9)
    assert matched["hip:top_k=128"].difference is None
    assert not any(label.startswith("vertical_slash") for label in matched)


def test_means_take_only_tasks_that_every_method_has_finished(
    make_config: Config, make_cell: Make, make_evaluation: Evaluate
) -> None:
    config = make_config("streaming", tasks=("vt", "cwe", "ppl"))
    dense, streaming = config.methods
    cells = [
        make_cell(dense, [1.0] * 4, 1.0),
        make_cell(streaming, [0.5] * 4, 0.3),
        make_cell(dense, [0.0] * 4, 1.0, task="cwe"),
        make_cell(dense, [-3.0] * 4, 1.0, task="ppl", metric="nll"),
        make_cell(streaming, [-4.0] * 4, 0.3, task="ppl", metric="nll"),
    ]
    overview = summarise(make_evaluation(config, cells), None)
    assert overview.missing == 1
    assert {row.method: row.score.mean for row in overview.lengths} == {
        "dense": 1.0,
        "streaming": 0.5,
    }
    ppl = next(c for c in overview.cells if (c.method, c.task) == ("streaming", "ppl"))
    assert ppl.difference is not None
    assert ppl.difference.mean == -1


def test_methods_that_saw_other_prompts_are_not_compared(
    make_config: Config, make_cell: Make, make_evaluation: Evaluate
) -> None:
    config = make_config("streaming")
    dense, streaming = config.methods
    cells = [make_cell(dense, [1.0], 1.0), make_cell(streaming, [1.0], 0.3, prompts="q")]
    with pytest.raises(CorruptArtefactError, match="not the same for streaming, dense"):
        summarise(make_evaluation(config, cells), None)


def test_a_timing_pass_brings_the_times(
    make_config: Config, make_cell: Make, make_evaluation: Evaluate
) -> None:
    config = make_config("streaming")
    scored = [make_cell(method, [1.0] * 4, 0.3) for method in config.methods]
    timed = [make_cell(method, [None] * 2, 0.3, ttft=0.2) for method in config.methods]
    overview = summarise(make_evaluation(config, scored), make_evaluation(config, timed))
    found = [row.seconds for row in overview.lengths] + [row.seconds for row in overview.cells]
    assert len(found) == 4
    for seconds in found:
        assert seconds is not None
        assert (seconds.prompts, seconds.ttft, seconds.attention) == (2, 0.2, 0.1)


def test_the_summary_reads_back_and_draws(swept: Evaluation, tmp_path: Path) -> None:
    overview = summarise(swept, None)
    paired = PairedScores(swept.config, swept.cells)
    summary = EvalSummary(
        config=swept.config, overview=overview, equal_density=equal_density(overview, paired)
    )
    (tmp_path / "summary.json").write_text(encode_pretty(summary))
    assert read_summary(tmp_path / "summary.json") == summary
    pytest.importorskip("matplotlib")
    plot_pareto(tmp_path / "pareto.png", summary)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_branches_are_summed_over_the_cells_of_a_method(
    make_config: Config, make_cell: Make, make_evaluation: Evaluate
) -> None:
    config = make_config("vertical_slash", tasks=("vt", "cwe"))
    dense, sparse = config.methods
    taken = HeadBranches(name="vertical_slash", counts=(4, 1))
    others = (HeadBranches(name="dense", counts=(0, 3)), taken)
    cells = [
        make_cell(dense, [1.0] * 4, 1.0),
        dataclasses.replace(make_cell(sparse, [1.0] * 4, 0.5), branches=others),
        dataclasses.replace(make_cell(sparse, [1.0] * 4, 0.5, task="cwe"), branches=(taken,)),
    ]
    (found,) = summarise(make_evaluation(config, cells), None).branches
    assert (found.method, found.prefills) == ("vertical_slash", 8)
    assert {b.name: b.counts for b in found.branches} == {
        "dense": (0, 3),
        "vertical_slash": (8, 2),
    }
    assert cell_from_bytes(cell_to_bytes(cells[1]), "x") == cells[1]
    assert b"branches" not in cell_to_bytes(cells[0])
