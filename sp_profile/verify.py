"""`sp-profile verify`: a profile's folder, and with a model what the profile does to it."""

from __future__ import annotations

from pathlib import Path

from sp_profile.consistency import check_folder
from sp_profile.verify_types import Check, ModelCheck, ModelCheckConfig, VerifyLimits, VerifyReport
from sp_runtime.profile import PROFILE_NAME, Profile
from sp_runtime.profile_source import SIGNATURE_NAME

__all__ = [
    "ModelCheckConfig",
    "VerifyLimits",
    "VerifyReport",
    "judge_model",
    "verify_folder",
]


def verify_folder(path: Path, profile: Profile, *, signed: bool | None = None) -> VerifyReport:
    """Check everything that lies in a profile's folder (or beside its profile.json).

    signed: what the report shall say of the signature; None: it was not looked at.
    Raises CorruptArtefactError for what no reader would accept: damage, hashes, ranges.
    """
    folder = path.parent if path.name == PROFILE_NAME else path
    heads = len(profile.plan.heads)
    said = f"version {profile.schema_version}, {heads} planned heads, {len(profile.points)} points"
    checks = [Check(name=PROFILE_NAME, passed=True, detail=said)]
    if signed:
        checks.append(Check(name=SIGNATURE_NAME, passed=True, detail="of this profile and key"))
    checks += check_folder(folder, profile)
    return VerifyReport(
        profile_id=profile.profile_id, signed=signed, checks=tuple(checks), model=None
    )


def judge_model(found: ModelCheck, limits: VerifyLimits) -> tuple[Check, ...]:
    """Hold what a model check found against the limits."""
    prompts = found.prompts
    kl = sum(prompt.kl_mean for prompt in prompts) / len(prompts)
    top1 = sum(prompt.top1 for prompt in prompts) / len(prompts)
    dense = [prompt for prompt in prompts if prompt.dense_right]
    lost = [prompt for prompt in dense if not prompt.sparse_right]
    right = sum(prompt.sparse_right for prompt in prompts)
    checks = [
        Check(
            name="agreement: KL",
            passed=kl <= limits.max_kl,
            detail=f"{kl:.4f} nats, at most {limits.max_kl:g}",
        ),
        Check(
            name="agreement: top-1",
            passed=top1 >= limits.min_top1,
            detail=f"{100 * top1:.1f} %, at least {100 * limits.min_top1:g} %",
        ),
        Check(
            name="answers",
            passed=len(lost) <= limits.max_answers_lost * len(dense),
            detail=f"{len(dense)} right dense, {right} right sparse, {len(lost)} lost of "
            f"{len(prompts)}",
        ),
    ]
    if found.recall_floor is not None:
        checks.append(_recall(found, found.recall_floor, limits))
    return tuple(checks)


def _recall(found: ModelCheck, floor: float, limits: VerifyLimits) -> Check:
    bound = floor - limits.recall_slack
    under = [head for head in found.recall if head.recall < bound]
    mean = sum(head.recall for head in found.recall) / len(found.recall)
    worst = min(found.recall, key=lambda head: head.recall)
    return Check(
        name="recall of the plan",
        passed=len(under) <= limits.max_heads_under * len(found.recall),
        detail=f"mean {mean:.3f} for a floor of {floor:g}; {len(under)} of {len(found.recall)} "
        f"heads under {bound:g}; lowest {worst.recall:.3f} at {worst.head.layer}.{worst.head.head}",
    )
