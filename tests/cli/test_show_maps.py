"""Maps of layers by heads: every head once, where it belongs, within the width."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from sp_cli.show_heatmap import DIGITS, HeadMaps, map_lines
from sp_cli.show_maps import digit
from sp_cli.show_panel import Depth, HeadMap, colour_depth, grid

HALF = "\u2580"
DEPTHS = st.sampled_from(["truecolor", "256", None])


def make_map(layers: int, heads: int, **more: Any) -> HeadMap:
    """Colours and symbols from which a head can be told: cell n is #n, and letter n mod 26."""
    count = layers * heads
    return HeadMap(
        title="title",
        layers=tuple(range(layers)),
        colours=grid((f"#{n:06x}" for n in range(count)), layers),
        coarse=grid((f"#{n + 0x800000:06x}" for n in range(count)), layers),
        symbols=grid((chr(97 + n % 26) for n in range(count)), layers),
        **more,
    )


def colours_of(line: Text) -> list[tuple[str, str | None]]:
    """(upper, lower) of every half block of a row, a run of equal ones once."""
    found: list[tuple[str, str | None]] = []
    for span in line.spans:
        if HALF in line.plain[span.start : span.end]:
            upper, _, lower = str(span.style).partition(" on ")
            found.append((upper, lower or None))
    return found


def rows_of(lines: list[Text]) -> list[Text]:
    return [line for line in lines if HALF in line.plain]


@given(st.integers(1, 90), st.integers(1, 80), st.integers(40, 200), DEPTHS, st.booleans())
def test_no_line_is_wider_than_the_terminal(
    layers: int, heads: int, width: int, depth: Depth | None, both: bool
) -> None:
    notes = tuple("0.12" for _ in range(layers))
    one = make_map(layers, heads, notes=notes, notes_title="mean", top=0.8)
    lines = map_lines([one, make_map(layers, heads)] if both else [one], width, depth)
    assert max(line.cell_len for line in lines) <= width


@given(st.integers(1, 90), st.integers(1, 80), st.integers(40, 200))
def test_half_blocks_show_every_head_once_in_order(layers: int, heads: int, width: int) -> None:
    lines = map_lines([make_map(layers, heads)], width, "truecolor")
    rows = rows_of(lines)
    per_panel = -(-layers // 2)
    assert len(rows) % per_panel == 0
    seen: list[list[tuple[str, str | None]]] = [[] for _ in range(per_panel)]
    for number, row in enumerate(rows):  # panels one below the other
        seen[number % per_panel] += colours_of(row)
    for pair, cells in enumerate(seen):
        assert len(cells) == heads
        for head, (upper, lower) in enumerate(cells):
            assert int(upper[1:], 16) == 2 * pair * heads + head
            if 2 * pair + 1 < layers:
                assert lower is not None
                assert int(lower[1:], 16) == (2 * pair + 1) * heads + head
            else:
                assert lower is None


@given(st.integers(1, 90), st.integers(1, 80), st.integers(40, 200))
def test_without_colours_every_layer_is_a_row_of_symbols(
    layers: int, heads: int, width: int
) -> None:
    lines = map_lines([make_map(layers, heads)], width, None)
    found: dict[int, str] = {}
    for line in lines:
        assert not line.spans or all(not str(span.style) for span in line.spans)
        match = re.fullmatch(r" *(\d+) ([a-z ]+)", line.plain)
        if match:
            found[int(match[1])] = found.get(int(match[1]), "") + match[2].replace(" ", "")
    expected = {
        layer: "".join(chr(97 + (layer * heads + head) % 26) for head in range(heads))
        for layer in range(layers)
    }
    assert found == expected


def test_two_maps_stand_side_by_side_where_they_fit() -> None:
    pair = [make_map(30, 9), make_map(30, 9)]
    beside = map_lines(pair, 80, "truecolor")
    assert beside[0].plain.split() == ["title", "title"]
    assert len(rows_of(beside)) == 15
    assert all(len(colours_of(row)) == 18 for row in rows_of(beside))
    below = map_lines(pair, 30, "truecolor")
    assert len(rows_of(below)) == 30


def test_layers_are_named_with_gaps_and_means_beside_them() -> None:
    one = HeadMap(
        title="t",
        layers=(5, 11, 17),
        colours=grid(["#111111"] * 6, 3),
        coarse=grid(["#222222"] * 6, 3),
        symbols=grid("abcdef", 3),
        notes=("0.10", "0.20", "0.30"),
        notes_title="mean",
    )
    plain = [line.plain for line in map_lines([one], 80, None)]
    assert plain == ["t", "   0 1  mean", " 5 a b  0.10", "11 c d  0.20", "17 e f  0.30"]
    coloured = [line.plain for line in map_lines([one], 80, "256")]
    assert coloured[2].split() == ["5/11", HALF * 6, "0.10", "0.20"]
    assert coloured[3].split() == ["17", HALF * 6, "0.30"]
    assert "#222222" in str(map_lines([one], 80, "256")[2].spans)


@pytest.mark.parametrize(
    ("settings", "depth"),
    [
        ({"color_system": "truecolor"}, "truecolor"),
        ({"color_system": "256"}, "256"),
        ({"color_system": "standard"}, None),
        ({"color_system": "truecolor", "no_color": True}, None),
        ({"color_system": None}, None),
    ],
)
def test_colours_only_where_the_terminal_has_them(
    settings: dict[str, Any], depth: str | None
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=file, force_terminal=True, width=80, **settings)
    assert colour_depth(console) == depth
    with console.capture() as capture:
        console.print(HeadMaps(maps=(make_map(4, 4, top=1.0),)))
    assert (HALF in capture.get()) == (depth is not None)
    assert (DIGITS in capture.get()) == (depth is None)


def test_no_half_blocks_where_the_encoding_has_none() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=True, width=80, color_system="truecolor")
    with console.capture() as capture:
        console.print(HeadMaps(maps=(make_map(4, 4, top=1.0),)))
    assert capture.get().isascii()


def test_digits_are_tenths() -> None:
    values = (-1, 0.0, 0.049, 0.051, 0.149, 0.151, 0.5, 0.94, 0.951, 1.0, 7.0)
    assert "".join(map(digit, values)) == "?..11259###"
