"""Published files as profiles: SharePrefill's clusters and MInference's patterns, strictly read.

Formats: SharePrefill's file is `{"clusters": {id: [[layer, head], ...]}, "shared_clusters": [id]}`;
MInference's is a list over layers of `{head: [type, v, s, score]}`. Both are bounded JSON without
duplicate keys or NaN, and every head in them is a head of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from sp_runtime.errors import (
    CorruptArtefactError,
    ProfileMismatchError,
    UnsupportedError,
    UsageError,
)
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import default_point
from sp_runtime.profile import (
    DEFAULT_POINT,
    Calibration,
    Cluster,
    ClusterEvidence,
    HeadPatterns,
    HeadRef,
    HeadShape,
    NamedPoint,
    Plan,
    Producer,
    Profile,
    ShapeTable,
    full_attention_heads,
    with_profile_id,
)
from sp_runtime.profile_rules import MAX_SCORE, MAX_TOKENS
from sp_runtime.profile_types import ShapeKind
from sp_runtime.strict_json import parse, read_bytes, shown
from sp_runtime.version import __version__

ImportKind = Literal["shareprefill", "minference"]

BLOCK_SIZE = 128  # of both authors' runs
GAMMA = 0.9
_NOISE = -1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
# What the authors' code computes for a block-sparse head, whatever sizes the file gives.
_BLOCK_SPARSE_TOKENS = 100 * 64
_SHAPES: dict[str, ShapeKind] = {
    "stream_llm": "a_shape",
    "vertical_and_slash": "vertical_slash",
    "block_sparse": "block_sparse",
}
_NOTHING_MEASURED = (
    "nothing was measured: no block masks, no similarity, no recall",
    "no plan: rule plan is refused",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A published file as a profile. found: what it holds; lacks: what it does not, for people."""

    profile: Profile
    kind: ImportKind
    found: tuple[str, ...]
    lacks: tuple[str, ...]


def import_file(
    file: Path,
    *,
    model: ModelFingerprint,
    model_name: str,
    kind: ImportKind | None = None,
    block_size: int = BLOCK_SIZE,
) -> Imported:
    """Read a published file for a model.

    kind: None tells the two formats apart by their outermost bracket.
    Raises UsageError (no file, wrong kind), CorruptArtefactError naming the place in the file,
    ProfileMismatchError where it is of another model, UnsupportedError for a pattern of another
    method.
    """
    try:
        document = parse(read_bytes(file), str(file))
    except FileNotFoundError as error:
        raise UsageError(f"no file {shown(str(file))}", hint="give a published file") from error
    found = "shareprefill" if isinstance(document, dict) else "minference"
    if kind is not None and kind != found:
        brackets = "an object" if isinstance(document, dict) else "no object"
        raise UsageError(
            f"{file} is {brackets}, so it is no {kind} file", hint="leave --kind out, or change it"
        )
    reader = _Reader(str(file), model)
    if found == "shareprefill":
        return _shareprefill(reader, document, model_name, block_size)
    return _minference(reader, document, model_name, block_size)


def _shareprefill(reader: _Reader, document: object, model_name: str, block_size: int) -> Imported:
    clusters = reader.clusters(document)
    enabled = [cluster for cluster in clusters if cluster.enabled]
    clustered = sum(len(cluster.members) for cluster in clusters)
    heads = len(full_attention_heads(reader.model))
    points = (
        NamedPoint(name=DEFAULT_POINT, point=default_point("share", "release")),
        NamedPoint(name="release", point=default_point("share", "release")),
        NamedPoint(name="paper", point=default_point("share", "paper")),
        NamedPoint(name="vertical_slash", point=default_point("vertical_slash")),
    )
    profile = _profile(reader.model, model_name, block_size, points, clusters=clusters)
    return Imported(
        profile=profile,
        kind="shareprefill",
        found=(
            f"{len(clusters)} clusters hold {clustered} of {heads} heads",
            f"{len(enabled)} enabled for sharing, with "
            f"{sum(len(cluster.members) for cluster in enabled)} heads",
        ),
        lacks=(*_NOTHING_MEASURED, "no evidence and no anchors: clusters share as published"),
    )


