"""Profiles that ship: they read, their tables hold, and the CPU one comes out of a fresh run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp_profile.artefact import read_heads, read_similarity, verify_files
from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.cluster import build_profile
from sp_profile.cluster_types import ClusterConfig
from sp_profile.evidence import parse_enable
from sp_runtime.profile import Profile, load_profile

PROFILES = Path(__file__).parents[2] / "profiles"
SHIPPED = sorted(path.parent for path in PROFILES.glob("*/profile.json"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_profile_is_whole(folder: Path) -> None:
    profile = load_profile(folder)
    verify_files(folder, profile)
    heads = len(profile.plan.heads)
    assert read_heads(folder, profile).num_rows == heads
    assert len(read_similarity(folder, profile).mean) == heads * (heads - 1) // 2
    assert (folder / "README.md").stat().st_size > 500


def test_both_profiles_ship() -> None:
    assert {path.name for path in SHIPPED} >= {"smollm2-135m", "smollm2-135m-32k"}


def moved(shipped: Profile, fresh: Profile) -> list[str]:
    """One line for everything that enters the identity and differs."""
    lines = []
    if shipped.model != fresh.model:
        lines.append(f"model: {shipped.model} -> {fresh.model}")
    prompts = [
        {(p.sha256, p.tokens) for p in each.calibration.prompts} for each in (shipped, fresh)
    ]
    lines += [f"prompt: {sha[:12]}, {tokens} tokens" for sha, tokens in prompts[0] ^ prompts[1]]
    for name in ("gamma", "block_size", "dtype", "seed", "chat_template", "sample_stride"):
        old, new = (getattr(each.calibration, name) for each in (shipped, fresh))
        if old != new:
            lines.append(f"{name}: {old} -> {new}")
    clusters = [{(c.members, c.anchor, c.enabled) for c in p.clusters} for p in (shipped, fresh)]
    lines += [f"cluster: {cluster}" for cluster in clusters[0] ^ clusters[1]]
    for old, new in zip(shipped.plan.heads, fresh.plan.heads, strict=True):
        if (old.assignment, old.gamma, old.lender) != (new.assignment, new.gamma, new.lender):
            lines.append(f"plan: {old} -> {new}")
    lines += [
        f"points: {a} -> {b}" for a, b in zip(shipped.points, fresh.points, strict=True) if a != b
    ]
    return lines


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_fresh_calibration_gives_the_shipped_profile(tmp_path: Path) -> None:
    shipped = load_profile(PROFILES / "smollm2-135m")
    settings, point = shipped.calibration, shipped.point("default")
    assert shipped.clustering is not None
    calibrate(
        CalibrationConfig(
            model=shipped.model_name,
            tasks=tuple(sorted({prompt.task for prompt in settings.prompts})),
            lengths=tuple(sorted({prompt.tokens for prompt in settings.prompts})),
            dtype=settings.dtype,
            device="cpu",
            block_size=settings.block_size,
            gamma=settings.gamma,
            seed=settings.seed,
            chat_template=settings.chat_template,
            sample_stride=settings.sample_stride,
            min_budget=point.min_budget,
        ),
        tmp_path / "run",
    )
    fresh = build_profile(
        tmp_path / "run",
        tmp_path / "profile",
        ClusterConfig(
            distance=shipped.clustering.threshold,
            min_cluster_size=shipped.clustering.min_cluster_size,
            enable=parse_enable(shipped.clustering.enable),
            recall_floor=shipped.plan.recall_floor,
            min_tokens=point.min_tokens,
        ),
        lambda done, total: None,
    )
    assert fresh.profile_id == shipped.profile_id, "moved:\n" + "\n".join(moved(shipped, fresh))
