"""From synthetic shards in a run folder to a profile that the runtime loads."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sp_profile.artefact import read_heads, verify_files
from sp_profile.candidates import Candidate, MaskSettings
from sp_profile.cluster import ClusterConfig, build_profile, build_with_report
from sp_profile.evidence import parse_enable
from sp_profile.run_folder import create_or_resume
from sp_profile.shard import PromptShard
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef, PromptRecord, compute_profile_id, load_profile

LAYERS, HEADS, BLOCK = 5, 4, 64
TOKENS = 20 * BLOCK
CANDIDATES = (
    Candidate(assignment="vertical_slash", gamma=0.8),
    Candidate(assignment="vertical_slash", gamma=0.95),
    Candidate(assignment="streaming", window=256),
    Candidate(assignment="sampled", gamma=0.9, stride=8),
)
# Cluster of each head number; head 3 is alike to nobody.
KINDS = (0, 1, 0, 2)


def make_prompt(name: str, task: str, tokens: int = TOKENS) -> PromptRecord:
    return PromptRecord(sha256=hashlib.sha256(name.encode()).hexdigest(), tokens=tokens, task=task)


def make_shard(prompt: PromptRecord, borrowed_recall: float) -> PromptShard:
    """Heads of a kind share nine blocks in ten; cluster mates keep `borrowed_recall`."""
    grid = BlockGrid(q_len=prompt.tokens, kv_len=prompt.tokens, block_size=BLOCK)
    rng = np.random.default_rng(int(prompt.sha256[:8], 16))
    heads = np.array([(a, b) for a in range(LAYERS) for b in range(HEADS)], dtype=np.int32)
    kinds = np.array(KINDS * LAYERS)
    count, blocks = len(heads), grid.num_causal_blocks
    templates = rng.random((2, blocks)) < 0.2
    masks = rng.random((count, blocks)) < 0.2
    for head, kind in enumerate(kinds):
        if kind < 2:
            masks[head] = templates[kind] ^ (rng.random(blocks) < 0.005)
    alike = (kinds[:, None] == kinds[None]) & (kinds[:, None] < 2)
    recall = np.where(alike, borrowed_recall, 0.5) + rng.uniform(-0.005, 0.005, (count, count))
    np.fill_diagonal(recall, 0.95)
    recall[heads[None, :, 0] > heads[:, None, 0]] = -1
    own = np.tile(np.array([0.8, 0.93, 0.6, 0.95]), (count, 1))
    cost = np.tile(np.array([0.5, 0.7, 0.2, 0.4]), (count, 1))
    half = np.triu(rng.uniform(0, 0.2, (count, count)), 1)
    return PromptShard(
        prompt=prompt,
        grid=grid,
        heads=heads,
        masks=np.packbits(masks, axis=1),
        density=np.full(count, 0.15, dtype=np.float32),
        recall_exact=recall.astype(np.float32),
        recall_sampled=recall.astype(np.float32),
        sampled_density=np.full(count, 0.15, dtype=np.float32),
        uniform_jsd=rng.uniform(0.2, 0.8, count).astype(np.float32),
        a_hat_jsd=(half + half.T).astype(np.float16),
        candidate_cost=cost.astype(np.float32),
        candidate_recall=own.astype(np.float32),
    )


@pytest.fixture
def make_run(tmp_path: Path, synthetic_run_config: Callable[..., Any]) -> Callable[..., Path]:
    """A finished run folder of two tasks with `count` prompts each."""

    def make(
        name: str = "run", *, recall: float = 0.93, count: int = 2, reverse: bool = False
    ) -> Path:
        prompts = [make_prompt(f"{t}-{n}", t) for t in ("needle", "json") for n in range(count)]
        prompts.sort(key=lambda prompt: prompt.sha256)
        config = synthetic_run_config(
            prompts,
            layers=LAYERS,
            heads=HEADS,
            block_size=BLOCK,
            settings=MaskSettings(min_budget=128),
            candidates=CANDIDATES,
        )
        folder = tmp_path / name
        with create_or_resume(folder, config) as run:
            for prompt in reversed(prompts) if reverse else prompts:
                run.add(make_shard(prompt, recall))
        return folder

    return make


def test_the_profile_loads_and_says_what_was_planted(make_run: Callable[..., Path], tmp_path: Path):
    steps: list[tuple[int, int]] = []
    built = build_with_report(
        make_run(),
        tmp_path / "profile",
        ClusterConfig(min_tokens=512),
        lambda done, total: steps.append((done, total)),
    )
    profile = load_profile(tmp_path / "profile")
    assert profile == built.profile
    verify_files(tmp_path / "profile", profile)
    assert [cluster.members for cluster in profile.clusters] == [
        tuple(HeadRef(layer, head) for layer in range(LAYERS) for head in (0, 2)),
        tuple(HeadRef(layer, 1) for layer in range(LAYERS)),
    ]
    first, second = profile.clusters
    assert first.anchor is not None
    assert first.anchor.layer == 0
    # Ten heads earn the dense lender back; five do not.
    assert first.enabled
    assert first.evidence.reason.startswith("saves ")
    assert 0.92 < first.evidence.recall_p10 <= first.evidence.recall_mean < 0.94
    assert not second.enabled or second.evidence.saving > 0
    assert {head.assignment for head in profile.plan.heads} == {"sampled", "borrow"}
    assert profile.point().min_tokens == 512
    assert (profile.point().method, profile.point().rule) == ("share", "plan")
    assert [named.name for named in profile.points] == [
        *("default", "paper", "release", "vertical_slash")
    ]
    assert (profile.point("paper").rule, profile.point("paper").min_budget) == ("paper", 128)
    assert (profile.point("release").rule, profile.point("release").tau) == ("release", 0.5)
    assert profile.point("vertical_slash").method == "vertical_slash"
    assert steps[0] == (0, 12)
    assert steps[-1] == (12, 12)
    report = built.report
    assert (report.prompts, report.short, report.clusters) == (4, 0, 2)
    assert report.plan.held_out is not None
    assert report.plan.cost < report.plan.vertical_slash_cost


def test_the_order_of_recording_changes_nothing(make_run: Callable[..., Path], tmp_path: Path):
    one = build_profile(make_run("a"), tmp_path / "one", ClusterConfig())
    two = build_profile(make_run("b", reverse=True), tmp_path / "two", ClusterConfig())
    assert one.profile_id == two.profile_id == compute_profile_id(two)
    assert one == two
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())


def test_evidence_that_enables_none_is_explained(make_run: Callable[..., Path], tmp_path: Path):
    built = build_with_report(make_run(recall=0.85), tmp_path / "profile", ClusterConfig())
    assert [cluster.enabled for cluster in built.profile.clusters] == [False, False]
    assert any("no cluster is enabled" in note for note in built.report.notes)
    assert all("below 0.90" in c.evidence.reason for c in built.profile.clusters)
    assert all(head.assignment == "sampled" for head in built.profile.plan.heads)
    forced = build_profile(
        make_run(recall=0.85), tmp_path / "forced", ClusterConfig(enable=parse_enable("all"))
    )
    assert [cluster.enabled for cluster in forced.clusters] == [True, True]
    assert forced.clustering is not None
    assert forced.clustering.enable == "all"


def test_thresholds_from_quantiles(make_run: Callable[..., Path], tmp_path: Path):
    run = make_run()
    config = ClusterConfig(drift_quantile=0.99, delta_quantile=0.5, tau_quantile=0.5)
    profile = build_profile(run, tmp_path / "profile", config)
    point, paper = profile.point(), profile.point("paper")
    assert point.drift is not None
    assert 0.15 <= point.drift <= 0.22 + 1e-9
    assert 0.4 <= paper.delta <= 0.6  # the median of values in [0.2, 0.8]
    assert 0.05 <= paper.tau <= 0.15  # the median of values in [0, 0.2]
    plain = build_profile(run, tmp_path / "plain", ClusterConfig())
    assert plain.point().drift is None
    assert (plain.point("paper").delta, plain.point("paper").tau) == (0.3, 0.2)
    borrow = [head.cost for head in plain.plan.heads if head.assignment == "borrow"]
    guarded = [head.cost for head in profile.plan.heads if head.assignment == "borrow"]
    estimate = 0.5 * 20 / 210
    assert guarded[0] == pytest.approx(borrow[0] + estimate, abs=1e-5)


def test_the_heads_table_agrees_with_the_profile(make_run: Callable[..., Path], tmp_path: Path):
    profile = build_profile(make_run(), tmp_path / "profile", ClusterConfig())
    rows = read_heads(tmp_path / "profile", profile).to_pylist()
    assert len(rows) == LAYERS * HEADS
    anchor = profile.clusters[0].anchor
    assert anchor is not None
    for row in rows:
        kind = KINDS[row["head"]]
        assert row["cluster"] == (-1 if kind == 2 else kind)
        assert row["density"] == pytest.approx(0.15, abs=1e-5)
        assert row["recall_own"] == pytest.approx(0.95, abs=1e-5)
        assert row["vertical_slash_cost"] in (pytest.approx(0.7), pytest.approx(0.5))
        if kind == 0:
            assert (row["anchor_layer"], row["anchor_head"]) == anchor
            assert row["jaccard_anchor"] > 0.8


def test_one_prompt_a_task_is_chosen_on_all(make_run: Callable[..., Path], tmp_path: Path):
    built = build_with_report(make_run(count=1), tmp_path / "profile", ClusterConfig())
    assert built.report.plan.held_out is None
    assert any("chosen on all prompts" in note for note in built.report.notes)


def test_an_output_that_exists_is_refused_before_work(
    make_run: Callable[..., Path], tmp_path: Path
):
    run = make_run()
    build_profile(run, tmp_path / "profile", ClusterConfig())
    steps: list[int] = []
    with pytest.raises(UsageError, match="exists"):
        build_profile(
            run, tmp_path / "profile", ClusterConfig(), lambda done, _: steps.append(done)
        )
    assert not steps
    again = build_profile(run, tmp_path / "profile", ClusterConfig(overwrite=True))
    assert again == load_profile(tmp_path / "profile")


@pytest.mark.parametrize(
    "changes",
    [
        {"distance": 1.5},
        {"min_cluster_size": 1},
        {"recall_floor": 0.0},
        {"recall_target": 1.1},
        {"tau_quantile": -0.1},
        {"min_tokens": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]):
    with pytest.raises(UsageError, match=next(iter(changes))):
        dataclasses.replace(ClusterConfig(), **changes)