def _minference(reader: _Reader, document: object, model_name: str, block_size: int) -> Imported:
    heads = reader.shapes(document)
    counts: dict[str, int] = {}
    for head in heads:
        name = f"{head.kind} ({head.vertical}, {head.slash})"
        counts[name] = counts.get(name, 0) + 1
    points = (
        NamedPoint(name=DEFAULT_POINT, point=default_point("minference")),
        NamedPoint(name="vertical_slash", point=default_point("vertical_slash")),
    )
    table = ShapeTable(source="imported", heads=heads)
    profile = _profile(
        reader.model, model_name, block_size, points, patterns=HeadPatterns(minference=table)
    )
    found = tuple(f"{count} heads {name}" for name, count in sorted(counts.items()))
    return Imported(
        profile=profile,
        kind="minference",
        found=found,
        lacks=(*_NOTHING_MEASURED, "no clusters: method share has nothing to share"),
    )


def _profile(
    model: ModelFingerprint,
    model_name: str,
    block_size: int,
    points: tuple[NamedPoint, ...],
    *,
    clusters: tuple[Cluster, ...] = (),
    patterns: HeadPatterns | None = None,
) -> Profile:
    profile = Profile(
        producer=Producer(name="sp-profile import", version=__version__),
        model=model,
        model_name=model_name,
        calibration=Calibration(
            prompts=(),
            gamma=GAMMA,
            block_size=block_size,
            dtype="bfloat16",
            seed=0,
            chat_template=False,
            sample_stride=8,
        ),
        clusters=clusters,
        plan=Plan(recall_floor=0.0, heads=()),
        points=points,
        head_patterns=patterns,
    )
    return with_profile_id(profile)


