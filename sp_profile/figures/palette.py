"""The colours of figures, report and terminal: told apart with every common colour blindness.

Sources: Okabe and Ito, "Color Universal Design" (2008); cividis, Nunez, Anderton and Renslow,
PLOS ONE 13(7) (2018), as 17 evenly spaced stops.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from types import MappingProxyType

GREY = "#7F7F7F"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
OKABE_ITO = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
"""Of lines, in this order. Not black: it is dense's on paper, and lost on a dark page."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
"""Of lines, so that no two differ in colour alone."""

ASSIGNMENT_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "dense": VERMILLION,
        "sampled": ORANGE,
        "query_aware": PURPLE,
        "vertical_slash": BLUE,
        "streaming": YELLOW,
        "borrow": GREEN,
    }
)
"""What computes a block mask of its own densely is warm; dearest first."""
ASSIGNMENT_COLOURS_256: Mapping[str, str] = MappingProxyType(
    {**ASSIGNMENT_COLOURS, "streaming": "#FFFF5F"}
)
"""For terminals of 256 colours, whose nearest to yellow is too close to orange."""
ASSIGNMENT_LETTERS: Mapping[str, str] = MappingProxyType(
    {
        "dense": "D",
        "sampled": "S",
        "query_aware": "q",
        "vertical_slash": "v",
        "streaming": "w",
        "borrow": "b",
    }
)
"""The same without colour. Capitals can lend; w is for window."""

CIVIDIS = (
    "#00224E", "#002E6A", "#1A386F", "#32436D", "#434E6C", "#535A6D", "#61656F", "#6F7073",
    "#7D7C78", "#8C8878", "#9B9476", "#ABA072", "#BCAE6C", "#CDBB63", "#DEC958", "#F0D846",
    "#FEE838",
)  # fmt: skip
# The colours of xterm's cube that rise in lightness from blue to yellow alike.
_CIVIDIS_256 = ("#00005F", "#5F5F87", "#878787", "#AFAF87", "#D7D787", "#FFFF5F")


def series_style(number: int) -> tuple[str, str]:
    """Colour and marker of a plot's number-th line; no pair twice among 70."""
    return OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]


def cividis(value: float) -> str:
    """The colour of a value in [0, 1], clipped, as "#RRGGBB"; dark is low."""
    place = min(max(value, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    parts = []
    for start in (1, 3, 5):
        a, b = (int(CIVIDIS[stop][start : start + 2], 16) for stop in (low, low + 1))
        parts.append(round(a + (b - a) * (place - low)))
    return "#{:02X}{:02X}{:02X}".format(*parts)


def cividis_256(value: float) -> str:
    """The same in six steps, for terminals of 256 colours."""
    steps = len(_CIVIDIS_256)
    return _CIVIDIS_256[min(int(min(max(value, 0.0), 1.0) * steps), steps - 1)]


def scale_top(largest: float) -> float:
    """The upper end of a colour scale from 0: `largest` rounded up to a readable step."""
    steps = (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
        1.5,
        2.0,
        3.0,
        5.0,
        10.0,
        20.0,
        50.0,
        100.0,
    )
    return steps[min(bisect.bisect_left(steps, largest - 1e-6), len(steps) - 1)]
