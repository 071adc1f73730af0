"""One map of layers by heads as rows of text: half blocks in colour, or symbols."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Depth = Literal["256", "truecolor"]
Grid = tuple[tuple[str, ...], ...]

_UPPER_HALF = "\u2580"
_SCALE_STEPS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMap:
    """One value a head: colours "#RRGGBB" and symbols of one letter, [layers][heads] each.

    colours: in true colour; coarse: for terminals of 256. layers: their numbers, which have gaps
    where a model has sliding layers. notes: a word a layer that stands to its right under
    `notes_title`, or none. top: where the colours of a measure end, which run from 0 in cividis;
    None for colours that a table explains.
    """

    title: str
    layers: tuple[int, ...]
    colours: Grid
    coarse: Grid
    symbols: Grid
    top: float | None = None
    notes: tuple[str, ...] = ()
    notes_title: str = ""


def grid(values: Iterable[str], layers: int) -> Grid:
    """Values in (layer, head) order as [layers][heads]."""
    flat = tuple(values)
    heads = len(flat) // layers
    return tuple(flat[start : start + heads] for start in range(0, len(flat), heads))


def colour_depth(console: Console) -> Depth | None:
    """How many colours maps can use; None without half blocks, 256 colours, or a wish for them."""
    if console.no_color or not console.encoding.startswith("utf"):
        return None
    found = console.color_system
    return "truecolor" if found == "truecolor" else "256" if found == "256" else None


class Panel:
    """Some heads of a map, `cell` columns each; only the first of a row says the layers."""

    def __init__(
        self, one: HeadMap, heads: range, cell: int, depth: Depth | None, *, first: bool = True
    ) -> None:
        self._map, self._heads, self._cell, self._depth = one, heads, cell, depth
        self._colours = one.colours if depth == "truecolor" else one.coarse
        self._faint = "" if depth is None else "dim"
        count, step = len(one.layers), 1 if depth is None else 2
        self._rows = [range(start, min(start + step, count)) for start in range(0, count, step)]
        names = ["/".join(str(one.layers[i]) for i in row) for row in self._rows]
        self._label = max(map(len, names)) + 1 if first else 0
        self._names = names if first else [""] * len(names)
        notes = one.notes or ("",) * count
        self._notes = [" ".join(notes[i] for i in row).strip() for row in self._rows]
        self._cells = self._label + cell * len(heads)

    @property
    def width(self) -> int:
        """Columns of its widest line."""
        notes = max(map(len, [self._map.notes_title, *self._notes]))
        return max(self._cells + (notes + 1 if notes else 0), self._title().cell_len)

    def lines(self) -> list[Text]:
        """A title, the numbers of the heads, and the rows."""
        from rich.text import Text

        lines = [self._title(), Text(self._ticks(), self._faint, no_wrap=True)]
        for row, name, note in zip(self._rows, self._names, self._notes, strict=True):
            line = Text(no_wrap=True)
            line.append(name.rjust(self._label - 1) + " " if self._label else "", self._faint)
            for head in self._heads:
                line.append(*self._drawn(row, head))
            if note:
                line.append(" " * (self._cells + 1 - line.cell_len) + note, self._faint)
            elif self._depth is None:
                line.rstrip()
            lines.append(line)
        return lines

    def _drawn(self, row: range, head: int) -> tuple[str, str]:
        """A cell's text and style."""
        if self._depth is None:
            return self._map.symbols[row[0]][head].ljust(self._cell), ""
        upper, *lower = (self._colours[layer][head] for layer in row)
        return _UPPER_HALF * self._cell, f"{upper} on {lower[0]}" if lower else upper

    def _title(self) -> Text:
        """The name, and for a measure in colours their scale."""
        from rich.text import Text

        from sp_profile.figures.palette import cividis, cividis_256

        title = Text(self._map.title, no_wrap=True)
        if self._depth is None or self._map.top is None:
            return title
        colour = cividis if self._depth == "truecolor" else cividis_256
        title.append(" 0 ")
        for step in range(_SCALE_STEPS):
            title.append(" ", f"on {colour(step / (_SCALE_STEPS - 1))}")
        return title.append(f" {self._map.top:g}")

    def _ticks(self) -> str:
        """Numbers over the first of so many heads that they do not touch."""
        room = len(str(self._heads[-1])) + 1
        step = next(step for step in (1, 2, 4, 8, 16) if step * self._cell >= room)
        text = "".join(str(head).ljust(step * self._cell) for head in self._heads[::step])
        line = " " * self._label + text
        if self._map.notes_title:
            line = line[: self._cells].ljust(self._cells + 1) + self._map.notes_title
        return line.rstrip()
