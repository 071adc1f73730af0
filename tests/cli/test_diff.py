"""`sp-profile diff`: identical, what moved, thresholds and exit codes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sp_cli.profile_main import cli
from sp_cli.runner import run as run_command

from sp_profile.artefact import write_profile
from sp_runtime.profile import (
    HeadRef,
    NamedPoint,
    Profile,
    load_profile,
    profile_to_json,
    with_profile_id,
)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "profile-1.0"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """call("diff", ...): `sp-profile` in this process, since a new one takes seconds to import."""

    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        code = run_command(cli, [str(word) for word in words], "sp-profile")
        found = capsys.readouterr()
        return Done(code, found.out, found.err)

    return run


@pytest.fixture
def write(examples: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """write(name, profile, density=...): a folder with its heads.parquet."""

    def write(name: str, profile: Profile, *, density: float = 0.3) -> Path:
        rows = [dataclasses.replace(r, density=density) for r in examples.head_rows(profile)]
        write_profile(tmp_path / name, profile, heads=rows)
        return tmp_path / name

    return write


def replaced(profile: Profile, **changes: Any) -> Profile:
    return with_profile_id(dataclasses.replace(profile, **changes))


def test_a_profile_is_identical_with_itself(call: Callable[..., Done]) -> None:
    done = call("diff", GOLDEN, GOLDEN / "profile.json", "--json")
    assert done.code == 0, done.err
    document = done.document()
    assert document["schema"] == "sp.diff"
    assert document["identical"]
    assert document["passed"]
    assert document["findings"] == []
    assert "identical" in call("diff", GOLDEN, GOLDEN).out


def test_equal_ids_are_identical_whatever_was_measured(
    call: Callable[..., Done], examples: ModuleType, write: Callable[..., Path]
) -> None:
    profile = examples.make_profile()
    done = call("diff", write("a", profile), write("b", profile, density=0.9))
    assert done.code == 0
    assert "identical" in done.out


def moved_profile(profile: Profile) -> Profile:
    """Head 2.1 joins cluster 0, whose anchor moves to 2.0; cluster 1 shares; 0.3 is dense."""
    first, second = profile.clusters
    first = dataclasses.replace(
        first,
        members=(HeadRef(0, 0), HeadRef(2, 0), HeadRef(2, 1), HeadRef(3, 0)),
        anchor=HeadRef(2, 0),
    )
    second = dataclasses.replace(second, members=(HeadRef(0, 1),), enabled=True)
    heads = tuple(
        dataclasses.replace(plan, assignment="dense", cost=1.0)
        if plan.ref == HeadRef(0, 3)
        else plan
        for plan in profile.plan.heads
    )
    plan = dataclasses.replace(profile.plan, heads=heads)
    return replaced(profile, clusters=(second, first), plan=plan)


def test_what_moved_is_named(
    call: Callable[..., Done], examples: ModuleType, write: Callable[..., Path]
) -> None:
    profile = examples.make_profile()
    a, b = write("a", profile), write("b", moved_profile(profile), density=0.35)
    done = call("diff", a, b, "--json")
    assert done.code == 5
    document = done.document()
    assert not document["passed"]
    clusters = document["clusters"]
    assert 0 < clusters["ari"] < 1
    assert [change["head"] for change in clusters["moved"]] == [[2, 1]]
    assert [(c["before"], c["after"]) for c in clusters["anchors"]] == [("0.0", "2.0")]
    assert [change["head"] for change in clusters["enabled"]] == [[0, 1], [2, 1]]
    (changed,) = document["plan"]["changed"]
    assert (changed["head"], changed["after"]) == ([0, 3], "dense gamma 0.9")
    assert document["density"]["mean_change"] == pytest.approx(0.05, abs=1e-6)
    found = {finding["measure"] for finding in document["findings"]}
    assert found == {
        *("clusters (ARI)", "heads moved", "anchors", "enabled heads"),
        *("plan", "predicted cost", "densities"),
    }
    text = call("diff", a, b)
    assert text.code == 5
    assert "7 findings" in text.err
    assert max(map(len, text.out.splitlines())) <= 80


def test_thresholds_let_it_pass(
    call: Callable[..., Done], examples: ModuleType, write: Callable[..., Path]
) -> None:
    profile = examples.make_profile()
    a, b = write("a", profile), write("b", moved_profile(profile), density=0.35)
    limits = {
        "--min-ari": "0.3",
        "--max-moved": "1",
        "--max-anchor-changes": "1",
        "--max-enabled-changes": "2",
        "--max-plan-changes": "0.1",
        "--max-cost-change": "0.1",
        "--max-density-change": "0.06",
    }
    words = [word for pair in limits.items() for word in pair]
    done = call("diff", a, b, *words)
    assert done.code == 0, done.out
    assert "within the limits" in done.out
    for option in limits:  # each of them is needed
        fewer = [word for name, value in limits.items() if name != option for word in (name, value)]
        assert call("diff", a, b, *fewer).code == 5, option


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", lambda p: {"model": dataclasses.replace(p.model, weights_sha256="e" * 64)}),
        (
            "prompts",
            lambda p: {
                "calibration": dataclasses.replace(p.calibration, prompts=p.calibration.prompts[:1])
            },
        ),
        ("settings", lambda p: {"calibration": dataclasses.replace(p.calibration, seed=9)}),
        ("settings", lambda p: {"clustering": None}),
        ("points", lambda p: {"points": p.points[:1]}),
        (
            "points",
            lambda p: {
                "points": (
                    NamedPoint(
                        name="default", point=dataclasses.replace(p.points[0].point, gamma=0.8)
                    ),
                    *p.points[1:],
                )
            },
        ),
    ],
)
def test_parts_are_held_against_it_unless_ignored(
    call: Callable[..., Done],
    examples: ModuleType,
    write: Callable[..., Path],
    part: str,
    change: Callable[[Profile], dict[str, Any]],
) -> None:
    profile = examples.make_profile()
    a, b = write("a", profile), write("b", replaced(profile, **change(profile)))
    done = call("diff", a, b, "--json")
    assert done.code == 5
    assert [finding["measure"] for finding in done.document()["findings"]] == [part]
    assert done.document()[part]
    assert call("diff", a, b, "--ignore", part).code == 0


def test_head_patterns_are_compared(
    call: Callable[..., Done], examples: ModuleType, write: Callable[..., Path]
) -> None:
    profile = examples.make_profile()
    patterns = examples.head_patterns(profile.model)
    windows = dataclasses.replace(patterns.moa, sink=128)
    one = replaced(profile, head_patterns=patterns)
    other = replaced(profile, head_patterns=dataclasses.replace(patterns, moa=windows))
    done = call("diff", write("a", one), write("b", other), "--json")
    assert done.code == 5
    assert len(done.document()["patterns"]) == 12
    assert "sink 128" in done.document()["patterns"][0]["after"]
    assert [finding["measure"] for finding in done.document()["findings"]] == ["patterns"]


def test_models_of_other_heads_are_said_to_be_so(call: Callable[..., Done]) -> None:
    shipped = TESTS.parent / "profiles" / "smollm2-135m"
    done = call("diff", GOLDEN, shipped, "--json", "--ignore", "model")
    assert done.code == 5
    assert done.document()["clusters"] is None
    assert "other heads" in done.document()["notes"][0]


def test_a_lost_plan_is_a_change(call: Callable[..., Done]) -> None:
    imported = GOLDEN.with_name("profile-1.0-imported")
    done = call("diff", GOLDEN, imported, "--json")
    assert done.code == 5
    assert done.document()["plan"]["share"] == 1.0
    assert "plan" in {finding["measure"] for finding in done.document()["findings"]}


def test_damage_and_absence_are_no_findings(call: Callable[..., Done], tmp_path: Path) -> None:
    assert call("diff", GOLDEN, tmp_path / "none").code == 2
    text = profile_to_json(load_profile(GOLDEN)).replace('"gamma": 0.9', '"gamma": 0.8', 1)
    (tmp_path / "profile.json").write_text(text)
    done = call("diff", GOLDEN, tmp_path, "--json")
    assert done.code == 4
    assert json.loads(done.out)["error"]["code"] == "CORRUPT_ARTEFACT"


@pytest.mark.parametrize(
    "words", [("--min-ari", "2"), ("--max-plan-changes", "-1"), ("--ignore", "everything")]
)
def test_impossible_limits_are_usage_errors(
    call: Callable[..., Done], words: tuple[str, str]
) -> None:
    assert call("diff", GOLDEN, GOLDEN, *words).code == 2
