"""The profile of one model: reading it strictly, writing it as JSON, and its identity."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re

from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile_rules import PROFILE_NAME, check_profile
from sp_runtime.profile_source import find_profile
from sp_runtime.profile_types import (
    ASSIGNMENTS,
    DEFAULT_POINT,
    LENDING,
    SCHEMA,
    SCHEMA_VERSION,
    SHAPE_KINDS,
    Assignment,
    Calibration,
    Cluster,
    ClusterEvidence,
    ClusterSettings,
    FileRecord,
    HeadPatterns,
    HeadPlan,
    HeadRef,
    HeadShape,
    HeadWindow,
    NamedPlan,
    NamedPoint,
    Plan,
    Producer,
    Profile,
    PromptRecord,
    ShapeTable,
    WindowTable,
    full_attention_heads,
)
from sp_runtime.strict_json import decode, encode, encode_pretty, parse, plain, read_bytes, shown

__all__ = [
    "ASSIGNMENTS",
    "DEFAULT_POINT",
    "LENDING",
    "PROFILE_NAME",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SHAPE_KINDS",
    "Assignment",
    "Calibration",
    "Cluster",
    "ClusterEvidence",
    "ClusterSettings",
    "FileRecord",
    "HeadPatterns",
    "HeadPlan",
    "HeadRef",
    "HeadShape",
    "HeadWindow",
    "NamedPlan",
    "NamedPoint",
    "Plan",
    "Producer",
    "Profile",
    "PromptRecord",
    "ShapeTable",
    "WindowTable",
    "compute_profile_id",
    "full_attention_heads",
    "load_profile",
    "parse_profile",
    "profile_to_json",
    "with_profile_id",
]

_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")
_MAJOR, _MINOR = (int(part) for part in SCHEMA_VERSION.split("."))
_CHECKSUM = "checksum"
_STEPS = 1000  # identity holds floats rounded to 1e-3


def load_profile(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Profile:
    """Read a profile's folder, its profile.json, or that of a Hugging Face Hub repository.

    name: a local path, or `owner/name[@revision]` (see `profile_source.find_profile`), which needs
        huggingface_hub; a path is read with the standard library alone.
    revision, subfolder: of the repository.

    Raises UsageError where there is no profile, CorruptArtefactError naming file and field where
    it is damaged, altered or of an unknown major version.

    >>> load_profile("profiles/smollm2-135m").model.num_layers
    30
    """
    file = find_profile(name, revision=revision, subfolder=subfolder)
    try:
        return parse_profile(read_bytes(file), str(file))
    except FileNotFoundError as error:
        raise UsageError(
            f"no profile at {shown(str(name))}",
            hint=f"give a folder that holds {PROFILE_NAME}; `sp-profile cluster` writes one",
        ) from error


def parse_profile(data: bytes, name: str = PROFILE_NAME) -> Profile:
    """The profile in these bytes; `name` starts every message. Raises CorruptArtefactError."""
    document = parse(data, name)
    if not isinstance(document, dict):
        raise CorruptArtefactError(f"{name}: document: expected an object")
    newer = _check_version(document, name)
    checksum = document.pop(_CHECKSUM, None)
    found = _sha256(encode(document))
    profile = decode(Profile, document, name, ignore_unknown=newer)
    check_profile(profile, name)
    computed = compute_profile_id(profile)
    if profile.profile_id != computed:
        raise CorruptArtefactError(
            f"{name}: profile_id: {profile.profile_id} does not match the content, {computed}",
            hint="the profile has been altered; make it anew with `sp-profile cluster`",
        )
    if checksum != found:
        raise CorruptArtefactError(
            f"{name}: {_CHECKSUM}: {shown(checksum)} does not match the content, {found}",
            hint="the profile has been altered; make it anew with `sp-profile cluster`",
        )
    return profile


def profile_to_json(profile: Profile) -> str:
    """profile.json as text: the profile's fields in order, then a checksum over all of them."""
    document = plain(profile)
    document[_CHECKSUM] = _sha256(encode(document))
    return encode_pretty(document)


