"""The choice of operating points, and where sparse attention begins to pay."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.crossover import measure_crossover, read_crossover
from sp_profile.eval.statistics import Estimate
from sp_profile.tune import choose
from sp_profile.tune_types import CurvePoint, Goal, Measured, Trial, TuneConfig
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.kernels.select import select_kernels

# target, cost on the calibration prompts; loss and blocks in the evaluation
CURVE = (
    (0.80, 0.10, 6.0, 0.11),
    (0.90, 0.20, 2.0, 0.21),
    (0.95, 0.30, 0.5, 0.33),
    (0.975, 0.40, 0.9, 0.32),  # costs less than its neighbour where it is measured
    (0.9875, 0.50, -0.5, 0.52),
)


def rows(measured: bool = True) -> list[CurvePoint]:
    return [
        CurvePoint(
            target=target,
            cost=cost,
            recall=target,
            recall_p10=target - 0.1,
            held_out_cost=None,
            held_out_recall=None,
            vertical_slash_cost=None,
            ceiling_share=None,
            measured=Measured(
                loss=Estimate(mean=loss, low=loss - 1, high=loss + 1),
                density=blocks - 0.01,
                estimation=0.01,
                prompts=8,
            )
            if measured
            else None,
        )
        for target, cost, loss, blocks in CURVE
    ]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("target_recall", 0.95, (1, 2, 3)),
        ("target_recall", 0.90, (0, 1, 2)),
        ("target_recall", 0.80, (0, 0, 1)),
        ("target_density", 0.30, (1, 2, 3)),
        ("target_density", 0.29, (0, 1, 2)),
        ("target_density", 1.0, (3, 4, 4)),
        ("max_loss", 1.0, (2, 3, 4)),
        ("max_loss", 0.6, (1, 2, 3)),
        ("max_loss", 0.0, (3, 4, 4)),
        ("max_loss", 2.0, (0, 1, 2)),
    ],
)
def test_the_points_meet_the_goal(kind: Any, value: float, expected: tuple[int, ...]) -> None:
    chosen = choose(rows(), Goal(kind=kind, value=value))
    assert (chosen["fast"], chosen["balanced"], chosen["safe"]) == expected


@pytest.mark.parametrize(
    ("kind", "value", "hint"),
    [("target_density", 0.05, "0.100"), ("max_loss", 0.0, "loses 0.5")],
)
def test_a_goal_that_no_plan_meets_is_refused(kind: Any, value: float, hint: str) -> None:
    with pytest.raises(UsageError, match="no plan") as refused:
        choose(rows()[:4], Goal(kind=kind, value=value))
    assert hint in (refused.value.hint or "")


@given(st.floats(min_value=0.6, max_value=0.998))
def test_the_mass_missed_doubles_every_two_rungs(recall: float) -> None:
    recall = round(recall, 4)
    ladder = Goal(kind="target_recall", value=recall).ladder()
    assert recall in ladder
    assert all(low < high for low, high in pairwise(ladder))
    for low, high in zip(ladder, ladder[2:], strict=False):
        assert (1 - low) == pytest.approx(2 * (1 - high), abs=3e-4)


def test_a_density_is_met_on_a_finer_ladder() -> None:
    fine = Goal(kind="target_density", value=0.2).ladder()
    assert set(Goal(kind="max_loss", value=1).ladder()) < set(fine)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("target_recall", 1.0),
        ("target_recall", 0.2),
        ("target_density", 0.0),
        ("target_density", 1.5),
        ("max_loss", -1.0),
        ("max_loss", float("nan")),
        ("speed", 1.0),
    ],
)
def test_goals_out_of_range(kind: Any, value: float) -> None:
    with pytest.raises(UsageError):
        Goal(kind=kind, value=value)


def test_a_loss_needs_a_model_and_lengths_must_pay() -> None:
    goal = Goal(kind="max_loss", value=1)
    with pytest.raises(UsageError, match="model"):
        TuneConfig(goal=goal, min_tokens=8, origin="given")
    trial = Trial(model="m", folder=Path("f"))
    with pytest.raises(UsageError, match="length 7 is under 8"):
        TuneConfig(goal=goal, min_tokens=8, origin="given", lengths=(7, 9), trial=trial)


def layer_document(**changes: Any) -> dict[str, Any]:
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "block_size": 64}
    return {
        "schema": "sp.bench.layer",
        "rows": [{"shape": {**shape, "length": length}} for length in (4096, 8192)],
        "crossovers": [
            {"method": "vertical_slash", "tokens": 4096, "estimate": None},
            {"method": "plan:min_budget=256", "tokens": 8192, "estimate": 6000.5},
        ],
        **changes,
    }


def plan_crossover(tokens: int | None, estimate: float | None = None) -> list[dict[str, Any]]:
    return [{"method": "plan", "tokens": tokens, "estimate": estimate}]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (layer_document(), 6001),
        (layer_document(crossovers=plan_crossover(4096)), 4096),
    ],
)
def test_the_crossover_of_plan_counts(
    document: dict[str, Any], expected: int, tmp_path: Path, examples: ModuleType
) -> None:
    file = tmp_path / "layer.json"
    file.write_text(json.dumps(document))
    assert read_crossover(file, examples.make_profile()) == expected


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (layer_document(schema="sp.bench.kernel"), CorruptArtefactError, "rows"),
        (layer_document(rows=[]), CorruptArtefactError, "rows"),
        (layer_document(crossovers=[{"method": "plan"}]), CorruptArtefactError, "crossovers"),
        ([], CorruptArtefactError, "rows"),
        (layer_document(rows=[{"shape": {"heads": 32, "length": 1}}]), UsageError, "another layer"),
        (layer_document(crossovers=plan_crossover(None)), UsageError, "no length up to 8192"),
        (
            layer_document(crossovers=[{"method": "hip", "tokens": 1, "estimate": None}]),
            UsageError,
            "plan was not measured",
        ),
    ],
)
def test_other_documents_are_refused(
    document: Any,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    examples: ModuleType,
) -> None:
    file = tmp_path / "layer.json"
    file.write_text(json.dumps(document))
    with pytest.raises(error, match=message):
        read_crossover(file, examples.make_profile())


def test_the_crossover_is_measured_with_the_models_own_layer(examples: ModuleType) -> None:
    cpu = torch.device("cpu")
    seen: list[tuple[int, int]] = []
    # The reference kernels are slower than dense attention at any length.
    with pytest.raises(UsageError, match="no length up to 256"):
        measure_crossover(
            examples.make_profile(),
            select_kernels("reference", cpu).kernels,
            cpu,
            lengths=(128, 256, 1 << 20),
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(0, 2), (1, 2), (2, 2)]
