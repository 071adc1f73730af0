"""From a run folder to a profile: similarity, clusters, evidence, per-head plan, artefact.

Three passes over the shards, one shard in memory at a time: means and similarities; the spread of
what the clusters and the plan then depend on; the masks, copied into the artefact. Every sum is
exact, so the order of the prompts changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sp_profile.accumulators import ExactMean, Histogram
from sp_profile.artefact import FOLDER_NAMES, write_profile
from sp_profile.cluster_types import BuiltProfile, ClusterConfig, ClusterReport, Progress
from sp_profile.clustering import (
    Clustering,
    Ints,
    choose_anchor,
    cluster_heads,
    first_lender,
    served_by,
)
from sp_profile.evidence import (
    EvidenceInputs,
    SharingCase,
    cluster_evidence,
    decide,
    sharing_case,
)
from sp_profile.folder_swap import require_replaceable
from sp_profile.head_rows import HeadMeasurements, head_rows, similarity_columns
from sp_profile.measure import MeanMeasurements, ShardMeans
from sp_profile.plan_data import PlanTables, TableBuilder
from sp_profile.plan_types import PlanSettings, PlanSummary
from sp_profile.planning import make_plan
from sp_profile.points import PointSettings, named_points
from sp_profile.run_folder import Run, open_run
from sp_profile.shard import PromptShard
from sp_profile.similarity import MIN_BLOCK_ROWS, Similarity, SimilarityAccumulator
from sp_profile.tables import MaskRow
from sp_runtime.errors import UsageError
from sp_runtime.profile import (
    PROFILE_NAME,
    Calibration,
    Cluster,
    ClusterSettings,
    HeadRef,
    Plan,
    Producer,
    Profile,
    PromptRecord,
    full_attention_heads,
)
from sp_runtime.version import __version__

LINKAGE = "average"

__all__ = [
    "BuiltProfile",
    "ClusterConfig",
    "ClusterReport",
    "Progress",
    "build_profile",
    "build_with_report",
]


def build_profile(
    run_path: str | Path,
    output: str | Path,
    config: ClusterConfig,
    progress: Progress | None = None,
) -> Profile:
    """`build_with_report` for callers that want the profile alone."""
    return build_with_report(run_path, output, config, progress).profile


def build_with_report(
    run_path: str | Path,
    output: str | Path,
    config: ClusterConfig,
    progress: Progress | None = None,
) -> BuiltProfile:
    """Make the profile of a finished run and publish it as the folder `output`.

    Raises UsageError (no or an unfinished run, prompts all too short, an output that exists),
    CorruptArtefactError (a damaged run), ResourceError (no space).
    """
    # The writer checks this too, but only after minutes of work.
    require_replaceable(Path(output), FOLDER_NAMES, PROFILE_NAME, overwrite=config.overwrite)
    run = open_run(run_path)
    builder = _Builder(run, config, progress or (lambda done, total: None))
    return builder.build(Path(output))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Means:
    """What the first pass leaves."""

    similarity: Similarity
    measured: MeanMeasurements
    tables: PlanTables
    heads: HeadMeasurements


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spread:
    """What the second pass leaves: recall_p10 by cluster, thresholds where they were asked for."""

    recall_p10: tuple[float, ...]
    points: PointSettings


class _Builder:
    """One build: the run, its heads, and the steps done."""

    def __init__(self, run: Run, config: ClusterConfig, progress: Progress) -> None:
        self._run = run
        self._config = config
        self._progress = progress
        self._steps = 0
        self._refs = full_attention_heads(run.fingerprint)
        self._layers = np.array([ref.layer for ref in self._refs], dtype=np.int32)
        done = {entry.unit for entry in run.entries if entry.state == "done"}
        self._prompts = tuple(p for p in run.config.prompts if p.sha256 in done)
        self._entering = tuple(
            p for p in self._prompts if -(-p.tokens // run.config.block_size) >= MIN_BLOCK_ROWS
        )
        if not self._entering:
            least = (MIN_BLOCK_ROWS - 1) * run.config.block_size + 1
            raise UsageError(
                f"no prompt of {run.path} has {MIN_BLOCK_ROWS} block rows, so heads cannot be "
                "compared",
                hint=f"calibrate on prompts of at least {least} tokens",
            )

    def build(self, output: Path) -> BuiltProfile:
        """All three passes."""
        config = self._config
        self._progress(0, self._total)
        means = self._first_pass()
        clustering = cluster_heads(
            means.similarity.mean,
            distance=config.distance,
            min_cluster_size=config.min_cluster_size,
        )
        anchors = [
            choose_anchor(members, self._layers, means.similarity.mean)
            for members in clustering.members
        ]
        firsts = [first_lender(members, self._layers) for members in clustering.members]
        lenders = firsts if config.lender == "first" else anchors
        planned = make_plan(means.tables, self._plan_settings())
        plan, summary = planned.plan, planned.summary
        spread = self._second_pass(clustering, lenders, plan)
        clusters = self._clusters(means, clustering, anchors, lenders, spread)
        profile = self._profile(clusters, plan, spread.points)
        profile = write_profile(
            output,
            profile,
            heads=head_rows(profile, means.heads, means.measured, means.similarity),
            similarity=similarity_columns(means.similarity),
            masks=self._mask_rows(),
            settings=config.settings,
            overwrite=config.overwrite,
        )
        report = ClusterReport(
            prompts=len(self._entering),
            short=len(self._prompts) - len(self._entering),
            task_correlation=means.similarity.task_correlation(),
            length_correlation=means.similarity.length_correlation(),
            clustered=int((clustering.labels >= 0).sum()),
            clusters=len(clusters),
            enabled=sum(cluster.enabled for cluster in clusters),
            plan=summary,
            notes=self._notes(clusters, summary),
        )
        return BuiltProfile(profile=profile, report=report)

    @property
    def _total(self) -> int:
        return 2 * len(self._entering) + len(self._prompts)

    def _shards(self, prompts: tuple[PromptRecord, ...]) -> Iterator[PromptShard]:
        """The shards of some prompts, counting a step after each."""
        wanted = {prompt.sha256 for prompt in prompts}
        for shard in self._run.shards():
            if shard.prompt.sha256 in wanted:
                yield shard
                self._steps += 1
                self._progress(self._steps, self._total)

    def _first_pass(self) -> _Means:
        heads = len(self._refs)
        similarity = SimilarityAccumulator(heads, device=self._config.device)
        means = ShardMeans()
        tables = TableBuilder(self._run.config)
        density = ExactMean((heads,), spread=True)
        uniform = ExactMean((heads,))
        longest = max(prompt.tokens for prompt in self._entering)
        least = self._config.min_length
        if longest < least:
            raise UsageError(
                f"no prompt of {self._run.path} has {least} tokens, the longest has {longest}",
                hint="lower the minimum length, or calibrate on longer prompts",
            )
        for shard in self._shards(self._entering):
            similarity.add(shard.masks, shard.grid.num_rows, shard.prompt.task)
            means.add(shard)
            if shard.prompt.tokens >= least:
                tables.add(shard)
            density.add(shard.density)
            uniform.add(shard.uniform_jsd)
        return _Means(
            similarity=similarity.result(),
            measured=means.result(),
            tables=tables.result(),
            heads=HeadMeasurements(
                density=density.mean(),
                density_std=density.std(),
                uniform_jsd=uniform.mean(),
                gamma=self._run.config.gamma,
                candidates=self._run.config.candidates,
            ),
        )

    def _second_pass(
        self, clustering: Clustering, lenders: list[int | None], plan: Plan
    ) -> _Spread:
        """Percentiles need the single prompts' values, so they wait until the lenders are known."""
        config = self._config
        served = [
            () if lender is None else served_by(lender, members, self._layers)
            for members, lender in zip(clustering.members, lenders, strict=True)
        ]
        members = np.array([head for heads in served for head in heads], dtype=np.int32)
        sources = np.repeat(
            [-1 if lender is None else lender for lender in lenders], [len(s) for s in served]
        ).astype(np.int32)
        borrowers, givers = self._borrowings(plan)
        recall = Histogram(len(served))
        distances = Histogram(3)  # uniform_jsd; a_hat_jsd within clusters; and of borrowings
        for shard in self._shards(self._entering):
            for number, lender in enumerate(lenders):
                if lender is not None:
                    recall.add(number, shard.recall_exact[list(served[number]), lender])
            distances.add(0, shard.uniform_jsd)
            distances.add(1, shard.a_hat_jsd[members, sources])
            distances.add(2, shard.a_hat_jsd[borrowers, givers])

        def threshold(group: int, q: float | None, values: int) -> float | None:
            return None if q is None or not values else distances.quantile(group, q)

        drift = threshold(2, config.drift_quantile, len(borrowers))
        return _Spread(
            recall_p10=tuple(recall.quantile(number, 0.1) for number in range(len(served))),
            points=PointSettings(
                drift=None if drift is None else round(drift + config.drift_margin, 6),
                delta=threshold(0, config.delta_quantile, len(self._refs)),
                tau=threshold(1, config.tau_quantile, len(members)),
                min_tokens=config.min_tokens,
            ),
        )

    def _borrowings(self, plan: Plan) -> tuple[Ints, Ints]:
        """int32 [E] each: borrowers and their lenders, as head indices."""
        index = {ref: number for number, ref in enumerate(self._refs)}
        pairs = [
            (index[head.ref], index[head.lender]) for head in plan.heads if head.lender is not None
        ]
        edges = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        return edges[:, 0], edges[:, 1]

    def _plan_settings(self) -> PlanSettings:
        config = self._config
        return PlanSettings(
            target_recall=config.target_recall,
            recall_floor=config.recall_floor,
            tail_gain=config.tail_gain,
            kind_prices=config.kind_prices,
            without=config.without,
            min_length=config.min_length,
            lending=config.lending,
            same_layer=config.same_layer,
            guarded=config.drift_quantile is not None,
        )

    def _clusters(
        self,
        means: _Means,
        clustering: Clustering,
        anchors: list[int | None],
        lenders: list[int | None],
        spread: _Spread,
    ) -> tuple[Cluster, ...]:
        inputs = self._evidence_inputs(means)
        cases: list[SharingCase] = [
            sharing_case(members, lender, inputs)
            for members, lender in zip(clustering.members, lenders, strict=True)
        ]
        verdicts = decide(cases, self._config.enable, self._config.recall_target)

        def ref(head: int | None) -> HeadRef | None:
            return None if head is None else self._refs[head]

        return tuple(
            Cluster(
                id=number,
                members=tuple(self._refs[head] for head in members),
                anchor=ref(anchors[number]),
                enabled=verdicts[number].enabled,
                evidence=cluster_evidence(
                    members, cases[number], verdicts[number], spread.recall_p10[number], inputs
                ),
            )
            for number, members in enumerate(clustering.members)
        )

    def _evidence_inputs(self, means: _Means) -> EvidenceInputs:
        measured = means.measured
        columns = means.tables.columns("vertical_slash")
        return EvidenceInputs(
            layers=self._layers,
            similarity=means.similarity,
            recall_exact=measured.recall_exact,
            density=measured.density,
            vertical_slash_cost=measured.candidate_cost[:, columns],
            vertical_slash_recall=measured.candidate_recall[:, columns],
            row_estimate=measured.row_estimate,
        )

    def _profile(self, clusters: tuple[Cluster, ...], plan: Plan, points: PointSettings) -> Profile:
        run = self._run.config
        return Profile(
            producer=Producer(name="sp-profile", version=__version__),
            model=run.fingerprint,
            model_name=run.model,
            calibration=Calibration(
                prompts=self._prompts,
                gamma=run.gamma,
                block_size=run.block_size,
                dtype=run.dtype,
                seed=run.seed,
                chat_template=run.chat_template,
                sample_stride=run.sample_stride,
                local_blocks=run.settings.local_blocks,
                row_slack=run.settings.row_slack,
                versions=run.versions,
                device=run.device,
                quarantined=len(self._run.quarantined),
                trust_remote_code=run.trust_remote_code,
            ),
            clustering=ClusterSettings(
                linkage=LINKAGE,
                threshold=self._config.distance,
                min_cluster_size=self._config.min_cluster_size,
                enable=str(self._config.enable),
            ),
            clusters=clusters,
            plan=plan,
            points=named_points(run, points),
        )

    def _mask_rows(self) -> Iterator[MaskRow]:
        for shard in self._shards(self._prompts):
            for ref, bits in zip(self._refs, shard.masks, strict=True):
                yield MaskRow(
                    prompt_sha256=shard.prompt.sha256,
                    layer=ref.layer,
                    head=ref.head,
                    tokens=shard.prompt.tokens,
                    blocks=shard.num_blocks,
                    bits=bits.tobytes(),
                )

    def _notes(self, clusters: tuple[Cluster, ...], summary: PlanSummary) -> tuple[str, ...]:
        notes = [*summary.notes]
        short = len(self._prompts) - len(self._entering)
        if short:
            notes.append(
                f"{short} prompts have under {MIN_BLOCK_ROWS} block rows and were left out"
            )
        if not clusters:
            notes.append(
                f"no {self._config.min_cluster_size} heads are alike within distance "
                f"{self._config.distance:g}: there is nothing to share"
            )
        elif not any(cluster.enabled for cluster in clusters):
            notes.append(
                "no cluster is enabled, so the published rules run vertical-slash alone: "
                + "; ".join(f"cluster {c.id} {c.evidence.reason}" for c in clusters)
            )
        return tuple(notes)
