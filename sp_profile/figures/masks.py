"""A head's block mask or attention mass on one prompt, as a picture of at most 32 x 32 cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sp_profile.figures.style import bare_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sp_profile.report.data_types import GalleryPrompt

PANEL = 1.75  # inches
NOTE = "shade: square root of the share in each cell"
_PAPER, _INK = "#EDEDED", "#00224E"  # the dark end of cividis


def shades(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Roots, as the masses have them, so that single blocks of a long prompt can be seen."""
    return np.sqrt(255.0 * mask)


def draw_mask(axes: Axes, picture: npt.NDArray[Any] | None) -> None:
    """Root shares or masses in [0, 255], pale to dark; nothing above the diagonal."""
    from matplotlib.colors import LinearSegmentedColormap

    bare_axes(axes)
    axes.set_aspect("equal")
    if picture is None:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
        return
    inked = LinearSegmentedColormap.from_list("ink", [_PAPER, _INK]).with_extremes(bad="white")
    side = len(picture)
    below = np.ma.masked_array(picture, np.triu(np.ones((side, side), np.bool_), 1))
    axes.imshow(below, cmap=inked, vmin=0, vmax=255, interpolation="nearest")


def prompt_name(prompt: GalleryPrompt) -> str:
    """Its task and length, in two lines."""
    return f"{prompt.prompt.task or 'own prompt'}\n{prompt.prompt.tokens:,} tokens"
