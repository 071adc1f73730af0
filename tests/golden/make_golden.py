"""Writes golden profiles: `python tests/golden/make_golden.py tests/golden/profile-X.Y`.

Run once for every released version of the schema, before the release; what is committed is never
written again, since it stands for the profiles in the world. Every part of the format occurs: all
assignments, methods, kinds of head patterns, a sliding-window layer, clusters with and without an
anchor. The tables agree with each other, so that `sp-profile verify` finds nothing. A second one,
profile-X.Y-imported, has neither a plan nor tables, and a third, profile-X.Y-plans, has named plans
and the settings of points that came with them; `make_golden.py TARGET plans` writes it alone.
Afterwards the first was signed (`sp-profile sign`) with a key whose public half is minisign.pub;
the secret half was thrown away.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from sp_profile.artefact import write_profile
from sp_profile.similarity import Similarity, SimilarityAccumulator
from sp_profile.tables import HeadRow, MaskRow, SimilarityColumns
from sp_runtime.operating_point import METHODS, OperatingPoint
from sp_runtime.profile import Cluster, NamedPoint, Profile, PromptRecord, with_profile_id

BLOCK_ROWS = (17, 16)
MEASURES = {"mean": "mean", "min": "minimum", "spread": "std", "core_mean": "core_mean"}


def load_examples() -> ModuleType:
    path = Path(__file__).parents[1] / "profile_examples.py"
    spec = importlib.util.spec_from_file_location("profile_examples", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["profile_examples"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    examples = load_examples()
    profile = golden_profile(examples)
    target = Path(sys.argv[1])
    planned = target.with_name(f"{target.name}-plans")
    print(planned, write_profile(planned, planned_profile(examples)).profile_id)
    if sys.argv[2:] == ["plans"]:
        return
    masks = golden_masks(profile)
    similarity, density = measure(profile, masks)
    profile = with_evidence(profile, similarity)
    rows = golden_rows(examples, profile, similarity, density)
    pairs = np.triu_indices(len(rows), 1)
    columns = {
        name: getattr(similarity, field)[pairs].astype(np.float32)
        for name, field in MEASURES.items()
    }
    published = write_profile(
        target,
        profile,
        heads=rows,
        similarity=SimilarityColumns(**columns),
        masks=mask_rows(profile, masks),
    )
    print(target, published.profile_id)
    imported = target.with_name(f"{target.name}-imported")
    print(imported, write_profile(imported, imported_profile(profile)).profile_id)


def golden_profile(examples: ModuleType) -> Profile:
    base = examples.make_profile()
    prompts = tuple(
        dataclasses.replace(prompt, tokens=rows * base.calibration.block_size - 7 * number)
        for number, (prompt, rows) in enumerate(
            zip(base.calibration.prompts, BLOCK_ROWS, strict=True)
        )
    )
    short = PromptRecord(sha256="c" * 64, tokens=200, task="short")
    points = (
        *base.points,
        *(
            NamedPoint(name=method, point=OperatingPoint(method=method, top_k=1024, last_rows=2))
            for method in METHODS
        ),
        NamedPoint(name="release", point=OperatingPoint(rule="release", slash_cover="one")),
    )
    return with_profile_id(
        dataclasses.replace(
            base,
            calibration=dataclasses.replace(base.calibration, prompts=(*prompts, short)),
            points=points,
            head_patterns=examples.head_patterns(base.model),
        )
    )


def imported_profile(profile: Profile) -> Profile:
    """The clusters and head patterns of the other one, and nothing measured."""
    return dataclasses.replace(
        profile,
        calibration=dataclasses.replace(profile.calibration, prompts=(), versions=()),
        clustering=None,
        plan=dataclasses.replace(profile.plan, heads=()),
    )


def planned_profile(examples: ModuleType) -> Profile:
    """Named plans, a borrower of its own layer, and points that name plans; no tables."""
    profile = examples.with_named_plans(examples.make_profile())
    guarded = dataclasses.replace(profile.point("safe"), drift=0.25, drift_widen=1.5)
    points = tuple(
        dataclasses.replace(named, point=guarded) if named.name == "safe" else named
        for named in profile.points
    )
    return with_profile_id(dataclasses.replace(profile, points=points))


def golden_masks(profile: Profile) -> dict[str, np.ndarray]:
    """bool [heads, T] of each prompt: the heads of a cluster differ in few blocks."""
    rng = np.random.default_rng(2505_19578)
    owner = profile.clusters_by_head()
    masks = {}
    for prompt in profile.calibration.prompts:
        n = -(-prompt.tokens // profile.calibration.block_size)
        common = rng.random((3, n * (n + 1) // 2)) < 0.3
        masks[prompt.sha256] = np.stack(
            [
                common[owner[plan.ref].id if plan.ref in owner else 2]
                ^ (rng.random(n * (n + 1) // 2) < 0.1)
                for plan in profile.plan.heads
            ]
        )
    return masks


def measure(profile: Profile, masks: dict[str, np.ndarray]) -> tuple[Similarity, np.ndarray]:
    """Over the prompts with 16 block rows or more, as a calibration does it."""
    heads = len(profile.plan.heads)
    similarity, densities = SimilarityAccumulator(heads), []
    for prompt in profile.calibration.prompts:
        n = -(-prompt.tokens // profile.calibration.block_size)
        bits = masks[prompt.sha256]
        if similarity.add(np.packbits(bits, axis=1), n, prompt.task):
            rows, cols = np.tril_indices(n)
            densities.append((bits | (cols == 0) | (rows == cols)).mean(1))
    return similarity.result(), np.mean(densities, axis=0)


def with_evidence(profile: Profile, similarity: Similarity) -> Profile:
    index = {plan.ref: number for number, plan in enumerate(profile.plan.heads)}

    def renewed(cluster: Cluster) -> Cluster:
        members = [index[member] for member in cluster.members]
        pairs = [(a, b) for n, a in enumerate(members) for b in members[n + 1 :]]
        evidence = dataclasses.replace(
            cluster.evidence,
            jaccard_mean=float(np.mean([similarity.mean[pair] for pair in pairs])),
            jaccard_core_mean=float(np.mean([similarity.core_mean[pair] for pair in pairs])),
        )
        return dataclasses.replace(cluster, evidence=evidence)

    return dataclasses.replace(profile, clusters=tuple(map(renewed, profile.clusters)))


def golden_rows(
    examples: ModuleType, profile: Profile, similarity: Similarity, density: np.ndarray
) -> list[HeadRow]:
    index = {plan.ref: number for number, plan in enumerate(profile.plan.heads)}
    owner = profile.clusters_by_head()
    rows = []
    for number, row in enumerate(examples.head_rows(profile)):
        cluster = owner.get(profile.plan.heads[number].ref)
        jaccard = -1.0
        if cluster is not None and cluster.anchor is not None:
            jaccard = float(similarity.mean[number, index[cluster.anchor]])
        rows.append(
            dataclasses.replace(row, density=float(density[number]), jaccard_anchor=jaccard)
        )
    return rows


def mask_rows(profile: Profile, masks: dict[str, np.ndarray]) -> Iterator[MaskRow]:
    for prompt in sorted(profile.calibration.prompts, key=lambda prompt: prompt.sha256):
        bits = masks[prompt.sha256]
        for plan, packed in zip(profile.plan.heads, np.packbits(bits, axis=1), strict=True):
            yield MaskRow(
                prompt_sha256=prompt.sha256,
                layer=plan.layer,
                head=plan.head,
                tokens=prompt.tokens,
                blocks=bits.shape[1],
                bits=packed.tobytes(),
            )


if __name__ == "__main__":
    main()
