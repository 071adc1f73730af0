"""Any valid profile survives profile.json unchanged, and keeps its identity."""

import dataclasses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint
from sp_runtime.profile import (
    SHAPE_KINDS,
    Calibration,
    Cluster,
    ClusterEvidence,
    ClusterSettings,
    FileRecord,
    HeadPatterns,
    HeadPlan,
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
    compute_profile_id,
    full_attention_heads,
    parse_profile,
    profile_to_json,
    with_profile_id,
)

sha256 = st.integers(0, (1 << 256) - 1).map(lambda number: f"{number:064x}")
text = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=8)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
threshold = st.floats(0.001, 1)
ratio = st.floats(0, 1)
cost = st.floats(0, 64)


@st.composite
def models(draw):
    kinds = st.sampled_from(["full_attention", "sliding_attention"])
    layer_types = draw(st.lists(kinds, min_size=1, max_size=3))
    kv_heads = draw(st.integers(1, 2))
    return ModelFingerprint(
        architecture=draw(text),
        model_type=draw(text),
        num_layers=len(layer_types),
        num_heads=kv_heads * draw(st.integers(1, 2)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 80, 128])),
        layer_types=tuple(layer_types),
        rope=draw(text),
        max_position_embeddings=draw(st.integers(1, 1 << 20)),
        config_sha256=draw(sha256),
        weights_sha256=draw(st.none() | sha256),
    )


@st.composite
def head_plans(draw, ref, earlier):
    lenders = [
        p.ref
        for p in earlier
        if p.assignment == "sampled" or (p.layer < ref.layer and p.assignment == "dense")
    ]
    kinds = ["dense", "vertical_slash", "query_aware", "streaming", "sampled"]
    kind = draw(st.sampled_from([*kinds, "borrow"] if lenders else kinds))
    return HeadPlan(
        layer=ref.layer,
        head=ref.head,
        assignment=kind,
        gamma=draw(threshold),
        window=draw(st.integers(1, 4096)) if kind == "streaming" else None,
        stride=draw(st.integers(1, 64)) if kind == "sampled" else None,
        lender=draw(st.sampled_from(lenders)) if kind == "borrow" else None,
        recall=draw(ratio),
        cost=draw(cost),
    )


@st.composite
def plans(draw, heads):
    chosen: list[HeadPlan] = []
    for head in heads:
        chosen.append(draw(head_plans(head, tuple(chosen))))
    return Plan(
        recall_floor=draw(ratio),
        heads=tuple(chosen),
        target_recall=draw(st.none() | threshold),
        min_length=draw(st.none() | st.integers(1, 1 << 20)),
    )


@st.composite
def clusterings(draw, heads):
    labels = draw(st.lists(st.integers(-1, 2), min_size=len(heads), max_size=len(heads)))
    clusters = []
    for label in sorted({*labels} - {-1}):
        members = tuple(head for head, of in zip(heads, labels, strict=True) if of == label)
        evidence = ClusterEvidence(
            jaccard_mean=draw(ratio),
            jaccard_core_mean=draw(ratio),
            recall_mean=draw(ratio),
            recall_p10=draw(ratio),
            lender_density=draw(cost),
            vertical_slash_density=draw(cost),
            saving=draw(st.floats(-64, 64)),
            reason=draw(text),
        )
        cluster = Cluster(
            id=label,
            members=members,
            anchor=draw(st.none() | st.sampled_from(members)),
            enabled=draw(st.booleans()),
            evidence=evidence,
        )
        clusters.append(cluster)
    return tuple(clusters)


@st.composite
def points(draw, plan_names):
    return OperatingPoint(
        method=(method := draw(st.sampled_from(METHODS))),
        rule=draw(st.sampled_from(RULES)),
        gamma=draw(threshold),
        tau=draw(threshold if method == "xattention" else st.floats(0, 2)),
        top_k=draw(st.just(2048) | st.integers(1, 1 << 20)),
        max_budget=draw(st.none() | st.integers(1024, 1 << 20)),
        drift=draw(st.none() | st.floats(0, 2)),
        drift_widen=draw(st.just(2.0) | st.floats(1, 64)),
        local_blocks=draw(st.integers(0, 2)),
        plan=draw(st.sampled_from(["", *plan_names])),
        min_tokens=draw(st.integers(1, 1 << 20)),
    )


