"""Lists of methods as users write them, and the identity of cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from sp_profile.eval.cells import Cell
from sp_profile.eval.config import EvalConfig, merged
from sp_profile.eval.methods import MethodPlan, expand_methods
from sp_profile.eval.summary import name_methods
from sp_runtime.errors import UsageError
from sp_runtime.operating_point import OperatingPoint, default_point

PLAN = default_point("share", "plan")
DEFAULT = {"default": PLAN}
POINTS = {
    "": {
        "default": dataclasses.replace(PLAN, min_budget=256),
        "fast": dataclasses.replace(PLAN, min_tokens=4096),
        "paper": OperatingPoint(rule="paper", tau=0.3),
    },
    "r80": DEFAULT,
    "r95": DEFAULT,
}


def expand(text: str) -> tuple[MethodPlan, ...]:
    return expand_methods(text, samples=5, profile_points=POINTS)


def test_dense_comes_first_once_and_with_the_most_samples() -> None:
    plans = expand("vertical_slash@9, dense@2 ,streaming")
    assert [plan.label.split(":")[0] for plan in plans] == ["dense", "vertical_slash", "streaming"]
    assert [plan.samples for plan in plans] == [9, 9, 5]


def test_braces_are_every_combination() -> None:
    plans = expand("flexprefill:gamma={0.8,0.9}:min_budget={128,512}")[1:]
    settings = [(plan.point.gamma, plan.point.min_budget) for plan in plans]
    assert settings == [(0.8, 128), (0.8, 512), (0.9, 128), (0.9, 512)]
    assert {plan.family for plan in plans} == {"flexprefill"}
    assert len({plan.label for plan in plans}) == 4


def test_profiles_by_name_and_their_sweep() -> None:
    first, low, high = expand("plan,plan%{r80,r95}")[1:]
    assert (first.profile, first.family) == ("", "share:plan")
    assert (low.profile, high.profile) == ("r80", "r95")
    assert low.family == high.family == "share:plan%r"
    assert first.point.min_budget == 256


def test_operating_points_of_a_profile_by_name() -> None:
    fast, paper, wider = expand("point:{fast,paper},point:fast:min_tokens=9")[1:]
    assert fast.point == POINTS[""]["fast"]
    assert paper.point == POINTS[""]["paper"]
    assert wider.point == dataclasses.replace(fast.point, min_tokens=9)
    assert fast.family == wider.family == "share:plan"


def test_names_leave_out_what_most_of_a_kind_share() -> None:
    ours = "plan:plan={fast,balanced,safe},plan:plan=fast:last_rows=0"
    plans = expand(f"{ours},vertical_slash:gamma={{0.7,0.8}},sampled")
    assert [method.name for method in name_methods(plans)] == [
        *("dense", "share:plan plan=fast", "share:plan plan=balanced", "share:plan plan=safe"),
        *("share:plan plan=fast last_rows=0", "vertical_slash gamma=0.7"),
        *("vertical_slash gamma=0.8", "sampled"),
    ]


def test_the_plan_is_named_where_most_share_it_too() -> None:
    plans = expand("plan:plan=fast,plan:plan=fast:last_rows=0,plan:plan=balanced")
    assert [method.name for method in name_methods(plans)][1:] == [
        "share:plan plan=fast",
        "share:plan plan=fast last_rows=0",
        "share:plan plan=balanced",
    ]
    assert [method.name for method in name_methods(plans[:3])][1:] == [
        "share:plan last_rows=1",
        "share:plan last_rows=0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("point", "no operating point ''"),
        ("point:fst", "no operating point 'fst'"),
        ("point:fast%r80", "no operating point 'fast'"),
        ("point:fast:window=3", "window"),
        ("", "no methods"),
        ("vertical_slash:gamma={0.8", "unbalanced"),
        ("vertical_slash:gamma={}", "empty value"),
        ("vertical_slash@0", "0 samples"),
        ("vertical_slash,vertical_slash@2", "5 and 2 samples"),
        ("plan%other", "no profile 'other'"),
        ("vertical_slash:gama=0.9", "gama"),
        ("flexprefil", "flexprefil"),
        ("flexprefill:min_budget={" + ",".join(map(str, range(1, 600))) + "}", "more than 512"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(text)


def test_sharing_needs_a_profile() -> None:
    with pytest.raises(UsageError, match="needs a profile"):
        expand_methods("plan", samples=1, profile_points={})


def test_cells_are_named_by_everything_that_changes_them() -> None:
    plan = expand("vertical_slash")[1]
    cell = Cell(method=plan, task="vt", length=1024)
    others = [
        Cell(method=plan, task="cwe", length=1024),
        Cell(method=plan, task="vt", length=2048),
        *(
            Cell(method=dataclasses.replace(plan, **change), task="vt", length=1024)
            for change in (
                {"samples": 6},
                {"profile": "r80"},
                {"point": dataclasses.replace(plan.point, gamma=0.91)},
            )
        ),
    ]
    assert len({cell.id, *(other.id for other in others)}) == 6
    again = Cell(method=expand("vertical_slash")[1], task="vt", length=1024)
    assert again.id == cell.id


def test_long_lengths_come_first_and_dense_before_its_pairs(
    make_config: Callable[..., EvalConfig],
) -> None:
    config = make_config("vertical_slash,streaming", tasks=("vt", "cwe"), lengths=(1024, 2048))
    cells = config.cells()
    assert [cell.length for cell in cells] == [2048] * 6 + [1024] * 6
    assert [cell.method.label for cell in cells[::3]] == ["dense"] * 4


def test_methods_on_few_prompts_come_after_all_others(
    make_config: Callable[..., EvalConfig],
) -> None:
    config = make_config("streaming@2,vertical_slash", tasks=("vt", "cwe"), lengths=(1024, 2048))
    cells = config.cells()
    assert [cell.method.samples for cell in cells] == [4] * 8 + [2] * 4
    assert [cell.length for cell in cells] == [2048] * 4 + [1024] * 4 + [2048] * 2 + [1024] * 2


def test_an_equal_configuration_resumes_and_another_is_named(
    make_config: Callable[..., EvalConfig],
) -> None:
    stored = make_config()
    assert merged(stored, make_config(), extend=False) == stored
    with pytest.raises(UsageError, match="seed: 0, 1"):
        merged(stored, make_config(seed=1), extend=True)


@pytest.mark.parametrize(
    "change",
    [{"methods": "streaming"}, {"samples": 9}, {"tasks": ("cwe",)}, {"lengths": (2048,)}],
    ids=["methods", "samples", "tasks", "lengths"],
)
def test_growth_must_be_asked_for(
    make_config: Callable[..., EvalConfig], change: dict[str, object]
) -> None:
    stored, asked = make_config(), make_config(**change)
    with pytest.raises(UsageError) as refused:
        merged(stored, asked, extend=False)
    assert "--extend" in (refused.value.hint or "")
    united = merged(stored, asked, extend=True)
    assert set(united.cells()) > set(stored.cells())
    assert merged(united, stored, extend=True) == united


def test_the_larger_number_of_samples_is_reported(make_config: Callable[..., EvalConfig]) -> None:
    united = merged(make_config(samples=4), make_config(samples=9), extend=True)
    assert [plan.samples for plan in united.reported] == [9, 9]
    assert len(united.methods) == 4


def test_an_ablation_is_no_point_of_the_sweep() -> None:
    plans = expand_methods(
        "sampled:gamma={0.8,0.9},sampled:stride={1,32},plan,plan:local_blocks=0:drift=0.3",
        samples=2,
        profile_points={"": {}},
    )
    assert [plan.family for plan in plans[1:]] == [
        *("sampled", "sampled", "sampled:stride=1", "sampled:stride=32"),
        *("share:plan", "share:plan:local_blocks=0"),
    ]