class _Reader:
    """Checks a document against its format and the model; `name` starts every message."""

    def __init__(self, name: str, model: ModelFingerprint) -> None:
        self._name = name
        self.model = model
        self._heads = frozenset(full_attention_heads(model))

    def clusters(self, document: object) -> tuple[Cluster, ...]:
        """SharePrefill's clusters, ascending by id; cluster -1 is noise and left out."""
        if not isinstance(document, dict) or set(document) != {"clusters", "shared_clusters"}:
            raise self._corrupt("document", "expected clusters and shared_clusters, nothing else")
        listed, shared = document["clusters"], document["shared_clusters"]
        if not isinstance(listed, dict):
            raise self._corrupt("clusters", f"expected an object, found {shown(listed)}")
        owner: dict[HeadRef, int] = {}
        members: dict[int, tuple[HeadRef, ...]] = {}
        for key, heads in listed.items():
            number = _NOISE if key == str(_NOISE) else self._number(key, f"clusters {shown(key)}")
            members[number] = self._members(heads, number, owner)
        enabled = self._shared(shared, {*members} - {_NOISE})
        return tuple(
            Cluster(
                id=number,
                members=members[number],
                anchor=None,
                enabled=number in enabled,
                evidence=_no_evidence(number in enabled),
            )
            for number in sorted({*members} - {_NOISE})
        )

    def shapes(self, document: object) -> tuple[HeadShape, ...]:
        """MInference's patterns of every full-attention head."""
        layers, heads = self.model.num_layers, self.model.num_heads
        if not isinstance(document, list):
            raise self._corrupt("document", f"expected a list of layers, found {shown(document)}")
        if len(document) != layers:
            raise self._mismatch(f"has {len(document)} layers, the model {layers}")
        found: list[HeadShape] = []
        for layer, entries in enumerate(document):
            if not isinstance(entries, dict):
                raise self._corrupt(f"layer {layer}", f"expected heads, found {shown(entries)}")
            given = {self._number(key, f"layer {layer}"): entry for key, entry in entries.items()}
            if set(given) != set(range(heads)):
                raise self._mismatch(
                    f"layer {layer} has {len(given)} heads, up to {max(given, default=0)}; the "
                    f"model has {heads}"
                )
            found += [
                self._shape(HeadRef(layer, head), given[head])
                for head in range(heads)
                if HeadRef(layer, head) in self._heads
            ]
        return tuple(found)

    def _members(
        self, heads: object, number: int, owner: dict[HeadRef, int]
    ) -> tuple[HeadRef, ...]:
        place = f"clusters {number}"
        if not isinstance(heads, list) or not heads:
            raise self._corrupt(place, f"expected a list of heads, found {shown(heads)}")
        for ref in self._refs(heads, place):
            if ref in owner:
                raise self._corrupt(place, f"{list(ref)} is in cluster {owner[ref]} as well")
            owner[ref] = number
        return tuple(sorted(ref for ref, of in owner.items() if of == number))

    def _refs(self, heads: list[object], place: str) -> Iterator[HeadRef]:
        for head in heads:
            if not isinstance(head, list) or len(head) != 2 or not all(map(_is_count, head)):
                raise self._corrupt(place, f"expected [layer, head], found {shown(head)}")
            ref = HeadRef(*head)
            if ref not in self._heads:
                raise self._mismatch(
                    f"{place}: {head} is no full-attention head of the model, which has "
                    f"{self.model.num_layers} layers of {self.model.num_heads} heads"
                )
            yield ref

    def _shared(self, shared: object, known: set[int]) -> set[int]:
        """The published file writes these numbers as text, as it must its keys."""
        if not isinstance(shared, list):
            raise self._corrupt("shared_clusters", f"expected numbers, found {shown(shared)}")
        numbers = [
            self._number(each, "shared_clusters") if isinstance(each, str) else each
            for each in shared
        ]
        if not all(map(_is_count, numbers)):
            raise self._corrupt("shared_clusters", f"expected numbers, found {shown(shared)}")
        unknown = sorted(set(numbers) - known)
        if unknown or len(set(numbers)) != len(numbers):
            problem = f"there is no cluster {unknown[0]}" if unknown else "a number appears twice"
            raise self._corrupt("shared_clusters", problem)
        return set(numbers)

    def _shape(self, ref: HeadRef, entry: object) -> HeadShape:
        place = f"layer {ref.layer}, head {ref.head}"
        if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[0], str):
            raise self._corrupt(place, f"expected [type, v, s, score], found {shown(entry)}")
        kind, vertical, slash, score = entry
        if kind.startswith("flex"):
            raise UnsupportedError(
                f"{self._name}: {place}: {shown(kind)} is FlexPrefill, which has no fixed sizes",
                hint="use method flexprefill, which needs no file",
            )
        if kind not in _SHAPES:
            raise self._corrupt(place, f"unknown pattern {shown(kind)}")
        if not all(_is_count(size) and 1 <= size <= MAX_TOKENS for size in (vertical, slash)):
            raise self._corrupt(place, f"sizes {shown([vertical, slash])} are no token counts")
        if not _is_number(score) or not 0 <= score <= MAX_SCORE:
            raise self._corrupt(place, f"score {shown(score)} is not in [0, {MAX_SCORE:g}]")
        sparse = kind == "block_sparse"
        return HeadShape(
            layer=ref.layer,
            head=ref.head,
            kind=_SHAPES[kind],
            vertical=_BLOCK_SPARSE_TOKENS if sparse else vertical,
            slash=0 if sparse else slash,
            score=float(score),
        )

    def _number(self, key: str, place: str) -> int:
        if _NUMBER.fullmatch(key) is None:
            raise self._corrupt(place, f"{shown(key)} is no number of a cluster or head")
        return int(key)

    def _corrupt(self, place: str, problem: str) -> CorruptArtefactError:
        return CorruptArtefactError(f"{self._name}: {place}: {problem}")

    def _mismatch(self, problem: str) -> ProfileMismatchError:
        return ProfileMismatchError(
            f"{self._name}: {problem}", hint="import it for the model that it was made for"
        )


def _no_evidence(enabled: bool) -> ClusterEvidence:
    return ClusterEvidence(
        jaccard_mean=0.0,
        jaccard_core_mean=0.0,
        recall_mean=0.0,
        recall_p10=0.0,
        lender_density=0.0,
        vertical_slash_density=0.0,
        saving=0.0,
        reason="shared as published" if enabled else "not shared as published",
    )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
