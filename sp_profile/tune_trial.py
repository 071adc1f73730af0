"""Candidate plans on the evaluation's prompts, paired with dense attention."""

from __future__ import annotations

from pathlib import Path

from sp_profile.artefact import write_profile
from sp_profile.eval.request import EvalRequest
from sp_profile.eval.results import EvalSummary, make_summary, store_results
from sp_profile.eval.runner import evaluate
from sp_profile.eval.statistics import Estimate
from sp_profile.eval.summary import LengthSummary
from sp_profile.tune_types import Measured, Progress, Trial
from sp_runtime.errors import UnsupportedError
from sp_runtime.profile import Profile

CANDIDATES, EVALUATION = "candidates", "eval"


def evaluate_candidates(
    candidates: Profile,
    names: tuple[str, ...],
    lengths: tuple[int, ...],
    trial: Trial,
    progress: Progress,
) -> dict[str, Measured]:
    """The loss of each operating point of `candidates` named; the folder keeps the evaluation.

    Raises what an evaluation raises, among it UsageError where a prompt is a calibration prompt,
    and UnsupportedError where a cell could not be computed.
    """
    folder = trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    profile = write_profile(folder / CANDIDATES, candidates, overwrite=True)
    request = EvalRequest(
        model=trial.model,
        revision=trial.revision,
        trust_remote_code=trial.trust_remote_code,
        profiles=(("", folder / CANDIDATES),),
        methods=",".join(f"point:{name}" for name in names),
        tasks=trial.tasks,
        lengths=lengths,
        samples=trial.samples,
        seed=trial.seed,
        dtype=trial.dtype,
        device=trial.device,
        kernels=trial.kernels,
        chat_template=trial.chat_template,
        timed=False,
        workers=trial.workers,
    )
    evaluate(request, folder / EVALUATION, progress)
    summary = make_summary(folder / EVALUATION)
    store_results(folder / EVALUATION, summary)
    for failure in summary.overview.failed:
        raise UnsupportedError(
            f"{failure.method} on {failure.task} at {failure.length}: {failure.reason}",
            hint="try --dtype bfloat16 or float32",
        )
    labels = {method.point: method.label for method in summary.overview.methods}
    return {name: _measured(summary, labels[profile.point(name)]) for name in names}


def _measured(summary: EvalSummary, label: str) -> Measured:
    row = _whole(summary, label)
    assert row.difference is not None
    mean, low, high = (-100 * value for value in _ends(row.difference))
    return Measured(
        loss=Estimate(mean=mean, low=high, high=low),
        density=row.density,
        estimation=row.estimation,
        prompts=row.prompts,
    )


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.mean, estimate.low, estimate.high


def _whole(summary: EvalSummary, label: str) -> LengthSummary:
    """The method over all lengths; with one length alone there is no such row but that length's."""
    rows = [row for row in summary.overview.lengths if row.method == label]
    return next((row for row in rows if row.length is None), rows[0])


def trial_folder(target: Path) -> Path:
    """Where the evaluation for the profile `target` is kept."""
    return target.with_name(f"{target.name}.trial")
