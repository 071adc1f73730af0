"""How every figure looks and is written: fonts, sizes, legends, PNG and SVG without dates."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from sp_runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

SMALL, MEDIUM = 8, 9
GRID = "0.9"
DPI = 144
_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": SMALL,
    "axes.titlesize": 10,
    "axes.labelsize": MEDIUM,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.7,
    "svg.hashsalt": "sparse-prefill",  # names of clip paths, random without it
}


def require_matplotlib() -> None:
    """Raises UsageError with the command that installs it."""
    if find_spec("matplotlib") is None:
        raise UsageError("figures need matplotlib", hint="pip install 'sparse-prefill[plot]'")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's defaults with our settings, whatever the user's matplotlibrc says."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches.

    The object and not pyplot's, which would choose a display and keep the figure.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def encode(figure: Figure, kind: Format) -> bytes:
    """The file's bytes; equal figures give equal bytes with one version of matplotlib."""
    metadata: dict[str, None] = {"Software": None} if kind == "png" else {"Date": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def open_axes(axes: Axes) -> None:
    """A faint grid behind, and no frame above and to the right."""
    axes.grid(True, which="major", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def bare_axes(axes: Axes) -> None:
    """Neither ticks nor a frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """One legend for all panels, under them; nothing without handles."""
    if handles:
        figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=max(1, min(columns, len(handles))),
            frameon=False,
        )


def mixed(colour: str, white: float) -> str:
    """A colour "#RRGGBB" with that share of white."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#{:02X}{:02X}{:02X}".format(*(round(p + (255 - p) * white) for p in parts))


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour "#RRGGBB"."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    # Luma of ITU-R BT.601; half way is where both inks read alike.
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"