def with_profile_id(profile: Profile) -> Profile:
    """The same profile with its identity filled in."""
    return dataclasses.replace(profile, profile_id=compute_profile_id(profile))


def compute_profile_id(profile: Profile) -> str:
    """sha256 of what the profile says and of what it was measured with, floats rounded to 1e-3.

    In: model fingerprint, prompt hashes with token counts, settings with the dtype, clusters
    (members, anchor, enabled), plans with lenders, operating points, head patterns where there are
    any. Out: names, versions, device, producer, files and everything that was measured. The order
    of prompts, clusters, points and named plans does not count. A minor version of the schema never
    adds to this: a field that came later enters only where it is not at its default.
    """
    calibration = profile.calibration
    later: dict[str, float] = {}
    if calibration.local_blocks:
        later["local_blocks"] = calibration.local_blocks
    if calibration.row_slack != 1:
        later["row_slack"] = calibration.row_slack
    content: dict[str, object] = {
        "schema": f"{SCHEMA}/{_MAJOR}",
        "model": dataclasses.asdict(profile.model),
        "prompts": sorted((prompt.sha256, prompt.tokens) for prompt in calibration.prompts),
        "settings": {
            "gamma": calibration.gamma,
            "block_size": calibration.block_size,
            "dtype": calibration.dtype,
            "seed": calibration.seed,
            "chat_template": calibration.chat_template,
            "sample_stride": calibration.sample_stride,
            **later,
            "clustering": profile.clustering and dataclasses.asdict(profile.clustering),
        },
        "clusters": sorted(
            ([*cluster.members], cluster.anchor or (), cluster.enabled)
            for cluster in profile.clusters
        ),
        "plan": _plan(profile.plan),
        "points": {named.name: plain(named.point) for named in profile.points},
    }
    if profile.head_patterns is not None:
        content["head_patterns"] = _head_patterns(profile.head_patterns)
    if profile.plans:
        content["plans"] = {named.name: _plan(named.plan) for named in profile.plans}
    return _sha256(encode(_rounded(content)))


def _plan(plan: Plan) -> dict[str, object]:
    content: dict[str, object] = {
        "recall_floor": plan.recall_floor,
        "heads": [
            (*head.ref, head.assignment, head.gamma, head.window, head.stride, head.lender)
            for head in sorted(plan.heads, key=lambda head: head.ref)
        ],
    }
    later = {"target_recall": plan.target_recall, "min_length": plan.min_length}
    return content | {name: value for name, value in later.items() if value is not None}


def _head_patterns(patterns: HeadPatterns) -> dict[str, object]:
    shapes, windows = patterns.minference, patterns.moa
    return {
        "minference": shapes
        and [(*head.ref, head.kind, head.vertical, head.slash) for head in shapes.heads],
        "moa": windows
        and (windows.sink, [(*head.ref, head.alpha, head.beta) for head in windows.heads]),
    }


def _check_version(document: dict[str, object], name: str) -> bool:
    """Whether the document is of a newer minor version, whose unknown fields are ignored."""
    if document.get("schema") != SCHEMA:
        raise CorruptArtefactError(
            f"{name}: schema: expected {SCHEMA!r}, found {shown(document.get('schema'))}"
        )
    version = document.get("schema_version")
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise CorruptArtefactError(f"{name}: schema_version: {shown(version)} is no version")
    major, minor = int(match[1]), int(match[2])
    if major != _MAJOR:
        raise CorruptArtefactError(
            f"{name}: schema_version: {version} is not supported, this release reads {_MAJOR}.x",
            hint="upgrade sparse-prefill" if major > _MAJOR else "make the profile anew",
        )
    return minor > _MINOR


def _rounded(value: object) -> object:
    """Numbers as whole thousandths, so that no spelling of a number enters the hash."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return round(value * _STEPS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()
