"""Colours that stay apart, and in order, for everybody."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.figures import palette
from sp_runtime.profile import ASSIGNMENTS

UNIT = st.floats(0, 1)


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_every_assignment_has_a_colour_and_a_letter_of_its_own() -> None:
    for table in (
        palette.ASSIGNMENT_COLOURS,
        palette.ASSIGNMENT_COLOURS_256,
        palette.ASSIGNMENT_LETTERS,
    ):
        assert set(table) == set(ASSIGNMENTS)
        assert len(set(table.values())) == len(table)


@given(UNIT, UNIT)
def test_higher_values_are_lighter(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert lightness(palette.cividis(low)) <= lightness(palette.cividis(high)) + 1e-3
    assert lightness(palette.cividis_256(low)) <= lightness(palette.cividis_256(high))


def test_values_outside_are_clipped() -> None:
    assert palette.cividis(-1) == palette.cividis(0) == palette.CIVIDIS[0]
    assert palette.cividis(7) == palette.cividis(1) == palette.CIVIDIS[-1]
    assert palette.cividis_256(-1) == palette.cividis_256(0)
    assert palette.cividis_256(7) == palette.cividis_256(1)


def test_cividis_is_matplotlibs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    theirs = matplotlib.colormaps["cividis"]
    for number, colour in enumerate(palette.CIVIDIS):
        expected = theirs(number / (len(palette.CIVIDIS) - 1), bytes=True)[:3]
        found = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert max(abs(int(a) - b) for a, b in zip(expected, found, strict=True)) <= 1


def test_colours_for_256_are_of_xterms_cube() -> None:
    levels = {"00", "5F", "87", "AF", "D7", "FF"}
    colours = {palette.cividis_256(step / 20) for step in range(21)}
    assert len(colours) == 6
    for colour in colours:
        assert {colour[1:3], colour[3:5], colour[5:7]} <= levels


def test_no_two_series_look_alike() -> None:
    styles = [palette.series_style(number) for number in range(70)]
    assert len(set(styles)) == len(styles)
    assert "#000000" not in palette.OKABE_ITO
    for a, b in itertools.combinations(palette.OKABE_ITO, 2):
        assert a != b


@given(st.floats(0, 100))
def test_scales_end_at_or_above_the_largest(value: float) -> None:
    assert palette.scale_top(value) >= value - 1e-6


def test_the_palette_needs_no_matplotlib() -> None:
    code = (
        "import sys; import sp_profile.figures.palette, sp_profile.figures.draw\n"
        "sys.exit(int('matplotlib' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
