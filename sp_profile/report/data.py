"""From a profile, and maybe its run and an evaluation, to what a report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sp_profile.artefact import read_heads, read_masks, read_similarity
from sp_profile.curves import recall_density
from sp_profile.eval.folder import SUMMARY_NAME
from sp_profile.eval.results import EvalSummary, make_summary, read_summary
from sp_profile.report.data_gallery import choose_prompts, gallery_prompt
from sp_profile.report.data_similarity import SpreadOverPrompts, dendrogram
from sp_profile.report.data_types import GalleryPrompt, ReportData, SpreadGroup
from sp_profile.run_folder import Run, open_run
from sp_profile.shard import PromptShard
from sp_profile.tables import (
    HEADS_NAME,
    MASKS_NAME,
    SIMILARITY_NAME,
    HeadRow,
    SimilarityColumns,
)
from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.fingerprint import ModelFingerprint, compare
from sp_runtime.profile import PROFILE_NAME, Profile, load_profile

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""


def load_report_data(
    folder: Path,
    run: Path | None = None,
    evaluation: Path | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ReportData:
    """Everything that can be shown of a profile's folder, a run's and an evaluation's.

    texts: of prompts by sha256; shown beside the gallery.
    Raises UsageError (no profile, run or evaluation there, an unfinished run),
    ProfileMismatchError where run or evaluation are of another model, CorruptArtefactError.
    """
    folder = folder.parent if folder.name == PROFILE_NAME else folder
    profile = load_profile(folder)
    opened = None if run is None else _open_run(run, profile)
    summary = None if evaluation is None else _summary(evaluation, profile)
    tables = {record.name for record in profile.files}
    heads: tuple[HeadRow, ...] = ()
    if HEADS_NAME in tables:
        heads = tuple(HeadRow(**row) for row in read_heads(folder, profile).to_pylist())
    similarity = read_similarity(folder, profile) if SIMILARITY_NAME in tables else None
    gallery: tuple[GalleryPrompt, ...] = ()
    spread: tuple[SpreadGroup, ...] = ()
    if MASKS_NAME in tables:
        gallery, spread = _from_masks(
            folder, profile, similarity, opened, texts or {}, progress or (lambda done, total: None)
        )
    return ReportData(
        profile=profile,
        heads=heads,
        similarity=similarity,
        dendrogram=None if similarity is None else dendrogram(similarity, len(profile.plan.heads)),
        gallery=gallery,
        spread=spread,
        curves=None if run is None else recall_density(run),
        evaluation=summary,
        has_run=run is not None,
    )


def _from_masks(
    folder: Path,
    profile: Profile,
    similarity: SimilarityColumns | None,
    run: Run | None,
    texts: Mapping[str, str],
    progress: Progress,
) -> tuple[tuple[GalleryPrompt, ...], tuple[SpreadGroup, ...]]:
    """One pass over masks.parquet, a prompt in memory at a time."""
    prompts = {prompt.sha256: prompt for prompt in profile.calibration.prompts}
    chosen = choose_prompts(profile.calibration.prompts)
    shards = _shards(run, {prompt.sha256 for prompt in chosen})
    spread = None if similarity is None else SpreadOverPrompts(profile, similarity)
    pictures: dict[str, GalleryPrompt] = {}
    progress(0, len(prompts))
    for number, rows in enumerate(read_masks(folder, profile), start=1):
        prompt = prompts[rows[0].prompt_sha256]
        if prompt in chosen:
            pictures[prompt.sha256] = gallery_prompt(
                prompt,
                rows,
                profile,
                shard=shards.get(prompt.sha256),
                text=texts.get(prompt.sha256),
            )
        if spread is not None:
            spread.add(rows)
        progress(number, len(prompts))
    return (
        tuple(pictures[prompt.sha256] for prompt in chosen),
        () if spread is None else spread.result(),
    )


def _open_run(path: Path, profile: Profile) -> Run:
    run = open_run(path)
    _require_same_model(run.fingerprint, profile, f"{path} is a run")
    missing = {p.sha256 for p in profile.calibration.prompts} - {e.unit for e in run.entries}
    if missing:
        raise UsageError(
            f"{path} is not the run that the profile was made from: it has not "
            f"{len(missing)} of the profile's prompts",
            hint="give the folder that `sp-profile cluster` read",
        )
    return run


def _shards(run: Run | None, wanted: set[str]) -> dict[str, PromptShard]:
    if run is None:
        return {}
    return {s.prompt.sha256: s for s in run.shards() if s.prompt.sha256 in wanted}


def _summary(path: Path, profile: Profile) -> EvalSummary:
    """The stored summary, or one made now of what is finished."""
    stored = path if path.name == SUMMARY_NAME else path / SUMMARY_NAME
    summary = read_summary(stored) if stored.exists() else make_summary(path)
    _require_same_model(summary.config.fingerprint, profile, f"{path} is an evaluation")
    return summary


def _require_same_model(found: ModelFingerprint, profile: Profile, what: str) -> None:
    differing = sorted({difference.field for difference in compare(profile.model, found)})
    if differing:
        raise ProfileMismatchError(
            f"{what} of another model than the profile's, {profile.model_name}: they differ in "
            f"{', '.join(differing)}",
            hint="give a run and an evaluation of the profile's model",
        )
