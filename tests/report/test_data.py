"""What a report shows is what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sp_profile.artefact import read_masks, read_similarity, write_profile
from sp_profile.report.data import load_report_data
from sp_profile.report.data_gallery import anchor_indices, choose_prompts, mask_pictures
from sp_profile.report.data_similarity import cluster_labels
from sp_profile.report.data_types import ReportData
from sp_profile.run_folder import open_run
from sp_profile.similarity import pairwise_jaccard
from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.profile import PromptRecord, load_profile


def unpacked(bits: bytes, rows: int) -> np.ndarray:
    """bool [R, R] of a stored mask."""
    mask = np.zeros((rows, rows), dtype=bool)
    lower = np.tril_indices(rows)
    mask[lower] = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(lower[0])).astype(bool)
    return mask


def test_pictures_are_shares_of_blocks() -> None:
    rows = 70
    mask = np.tril(np.random.default_rng(1).random((rows, rows)) < 0.3)
    packed = np.packbits(mask[np.tril_indices(rows)])[None]
    (found,) = mask_pictures(packed, rows)
    causal = np.tril(np.ones((rows, rows), dtype=bool))
    place = np.arange(rows) * 32 // rows
    for i, j in ((0, 0), (5, 3), (31, 31), (31, 0), (16, 15)):
        cell = np.ix_(place == i, place == j)
        assert found[i, j] == round(255 * mask[cell].sum() / causal[cell].sum())
    assert found[3, 9] == 0


def test_the_gallery_holds_every_head_beside_its_anchor(data: ReportData, measured) -> None:
    profile = data.profile
    anchors = anchor_indices(profile)
    assert (anchors >= 0).any()
    assert len(data.gallery) == 3
    assert [p.prompt.tokens for p in data.gallery] == sorted(p.prompt.tokens for p in data.gallery)
    stored = {rows[0].prompt_sha256: rows for rows in read_masks(measured.profile, profile)}
    shards = {shard.prompt.sha256: shard for shard in open_run(measured.run).shards()}
    for shown in data.gallery:
        rows = -(-shown.prompt.tokens // profile.calibration.block_size)
        masks = [unpacked(row.bits, rows) for row in stored[shown.prompt.sha256]]
        shard = shards[shown.prompt.sha256]
        assert shown.side == min(rows, 32)
        assert shown.mass is not None
        assert shown.recall_anchor is not None
        for head, mask in enumerate(masks):
            assert shown.density[head] == pytest.approx(mask.sum() / (rows * (rows + 1) / 2))
            anchor = int(anchors[head])
            if anchor < 0:
                assert np.isnan(shown.jaccard_anchor[head])
                assert np.isnan(shown.recall_anchor[head])
                continue
            both, either = mask & masks[anchor], mask | masks[anchor]
            assert shown.jaccard_anchor[head] == pytest.approx(both.sum() / either.sum())
            recall = shard.recall_exact[head, anchor]
            assert (
                np.isnan(shown.recall_anchor[head])
                if recall < 0
                else (shown.recall_anchor[head] == recall)
            )


def test_mass_is_a_distribution_in_every_row(data: ReportData) -> None:
    for shown in data.gallery:
        assert shown.mass is not None
        rows = ((shown.mass / 255.0) ** 2).sum(-1)
        np.testing.assert_allclose(rows, 1, atol=0.08)  # eight bits of a square root


def test_clusters_stand_together_in_the_dendrogram(data: ReportData) -> None:
    assert data.dendrogram is not None
    order = data.dendrogram.order
    assert sorted(order.tolist()) == list(range(len(data.refs)))
    labels = cluster_labels(data.profile)[order]
    for cluster in data.profile.clusters:
        places = np.flatnonzero(labels == cluster.id)
        assert (np.diff(places) == 1).all()
    assert data.dendrogram.x.shape == data.dendrogram.y.shape == (len(order) - 1, 4)


def test_the_spread_is_of_the_stored_masks(data: ReportData, measured) -> None:
    profile = load_profile(measured.profile)
    mean = read_similarity(measured.profile, profile).mean
    count = len(profile.calibration.prompts)
    pairs = np.triu_indices(len(data.refs), 1)
    singles = [group for group in data.spread if group.kind == "prompt"]
    assert len(singles) == count
    found = {}
    for rows in read_masks(measured.profile, profile):
        packed = np.frombuffer(b"".join(row.bits for row in rows), np.uint8)
        tiles = -(-rows[0].tokens // profile.calibration.block_size)
        found[f", {rows[0].tokens:,}"] = pairwise_jaccard(
            packed.reshape(len(rows), -1), tiles
        ).full[pairs]
    assert len(found) == count  # no two are of equal length
    np.testing.assert_allclose(np.mean(list(found.values()), 0), mean, atol=1e-5)
    for group in singles:
        (mine,) = (value for key, value in found.items() if group.label.endswith(key))
        rest = np.mean([v for key, v in found.items() if not group.label.endswith(key)], 0)
        assert group.all.median == pytest.approx(
            np.quantile(mine, 0.5, method="inverted_cdf"), abs=1e-3
        )
        assert group.correlation == pytest.approx(np.corrcoef(mine, rest)[0, 1], abs=1e-4)
    tasks = [group for group in data.spread if group.kind == "task"]
    assert [group.prompts for group in tasks] == [2, 2]


def test_prompts_of_the_gallery_differ_in_length_and_task() -> None:
    prompts = [
        PromptRecord(sha256=f"{number:02x}" * 32, tokens=tokens, task=task)
        for number, (tokens, task) in enumerate(
            (tokens, task) for tokens in (4096, 16384, 65536) for task in ("a", "b", "c")
        )
    ]
    for order in (prompts, prompts[::-1]):
        chosen = choose_prompts(order)
        assert [prompt.tokens for prompt in chosen] == [4096, 16384, 65536]
        assert {prompt.task for prompt in chosen} == {"a", "b", "c"}
    assert choose_prompts(prompts[:2]) == tuple(prompts[:2])
    assert choose_prompts(()) == ()


def test_without_a_run_there_is_no_mass_and_no_curve(measured) -> None:
    alone = load_report_data(measured.profile / "profile.json")
    assert alone.gallery
    assert all(shown.mass is None and shown.recall_anchor is None for shown in alone.gallery)
    assert (alone.curves, alone.evaluation, alone.has_run) == (None, None, False)


def test_an_imported_profile_has_nothing_measured(examples: ModuleType, tmp_path: Path) -> None:
    profile = examples.make_profile()
    calibration = dataclasses.replace(profile.calibration, prompts=())
    bare = dataclasses.replace(
        profile,
        calibration=calibration,
        clustering=None,
        plan=dataclasses.replace(profile.plan, heads=()),
    )
    write_profile(tmp_path / "p", bare)
    found = load_report_data(tmp_path / "p")
    assert (found.heads, found.similarity, found.dendrogram) == ((), None, None)
    assert (found.gallery, found.spread) == ((), ())
    assert len(found.refs) == 12


@pytest.mark.parametrize("what", ["run", "evaluation"])
def test_another_models_measurements_are_refused(
    measured, examples: ModuleType, tmp_path: Path, what: str
) -> None:
    write_profile(tmp_path / "p", examples.make_profile())
    with pytest.raises(ProfileMismatchError, match="another model"):
        load_report_data(tmp_path / "p", **{what: getattr(measured, what)})


def test_another_run_of_the_model_is_refused(
    measured, tmp_path: Path, make_data: Callable[..., ReportData]
) -> None:
    profile = load_profile(measured.profile)
    other = PromptRecord(sha256="f" * 64, tokens=1500)
    prompts = (*profile.calibration.prompts, other)
    changed = dataclasses.replace(
        profile, calibration=dataclasses.replace(profile.calibration, prompts=prompts)
    )
    write_profile(tmp_path / "p", changed)
    with pytest.raises(UsageError, match="not the run that the profile was made from"):
        load_report_data(tmp_path / "p", measured.run)
