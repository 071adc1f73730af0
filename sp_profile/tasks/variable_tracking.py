"""RULER's variable tracking: one chain of assignments hidden in noise.

Template and parameters (1 chain of 4 hops, names of 5 capital letters, values of 5 digits) are
quoted from RULER (arXiv 2404.06654, scripts/data/synthetic/{constants,variable_tracking}.py,
Apache-2.0). Differences: no solved example is put before the question, assignments are lines of
their own, and the answer prefix does not begin with `Answer:`.
"""

from __future__ import annotations

import random

from sp_profile.tasks.fitting import Sketch
from sp_profile.tasks.haystack import insert_lines, noise_lines, noise_unit
from sp_profile.tasks.random_values import distinct_letters

_HOPS = 4


def variable_tracking_sketch(rng: random.Random) -> Sketch:
    """Units are noise sentences; assignments are lines of their own, in the order of the chain."""
    value = str(rng.randrange(10_000, 100_000))
    names = distinct_letters(rng, _HOPS + 1, 5, upper=True)
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    steps = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=True)]
    depths = sorted(rng.random() for _ in names)

    def text(units: int, filler: str) -> str:
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following "
            f"text.\n\n{filler}{insert_lines(noise_lines(units), steps, depths)}\n"
            f"Question: Find all variables that are assigned the value {value} in the text above."
        )

    prefix = (
        "According to the chain(s) of variable assignment in the text above, "
        f"{_HOPS + 1} variables are assigned the value {value}, they are:"
    )
    return Sketch(
        text=text, unit=noise_unit, answers=tuple(names), answer_prefix=prefix, repeats=True
    )
