"""Settings of a calibration: what is refused, and what the prompts decide."""

from __future__ import annotations

import pytest

from sp_profile.calibration_config import CalibrationConfig
from sp_runtime.errors import UsageError

BAD_SETTINGS = {
    "gamma 0": {"gamma": 0.0},
    "gamma over 1": {"gamma": 1.1},
    "gamma NaN": {"gamma": float("nan")},
    "block size": {"block_size": 96},
    "dtype": {"dtype": "int8"},
    "task": {"tasks": ("poetry",)},
    "no samples": {"samples": 0},
    "length": {"lengths": (0,)},
    "stride": {"sample_stride": 0},
    "budgets": {"min_budget": 256, "max_budget": 128},
    "bad share": {"max_bad_share": 1.0},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_usage_errors_with_a_hint(name):
    with pytest.raises(UsageError) as caught:
        CalibrationConfig(model="x", **BAD_SETTINGS[name])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("longest", "block_size", "min_budget"),
    [(300, 64, 128), (2048, 64, 128), (8000, 64, 500), (8192, 128, 512), (131072, 128, 1024)],
)
def test_block_size_and_budget_follow_the_longest_prompt(longest, block_size, min_budget):
    config = CalibrationConfig(model="x")
    assert config.resolve_block_size(longest) == block_size
    assert config.resolve_min_budget(longest, block_size) == min_budget
