"""The methods of an evaluation: a list as the user writes it, swept values expanded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sp_runtime.errors import UsageError, nearest
from sp_runtime.method_spec import method_label, method_name, own_settings, parse_method
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import DEFAULT_POINT

DENSE = "dense"
POINT = "point"
MAX_SAMPLES = 10_000
_MAX_METHODS = 512
_SWEEP = re.compile(r"\{([^{}]*)\}")
_KINDS = ("delta", "stride", "dense_layers", "last_rows", "local_blocks", "row_slack")
_SAMPLES = re.compile(r"@([0-9]+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodPlan:
    """One method at one operating point, on the first `samples` prompts of every task and length.

    label: canonical text, without the samples. profile: name of the profile it reads.
    """

    label: str
    point: OperatingPoint
    profile: str
    samples: int

    @property
    def sweep(self) -> str:
        """The profile's name without the number at its end: those alike are points of a sweep."""
        return self.profile.rstrip("0123456789.")

    @property
    def family(self) -> str:
        """The method without its numbers: the points of one family make a sweep.

        What is another method rather than more or less of it, such as a stride, stays in the name.
        """
        kinds = [f":{name}={value}" for name, value in own_settings(self.point) if name in _KINDS]
        return method_name(self.point) + "".join(kinds) + (f"%{self.sweep}" if self.sweep else "")


Points = Mapping[str, OperatingPoint]
"""The operating points of a profile by name."""


def expand_methods(
    text: str, *, samples: int, profile_points: Mapping[str, Points]
) -> tuple[MethodPlan, ...]:
    """`NAME[:RULE][:key=value]*[%PROFILE][@N]`, separated by commas; dense comes first, listed or
    not, on as many prompts as any other method takes.

    `point:NAME` in the place of NAME[:RULE] is an operating point of the profile.
    `key={a,b}`, `point:{a,b}` and `%{a,b}` stand for one method a value. `@N`: on N prompts instead
    of `samples`. profile_points: the points of each profile by its name; "" is the first profile.
    Raises UsageError.
    """
    plans: dict[str, MethodPlan] = {}
    for item in _split(text):
        for single in _expand(item):
            plan = _parse(single, samples, profile_points)
            known = plans.setdefault(plan.label, plan)
            if known.samples != plan.samples:
                raise UsageError(
                    f"method {plan.label} is listed with {known.samples} and {plan.samples} samples"
                )
            if len(plans) > _MAX_METHODS:
                raise UsageError(f"more than {_MAX_METHODS} methods", hint="list fewer values")
    if not plans:
        raise UsageError("no methods were given", hint="such as --method dense,vertical_slash")
    most = max(plan.samples for plan in plans.values())
    dense = MethodPlan(label=DENSE, point=OperatingPoint(method="dense"), profile="", samples=most)
    return (dense, *(plan for plan in plans.values() if plan.point.method != "dense"))


def _parse(text: str, samples: int, profile_points: Mapping[str, Points]) -> MethodPlan:
    found = _SAMPLES.search(text)
    if found is not None:
        text, samples = text[: found.start()], int(found.group(1))
    if not 1 <= samples <= MAX_SAMPLES:
        raise UsageError(f"{samples} samples of {text}", hint=f"take 1 to {MAX_SAMPLES}")
    spec, sign, profile = text.partition("%")
    if sign and profile not in profile_points:
        raise UsageError(
            f"method {text}: there is no profile {profile!r}", hint="name it: --profile NAME=PATH"
        )
    points = profile_points.get(profile, {})
    if spec.partition(":")[0] == POINT:
        point = _named(spec, points)
    else:
        point = parse_method(spec, profile_point=points.get(DEFAULT_POINT))
    if point.method == "share" and profile not in profile_points:
        raise UsageError(f"method {text} needs a profile", hint="pass --profile")
    label = method_label(point) + (f"%{profile}" if sign else "")
    return MethodPlan(label=label, point=point, profile=profile, samples=samples)


def _named(spec: str, points: Points) -> OperatingPoint:
    """The point that `point:NAME[:key=value]*` stands for."""
    name, *settings = spec.split(":")[1:] or [""]
    if name not in points:
        known = ", ".join(points) or "none"
        raise UsageError(
            f"method {spec}: there is no operating point {name!r}",
            hint=nearest(name, points) or f"the profile has {known}",
        )
    base = points[name]
    return parse_method(":".join([method_name(base), *settings]), profile_point=base)


def _split(text: str) -> list[str]:
    """Pieces between commas that lie outside of braces."""
    pieces, depth, piece = [], 0, ""
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            pieces.append(piece)
            piece = ""
        else:
            piece += letter
    if depth != 0:
        raise UsageError(f"unbalanced braces in {text!r}", hint="write gamma={0.8,0.9}")
    return [piece.strip() for piece in (*pieces, piece) if piece.strip()]


def _expand(item: str) -> list[str]:
    """One text for each combination of the values in braces."""
    parts = _SWEEP.split(item)
    # Every second part is the inside of a pair of braces.
    choices = [
        [value.strip() for value in part.split(",")] if number % 2 else [part]
        for number, part in enumerate(parts)
    ]
    if any("" in values for values in choices[1::2]):
        raise UsageError(f"an empty value in {item!r}", hint="write gamma={0.8,0.9}")
    return ["".join(combination) for combination in itertools.product(*choices)]
