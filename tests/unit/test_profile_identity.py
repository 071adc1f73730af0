"""The identity of a profile: what it tells apart, and what it does not see."""

import dataclasses

import pytest

from sp_runtime.profile import (
    HeadRef,
    PromptRecord,
    compute_profile_id,
    with_profile_id,
)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: {"model_name": "other/name"}, id="name"),
        pytest.param(
            lambda p: {"producer": dataclasses.replace(p.producer, version="9")}, id="producer"
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, device="NVIDIA H100")},
            id="device",
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, versions=())},
            id="versions",
        ),
        pytest.param(
            lambda p: {
                "calibration": dataclasses.replace(
                    p.calibration, prompts=p.calibration.prompts[::-1]
                )
            },
            id="prompt-order",
        ),
        pytest.param(lambda p: {"clusters": p.clusters[::-1]}, id="cluster-order"),
        pytest.param(
            lambda p: {
                "clusters": tuple(
                    dataclasses.replace(
                        c, id=c.id + 7, evidence=dataclasses.replace(c.evidence, saving=0.5)
                    )
                    for c in p.clusters
                )
            },
            id="cluster-labels-and-evidence",
        ),
        pytest.param(lambda p: {"points": p.points[::-1]}, id="point-order"),
        pytest.param(
            lambda p: {
                "plan": dataclasses.replace(
                    p.plan,
                    recall_floor=p.plan.recall_floor + 1e-5,
                    heads=tuple(dataclasses.replace(h, recall=0.5, cost=0.7) for h in p.plan.heads),
                )
            },
            id="measured-and-rounding",
        ),
    ],
)
def test_identity_ignores(examples, change):
    profile = examples.make_profile()
    assert compute_profile_id(dataclasses.replace(profile, **change(profile))) == profile.profile_id


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda p: {"model": dataclasses.replace(p.model, weights_sha256=None)}, id="weights"
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, dtype="bfloat16")},
            id="dtype",
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, gamma=0.901)}, id="gamma"
        ),
        pytest.param(
            lambda p: {
                "calibration": dataclasses.replace(
                    p.calibration, prompts=(PromptRecord(sha256="a" * 64, tokens=301),)
                )
            },
            id="prompts",
        ),
        pytest.param(
            lambda p: {
                "clusters": (dataclasses.replace(p.clusters[0], enabled=False), p.clusters[1])
            },
            id="enabled",
        ),
        pytest.param(
            lambda p: {
                "clusters": (dataclasses.replace(p.clusters[0], anchor=None), p.clusters[1])
            },
            id="anchor",
        ),
        pytest.param(
            lambda p: {
                "plan": dataclasses.replace(
                    p.plan,
                    heads=tuple(
                        dataclasses.replace(h, lender=h.lender and HeadRef(0, 0))
                        for h in p.plan.heads
                    ),
                )
            },
            id="lender",
        ),
        pytest.param(lambda p: {"points": p.points[:1]}, id="points"),
    ],
)
def test_identity_holds(examples, change):
    profile = examples.make_profile()
    assert compute_profile_id(dataclasses.replace(profile, **change(profile))) != profile.profile_id


def test_identity_is_frozen(examples):
    # Profiles in the world carry ids of this form: a change here orphans all of them.
    assert examples.make_profile().profile_id == (
        "f219c5ddfc98711405d75cc65b20a725e07f832676eeb05447e08d025cee3455"
    )


def test_id_is_filled_in(examples):
    profile = dataclasses.replace(examples.make_profile(), profile_id="")
    assert with_profile_id(profile) == examples.make_profile()
