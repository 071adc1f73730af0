"""`sp-profile tune` as a process: goals, the evaluation beside it, and what runs its points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

InProcess = Callable[..., tuple[int, str, str]]
TRIAL = ("--task", "niah_single_1", "--samples", "1", "--seed", "5", "--length", "512")


@pytest.fixture(scope="module")
def tuned(
    tiny_profile: Path,
    tiny_run: Path,
    tiny_model: Path,
    in_process: InProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A profile whose balanced point may lose any number of points, and the document beside it."""
    target: Path = tmp_path_factory.mktemp("tuned") / "profile"
    code, out, err = in_process(
        *("sp-profile", "tune", tiny_profile, tiny_run, "--model", tiny_model),
        *("--max-loss", "100", *TRIAL, "--device", "cpu", "-o", target, "--json"),
    )
    assert code == 0, err
    target.with_suffix(".json").write_text(out)
    return target


def test_the_curve_and_the_points(tuned: Path) -> None:
    from sp_runtime.profile import load_profile

    document = json.loads(tuned.with_suffix(".json").read_text())
    assert document["schema"] == "sp.tune"
    assert document["lengths"] == [512]
    assert (document["min_tokens"], document["origin"]) == (256, "profile")
    curve = document["curve"]
    targets = [row["target"] for row in curve]
    assert targets == sorted(targets)
    for row in curve:
        measured = row["measured"]
        assert measured["prompts"] == 1
        assert 0 < measured["density"] <= 1
        assert measured["loss"]["low"] <= measured["loss"]["mean"] <= measured["loss"]["high"]
    # Any loss is allowed, so the cheapest plan is the balanced one.
    costs = [row["measured"]["density"] + row["measured"]["estimation"] for row in curve]
    assert "balanced" in curve[costs.index(min(costs))]["names"]
    profile = load_profile(tuned)
    assert profile.profile_id == document["profile_id"]
    assert {plan.name for plan in profile.plans} == {"fast", "balanced", "safe"}
    for plan in profile.plans:
        row = next(row for row in curve if plan.name in row["names"])
        assert plan.plan.target_recall == pytest.approx(row["target"])
        assert profile.point(plan.name).plan == plan.name
        assert profile.point(plan.name).min_tokens == 256
    assert {file.name for file in profile.files} == {
        "heads.parquet", "similarity.parquet", "masks.parquet",
    }  # fmt: skip


def test_the_same_command_resumes_its_evaluation(
    tuned: Path, tiny_profile: Path, tiny_run: Path, tiny_model: Path, in_process: InProcess
) -> None:
    cells = sorted((tuned.parent / "profile.trial" / "eval" / "cells").iterdir())
    before = [cell.stat().st_mtime_ns for cell in cells]
    code, out, err = in_process(
        *("sp-profile", "tune", tiny_profile, tiny_run, "--model", tiny_model),
        *("--max-loss", "100", *TRIAL, "--device", "cpu", "-o", tuned, "--overwrite"),
    )
    assert code == 0, err
    assert "balanced" in out
    assert [cell.stat().st_mtime_ns for cell in cells] == before
    document = json.loads(tuned.with_suffix(".json").read_text())
    assert document["profile_id"] in out


def test_prefill_and_eval_run_the_points(
    tuned: Path, tiny_model: Path, prompt: Path, in_process: InProcess, tmp_path: Path
) -> None:
    common = ("--model", tiny_model, "--profile", tuned, "--device", "cpu")
    target = tmp_path / "out.jsonl"
    code, _, err = in_process(
        "sp-run", "prefill", *common, prompt, "--point", "balanced", "-o", target
    )
    assert code == 0, err
    assert json.loads(json.loads(target.read_text())["point"])["plan"] == "balanced"
    code, out, err = in_process(
        *("sp-run", "eval", *common, "--method", "point:{fast,safe}", "--task", "niah_single_1"),
        *("--length", "512", "--samples", "1", "--workers", "1", "--no-plot", "--json"),
        *("-o", tmp_path / "eval"),
    )
    assert code == 0, err
    methods = json.loads(out)["config"]["methods"]
    assert [method["point"].get("plan", "") for method in methods] == ["", "fast", "safe"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "0 goals"),
        (("--target-recall", "0.9", "--max-loss", "1"), "2 goals"),
        (("--max-loss", "1"), "measured on a model"),
        (("--target-recall", "0.9", "--length", "100"), "length 100 is under 256"),
        (("--target-density", "0.001"), "no plan costs 0.001"),
        (("--target-recall", "0.9", "--min-tokens", "4000"), "longest prompt"),
        (("--target-recall", "0.9", "--min-tokens", "9", "--crossover", "x"), "the same"),
    ],
)
def test_usage_errors(
    words: tuple[str, ...],
    message: str,
    tiny_profile: Path,
    tiny_run: Path,
    in_process: InProcess,
    tmp_path: Path,
) -> None:
    target = tmp_path / "out"
    code, out, err = in_process(
        "sp-profile", "tune", tiny_profile, tiny_run, *words, "--device", "cpu", "-o", target
    )
    assert (code, out) == (2, ""), err
    assert message in err
    assert not target.exists()


def test_a_run_that_the_profile_was_not_made_from_is_refused(
    tiny_profile: Path, tiny_model: Path, other_model: Path, in_process: InProcess, tmp_path: Path
) -> None:
    for model, exit_code, message in (
        (other_model, 3, "another model"),
        (tiny_model, 2, "prompts"),
    ):
        run = tmp_path / model.name
        code, _, err = in_process(
            *("sp-profile", "calibrate", "--model", model, "--length", "1024", "-o", run),
            *("--block-size", "64", "--task", "json_kv", "--device", "cpu"),
        )
        assert code == 0, err
        code, _, err = in_process(
            *("sp-profile", "tune", tiny_profile, run, "--target-recall", "0.9"),
            *("--device", "cpu", "-o", tmp_path / "out"),
        )
        assert code == exit_code
        assert message in err
