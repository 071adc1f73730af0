"""`sp-profile plan`: new profiles, named plans, controls, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sp_cli.profile_main import cli
from sp_cli.runner import run as run_command

from sp_profile.candidates import Candidate, LentMask, MaskSettings
from sp_profile.run_folder import create_or_resume
from sp_profile.shard import PromptShard, forced_blocks
from sp_runtime.block_index import BlockGrid
from sp_runtime.profile import PromptRecord, load_profile

LAYERS, HEADS, BLOCK = 6, 4, 64
CANDIDATES = (
    *(Candidate(assignment="vertical_slash", gamma=g) for g in (0.8, 0.9, 0.98)),
    *(Candidate(assignment="sampled", gamma=g, stride=16) for g in (0.9, 0.95)),
)
# Density and recall of each candidate, of each lent mask (stride 8 unmeasured) and of the oracle.
COSTS, RECALLS = (0.3, 0.5, 0.8, 0.35, 0.45), (0.85, 0.92, 0.98, 0.93, 0.96)
ORACLE = ((0.2, 0.3), (0.9, 0.97))


def make_shard(prompt: PromptRecord) -> PromptShard:
    grid = BlockGrid(q_len=prompt.tokens, kv_len=prompt.tokens, block_size=BLOCK)
    rng = np.random.default_rng(int(prompt.sha256[:8], 16))
    heads = np.array([(a, b) for a in range(LAYERS) for b in range(HEADS)], dtype=np.int32)
    count = len(heads)
    later = heads[None, :, 0] > heads[:, None, 0]

    def near(values: tuple[float, ...]) -> np.ndarray:
        noise = rng.uniform(-0.02, 0.02, (count, len(values)))
        return np.clip(np.array(values) + noise, 0, 1).astype(np.float32)

    def lent(recall: float) -> np.ndarray:
        matrix = np.where(later, -1, recall + rng.uniform(-0.02, 0.02, (count, count)))
        return matrix.astype(np.float32)

    masks = rng.random((count, grid.num_causal_blocks)) < 0.2
    forced = forced_blocks(grid, local_blocks=1)
    return PromptShard(
        prompt=prompt,
        grid=grid,
        heads=heads,
        masks=np.packbits(masks, axis=1),
        density=(masks | forced).mean(1, dtype=np.float32),
        recall_exact=lent(0.8),
        recall_sampled=lent(0.8),
        sampled_density=np.full(count, 0.2, dtype=np.float32),
        uniform_jsd=rng.uniform(0.2, 0.8, count).astype(np.float32),
        a_hat_jsd=np.zeros((count, count), dtype=np.float16),
        candidate_cost=near(COSTS),
        candidate_recall=near(RECALLS),
        lent_recall=lent(0.94)[None].astype(np.float16),
        lent_density=np.full((1, count), 0.3, dtype=np.float32),
        oracle_density=near(ORACLE[0]),
        oracle_recall=near(ORACLE[1]),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, synthetic_run_config: Callable[..., Any]) -> Path:
    """A finished run of two tasks with two prompts each, one of them long."""
    names = [(task, tokens) for task in ("needle", "json") for tokens in (1280, 1281, 2560, 2561)]
    prompts = sorted(
        (
            PromptRecord(
                sha256=hashlib.sha256(f"{task}{tokens}".encode()).hexdigest(),
                tokens=tokens,
                task=task,
            )
            for task, tokens in names
        ),
        key=lambda prompt: prompt.sha256,
    )
    config = synthetic_run_config(
        prompts,
        layers=LAYERS,
        heads=HEADS,
        block_size=BLOCK,
        settings=MaskSettings(min_budget=128, local_blocks=1),
        candidates=CANDIDATES,
        lending=(LentMask(gamma=0.95, stride=16),),
        oracle_gammas=(0.9, 0.97),
    )
    folder = tmp_path_factory.mktemp("plan") / "run"
    with create_or_resume(folder, config) as opened:
        for prompt in prompts:
            opened.add(make_shard(prompt))
    return folder


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A command of sp-profile that ends well, and its JSON document."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        code = run_command(cli, [*map(str, arguments), "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        document: dict[str, Any] = json.loads(told.out)
        return document

    return call


def test_a_new_profile_and_a_named_plan_of_it(plan, run, tmp_path):
    first = tmp_path / "first"
    document = plan("plan", run, "-o", first, "--target-recall", "0.93")
    profile = load_profile(first)
    assert document["profile_id"] == profile.profile_id
    summary = document["plan"]
    assert summary["recall"] >= 0.93 - 1e-6
    assert summary["cost"] == pytest.approx(np.mean([head.cost for head in profile.plan.heads]))
    assert summary["cost"] < summary["vertical_slash_cost"]
    assert summary["cost"] < summary["uniform_vertical_slash_cost"]
    assert summary["ceiling_share"] > 0.5
    assert summary["held_out"]["prompts"] == 8
    assert [one["name"] for one in summary["left_out"]] == ["json", "needle"]
    assert [one["name"] for one in summary["lengths"]] == ["2048", "4096"]
    assert (profile.plan.target_recall, profile.plan.min_length) == (0.93, None)
    assert profile.point().local_blocks == profile.calibration.local_blocks == 1
    assert "borrow" in {head.assignment for head in profile.plan.heads}
    assert all(head.gamma == 0.95 for head in profile.plan.heads if head.assignment == "borrow")
    targets = [point["target"] for point in document["curve"]]
    assert targets == sorted(targets)
    costs = [point["cost"] for point in document["curve"]]
    assert costs[0] < costs[-1]
    # A second plan beside it, and another in its place.
    named = tmp_path / "named"
    more = ["--from", first, "--target-recall", "0.9", "--min-length", "2048"]
    assert plan("plan", run, "-o", named, *more, "--name", "fast")["name"] == "fast"
    other = load_profile(named)
    assert other.plan == profile.plan
    (fast,) = other.plans
    assert (fast.name, fast.plan.target_recall, fast.plan.min_length) == ("fast", 0.9, 2048)
    assert other.point("fast").plan == "fast"
    assert other.point("fast").local_blocks == 1
    own = tmp_path / "own"
    plan("plan", run, "-o", own, *more)
    assert load_profile(own).plan == fast.plan
    for folder in (named, own):
        plan("verify", folder)


def test_controls_cost_at_least_what_the_plan_does(plan, run, tmp_path):
    options = ["--target-recall", "0.95", "--controls"]
    document = plan("plan", run, "-o", tmp_path / "profile", *options)
    rows = {one["name"]: one for one in document["controls"]}
    assert rows["plan"]["ratio"] == 1.0
    assert rows["no lending"]["ratio"] > 1.0
    assert {"one task", "random lenders", "in random clusters", "Jaccard", "no tail"} <= set(rows)
    assert all(one["what"] for one in rows.values())


def test_curves_hold_the_plan_the_mixture_and_the_ceilings(plan, run):
    document = plan("curves", run)
    points = [point for point in document["points"] if point["length"] == 4096]
    methods = {point["method"] for point in points}
    assert {"plan", "mixture, no lending", "best lender, stride 16"} <= methods
    oracle = [point for point in points if point["method"] == "own exact mask (oracle)"]
    assert [point["setting"] for point in oracle] == ["gamma=0.9", "gamma=0.97"]
    assert {point["prompts"] for point in points} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "fast"], "added to a profile"),
        (["--target-recall", "1.5"], "not in (0, 1]"),
        (["--min-length", "9000"], "no prompt"),
        (["--recall-floor", "0.9", "--controls"], "compare at a mean recall"),
    ],
)
def test_what_it_refuses(run, tmp_path, capsys, options, message):
    assert run_command(cli, ["plan", str(run), "-o", str(tmp_path / "profile"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()
