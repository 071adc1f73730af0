"""Maps of layers by heads laid out for a terminal: side by side, one by one, or in panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .show_panel import Depth, HeadMap, Panel, colour_depth

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

DIGITS = "digits: tenths, rounded; . under 0.05, # from 0.95"
_GAP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMaps:
    """Maps of the same heads; rich prints them side by side where they fit, else one by one.

    On a terminal of 256 colours or more a text row holds two layers, the upper one in the
    foreground of a half block; without colours each layer is a row of symbols. Heads that do not
    fit into the width go into further panels below.
    """

    maps: tuple[HeadMap, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        depth = colour_depth(console)
        yield from map_lines(self.maps, options.max_width, depth)
        if depth is None and any(one.top is not None for one in self.maps):
            yield Text(DIGITS)


def map_lines(maps: Sequence[HeadMap], width: int, depth: Depth | None) -> list[Text]:
    """The rows of text that show the maps in `width` columns."""
    from rich.text import Text

    heads = range(len(maps[0].symbols[0]))
    for cell in _cells(depth)[:-1]:
        panels = [Panel(one, heads, cell, depth, first=one is maps[0]) for one in maps]
        if sum(panel.width for panel in panels) + _GAP * (len(panels) - 1) <= width:
            return _side_by_side(panels)
    lines = _stacked(maps[0], width, depth)
    for one in maps[1:]:
        lines += [Text(), *_stacked(one, width, depth)]
    return lines


def _cells(depth: Depth | None) -> tuple[int, ...]:
    """Columns a head, best first: half blocks make stripes at more than three."""
    return (2, 1) if depth is None else (3, 2, 1)


def _stacked(one: HeadMap, width: int, depth: Depth | None) -> list[Text]:
    count = len(one.symbols[0])
    for cell in _cells(depth):
        panel = Panel(one, range(count), cell, depth)
        if panel.width <= width:
            return panel.lines()
    # Even panels of whole eights, as few as the narrowest cells allow.
    room = max(8, (width - (panel.width - count)) // 8 * 8)
    step = -(-count // (8 * -(-count // room))) * 8
    parts = [range(start, min(start + step, count)) for start in range(0, count, step)]
    silent = dataclasses.replace(one, notes=(), notes_title="")
    lines = []
    for part in parts:
        lines += Panel(one if part is parts[-1] else silent, part, 1, depth).lines()
    return lines


def _side_by_side(panels: Sequence[Panel]) -> list[Text]:
    from rich.text import Text

    lines = []
    for row in zip(*(panel.lines() for panel in panels), strict=True):
        line = Text(no_wrap=True)
        for part, panel in zip(row[:-1], panels[:-1], strict=True):
            line.append_text(part)
            line.append(" " * (panel.width - part.cell_len + _GAP))
        lines.append(line.append_text(row[-1]))
    return lines
