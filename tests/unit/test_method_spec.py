"""Methods as texts: what is read, what is refused, and that labels read back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.errors import UsageError
from sp_runtime.method_spec import (
    fields_of,
    method_label,
    method_name,
    parse_method,
    with_method,
)
from sp_runtime.operating_point import (
    METHODS,
    PLAIN_NAME,
    RULES,
    OperatingPoint,
    default_point,
)

PROFILE_POINT = OperatingPoint(
    min_budget=128,
    min_tokens=512,
    gamma=0.85,
    drift=0.3,
    local_blocks=1,
    last_rows=1,
    row_slack=2.0,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plan", OperatingPoint(local_blocks=1, last_rows=1, row_slack=2.0)),
        ("share", OperatingPoint(local_blocks=1, last_rows=1, row_slack=2.0)),
        ("share:release", OperatingPoint(rule="release", tau=0.5)),
        (" share:paper:tau=0.1 ", OperatingPoint(rule="paper", tau=0.1)),
        ("flexprefill", OperatingPoint(method="flexprefill", gamma=0.95)),
        (
            "flexprefill:gamma=0.9:max_budget=4096",
            OperatingPoint(method="flexprefill", gamma=0.9, max_budget=4096),
        ),
        ("xattention", OperatingPoint(method="xattention", tau=0.9, stride=16)),
        ("lm_infinite", OperatingPoint(method="lm_infinite", sink=100, window=4096)),
        ("infllm", OperatingPoint(method="infllm", sink=128, window=4096, top_k=2048)),
        ("hip", OperatingPoint(method="hip", top_k=512)),
        (
            "sampled:stride=4:last_rows=0",
            OperatingPoint(method="sampled", stride=4, local_blocks=1, row_slack=2.0),
        ),
        ("plan:drift=none:last_rows=0:row_slack=1", OperatingPoint(local_blocks=1)),
        (
            "plan:plan=fast:row_slack=3",
            OperatingPoint(plan="fast", local_blocks=1, last_rows=1, row_slack=3.0),
        ),
        (
            "plan:drift=0.3:drift_widen=1:local_blocks=0",
            OperatingPoint(drift=0.3, drift_widen=1, last_rows=1, row_slack=2.0),
        ),
        ("streaming:sink=0", OperatingPoint(method="streaming", sink=0)),
        (
            "sampled:gamma=9e-1:local_blocks=0",
            OperatingPoint(method="sampled", stride=16, last_rows=1, row_slack=2.0),
        ),
    ],
)  # fmt: skip
def test_texts(text: str, expected: OperatingPoint) -> None:
    assert parse_method(text) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "unknown method ''", "one of dense"),
        ("query_aware", "unknown method", "one of dense"),
        ("flexprefil", "unknown method 'flexprefil'", "did you mean flexprefill?"),
        ("share:relase", "unknown rule 'relase'", "did you mean release?"),
        ("streaming:release", "method streaming has no rule", "NAME"),
        ("plan:paper", "is not key=value", "NAME"),
        ("hip:topk=1", "unknown setting 'topk'", "did you mean top_k?"),
        ("hip:zzz=1", "unknown setting 'zzz'", "hip takes top_k"),
        ("streaming:gamma=0.5", "gamma has no effect in method streaming", "takes sink"),
        ("plan:plan=a b", "plan 'a b' is no plain name", "own plan"),
        ("plan:drift_widen=0.5", r"drift_widen 0.5 is not in \[1, 64\]", "2"),
        ("sampled:plan=fast", "plan has no effect in method sampled", "takes gamma"),
        ("plan:gamma=0.5", "gamma has no effect in method share:plan", "takes min_budget"),
        ("dense:min_tokens=5", "no effect in method dense", "dense takes none"),
        ("hip:top_k=1:top_k=2", "top_k appears twice", "NAME"),
        ("hip:top_k=1.5", "top_k='1.5' is not a whole number", "NAME"),
        ("hip:top_k=", "top_k='' is not a whole number", "NAME"),
        ("hip:top_k=1_0", "is not a whole number", "NAME"),
        ("hip:top_k=0", "top_k 0 is under 1", "tokens"),
        ("sampled:gamma=nan", "gamma='nan' is not a number", "NAME"),
        ("sampled:gamma=1e999", "gamma='1e999' is not a number", "NAME"),
        ("sampled:gamma=1.5", r"gamma 1.5 is not in \(0, 1\]", "0.9"),
        ("xattention:tau=1.5", r"tau 1.5 is not in \(0, 1\]", "0.9"),
        ("xattention:stride=12", "stride 12 does not divide a block", "8 or 16"),
        ("vertical_slash:slash_cover=some", "slash_cover is both or one", "both"),
        ("vertical_slash:min_budget=none", "is not a whole number", "NAME"),
        ("flexprefill:max_budget=1", "max_budget 1 is under min_budget 1024", "no bound"),
    ],
)
def test_refusals(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_method(text)
    assert hint in (error.value.hint or "")


@st.composite
def points(draw: st.DrawFn) -> OperatingPoint:
    """Any method and rule, with settings drawn for what it reads."""
    method = draw(st.sampled_from(METHODS))
    rule = draw(st.sampled_from(RULES)) if method == "share" else "plan"
    point = default_point(method, rule)
    share = st.floats(0.001, 1)
    values = {
        "gamma": share,
        "tau": share,
        "delta": share,
        "kappa": share,
        "phi": share,
        "min_budget": st.integers(1, 512),
        "max_budget": st.none() | st.integers(512, 1 << 20),
        "min_tokens": st.integers(1, 1 << 20),
        "slash_cover": st.sampled_from(["one", "both"]),
        "sink": st.integers(0, 1 << 20),
        "window": st.integers(1, 1 << 20),
        "stride": st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
        "drift": st.none() | share,
        "dense_layers": st.integers(0, 99),
        "top_k": st.integers(1, 1 << 20),
        "last_rows": st.integers(0, 99),
        "local_blocks": st.integers(0, 99),
        "drift_widen": st.floats(1, 64),
        "row_slack": st.floats(1, 64),
        "plan": st.from_regex(PLAIN_NAME, fullmatch=True),
    }
    wanted = draw(st.lists(st.sampled_from(fields_of(point) or ("",)), unique=True))
    chosen = {name: draw(values[name]) for name in wanted if name}
    if (chosen.get("max_budget") or 1 << 30) < chosen.get("min_budget", point.min_budget):
        del chosen["max_budget"]
    return dataclasses.replace(point, **chosen)


@given(point=points())
def test_labels_read_back(point: OperatingPoint) -> None:
    label = method_label(point)
    assert parse_method(label) == point
    assert label.startswith("plan" if method_name(point) == "share:plan" else method_name(point))
    assert method_label(parse_method(label)) == label
    assert label.isascii()
    assert " " not in label


@given(point=points())
def test_labels_of_published_settings_are_short(point: OperatingPoint) -> None:
    default = default_point(point.method, point.rule)
    assert method_label(default) in ("plan", method_name(default))
    # What the method does not read is not in its label.
    other = dataclasses.replace(default, phi=0.123)
    if "phi" not in fields_of(default):
        assert method_label(other) == method_label(default)


def test_a_profiles_settings_stay_but_for_the_methods_own_constants() -> None:
    point = parse_method("flexprefill", profile_point=PROFILE_POINT)
    assert (point.gamma, point.min_budget, point.min_tokens) == (0.95, 128, 512)
    point = parse_method("vertical_slash", profile_point=PROFILE_POINT)
    assert (point.gamma, point.min_budget, point.min_tokens) == (0.85, 128, 512)
    assert (point.local_blocks, point.last_rows, point.row_slack) == (0, 0, 1)  # as published
    point = parse_method("share:release:gamma=0.95", profile_point=PROFILE_POINT)
    assert (point.tau, point.gamma, point.min_budget) == (0.5, 0.95, 128)
    assert parse_method("plan", profile_point=PROFILE_POINT) == PROFILE_POINT
    assert parse_method("share", profile_point=PROFILE_POINT) == PROFILE_POINT
    odd = dataclasses.replace(PROFILE_POINT, stride=12)  # the calibration's, no stride of cells
    assert parse_method("xattention", profile_point=odd).stride == 16
    release = with_method(PROFILE_POINT, "share", "release")
    assert with_method(release, "share", "plan") == PROFILE_POINT
    own = dataclasses.replace(release, tau=0.4)
    assert parse_method("share", profile_point=own) == own
    assert parse_method("hip", profile_point=own).rule == "plan"
    named = dataclasses.replace(PROFILE_POINT, plan="fast")
    assert parse_method("plan:min_budget=64", profile_point=named).plan == "fast"
    assert parse_method("plan:plan=", profile_point=named) == PROFILE_POINT  # its own plan


def test_reading_a_text_needs_no_torch() -> None:
    code = (
        "import sys; from sp_runtime.method_spec import parse_method; parse_method('hip');"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