@st.composite
def shapes(draw, ref):
    kind = draw(st.sampled_from(SHAPE_KINDS))
    return HeadShape(
        layer=ref.layer,
        head=ref.head,
        kind=kind,
        vertical=draw(st.integers(1, 1 << 20)),
        slash=0 if kind == "block_sparse" else draw(st.integers(1, 1 << 20)),
        score=draw(st.floats(0, 1)),
    )


@st.composite
def windows(draw, ref):
    return HeadWindow(
        layer=ref.layer,
        head=ref.head,
        alpha=draw(st.integers(1, 1 << 20)),
        beta=draw(st.integers(0, 1000)) / 1000,
        mass=draw(ratio),
    )


@st.composite
def head_patterns(draw, heads):
    table, wide = draw(st.booleans()), draw(st.booleans())
    return HeadPatterns(
        minference=ShapeTable(source=draw(text), heads=tuple(draw(shapes(ref)) for ref in heads))
        if table
        else None,
        moa=WindowTable(
            source=draw(text),
            density=draw(threshold),
            sink=draw(st.integers(0, 4096)),
            heads=tuple(draw(windows(ref)) for ref in heads),
        )
        if wide
        else None,
    )


@st.composite
def profiles(draw):
    model = draw(models())
    heads = full_attention_heads(model)
    more = draw(st.lists(name, max_size=2, unique=True)) if heads else []
    prompts = draw(
        st.lists(
            st.builds(PromptRecord, sha256=sha256, tokens=st.integers(1, 1 << 20), task=text),
            max_size=3,
            unique_by=lambda prompt: prompt.sha256,
        )
    )
    versions = draw(st.dictionaries(text, text, max_size=3))
    names = draw(st.lists(name, max_size=2, unique=True).map(lambda n: ["default", *n]))
    profile = Profile(
        producer=Producer(name=draw(text), version=draw(text)),
        model=model,
        model_name=draw(text),
        calibration=Calibration(
            prompts=tuple(prompts),
            gamma=draw(threshold),
            block_size=draw(st.sampled_from([64, 128])),
            dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
            seed=draw(st.integers(0, (1 << 53) - 1)),
            chat_template=draw(st.booleans()),
            sample_stride=draw(st.integers(1, 64)),
            versions=tuple(versions.items()),
            device=draw(text),
        ),
        clustering=draw(
            st.none()
            | st.builds(
                ClusterSettings,
                linkage=text,
                threshold=ratio,
                min_cluster_size=st.integers(1, 99),
                enable=text,
            )
        ),
        clusters=draw(clusterings(heads)),
        plan=draw(plans(heads if draw(st.integers(0, 3)) else ())),
        plans=tuple(NamedPlan(name=n, plan=draw(plans(heads))) for n in more),
        points=tuple(NamedPoint(name=n, point=draw(points(more))) for n in dict.fromkeys(names)),
        files=tuple(
            FileRecord(name=f"{n}.parquet", sha256=draw(sha256), bytes=draw(st.integers(0, 99)))
            for n in draw(st.lists(st.sampled_from("abc"), max_size=2, unique=True))
        ),
        head_patterns=draw(st.none() | head_patterns(heads)),
    )
    return with_profile_id(profile)


RELAXED = settings(
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@RELAXED
@given(profile=profiles())
def test_profile_json_round_trip(profile):
    written = profile_to_json(profile)
    found = parse_profile(written.encode("ascii"))
    assert found == profile
    assert profile_to_json(found) == written
    assert compute_profile_id(found) == profile.profile_id


@RELAXED
@given(profile=profiles(), data=st.data())
def test_identity_does_not_depend_on_order(profile, data):
    calibration = dataclasses.replace(
        profile.calibration, prompts=tuple(data.draw(st.permutations(profile.calibration.prompts)))
    )
    shuffled = dataclasses.replace(
        profile,
        calibration=calibration,
        clusters=tuple(data.draw(st.permutations(profile.clusters))),
        points=tuple(data.draw(st.permutations(profile.points))),
        plans=tuple(data.draw(st.permutations(profile.plans))),
    )
    assert compute_profile_id(shuffled) == profile.profile_id
