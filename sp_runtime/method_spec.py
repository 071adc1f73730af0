"""A method and its settings as a short text: `NAME[:RULE][:key=value]*`.

Examples: `share:release`, `flexprefill:gamma=0.9`, `plan` (which is `share:plan`),
`plan:plan=fast` (another plan of the profile; `plan:plan=` is its own one),
`xattention:tau=0.8:stride=8`. Keys are fields of `OperatingPoint`, and only those that the method
reads; a bound that may be absent takes `none`.
"""

from __future__ import annotations

import re
import types
import typing
from dataclasses import fields, replace

from sp_runtime.errors import UsageError, nearest
from sp_runtime.operating_point import METHODS, RULES, Method, OperatingPoint, Rule, default_point
from sp_runtime.strict_json import shown

METHOD_SYNTAX = "NAME[:RULE][:key=value]*"
PLAN_ALIAS = "plan"
_WHOLE = re.compile(r"-?[0-9]{1,15}")
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,20})?(e\+?[0-9]{1,2}|e-[0-9]{1,3})?")
_COMMON = ("min_tokens", "dense_layers", "last_rows")
_BUDGETS = ("min_budget", "max_budget", "slash_cover")
_FIELDS: dict[Method, tuple[str, ...]] = {
    "dense": (),
    "streaming": ("sink", "window"),
    "lm_infinite": ("sink", "window"),
    "vertical_slash": ("gamma", *_BUDGETS),
    "minference": ("slash_cover",),
    "flexprefill": ("gamma", "kappa", *_BUDGETS),
    "infllm": ("sink", "window", "top_k"),
    "hip": ("top_k",),
    "moa": (),
    "xattention": ("tau", "stride", "local_blocks"),
    "sampled": ("gamma", "stride", "local_blocks", "row_slack"),
}
_RULE_FIELDS: dict[Rule, tuple[str, ...]] = {
    "plan": (*_BUDGETS, "sink", "drift", "drift_widen", "local_blocks", "row_slack", "plan"),
    "paper": ("gamma", "tau", "delta", *_BUDGETS),
    "release": ("gamma", "tau", "kappa", "phi", *_BUDGETS),
}


def fields_of(point: OperatingPoint) -> tuple[str, ...]:
    """The settings that this point's method and rule read, beside method and rule."""
    own = _RULE_FIELDS[point.rule] if point.method == "share" else _FIELDS[point.method]
    return () if point.method == "dense" else (*own, *_COMMON)


def with_method(base: OperatingPoint, method: Method, rule: Rule) -> OperatingPoint:
    """`base` under another method and rule.

    The constants in which the published methods differ (such as gamma of flexprefill, or tau of
    the two rules) become those of the new one; everything else, such as budgets and min_tokens
    that a profile chose for its model, stays.
    """
    old, new = default_point(base.method, base.rule), default_point(method, rule)
    changed = {
        field.name: getattr(new, field.name)
        for field in fields(OperatingPoint)
        if getattr(old, field.name) != getattr(new, field.name)
    }
    return replace(base, **changed)


def parse_method(text: str, *, profile_point: OperatingPoint | None = None) -> OperatingPoint:
    """The operating point that a spec text stands for.

    profile_point: what the settings are taken from where the text says nothing, as in
    `with_method`; None: the method's published constants.

    Raises:
        UsageError: anything in the text that is unknown, out of range or without effect.
    """
    name, *parts = text.strip().split(":")
    method, rule = _method_and_rule(name, parts)
    if profile_point is None:
        point = default_point(method, rule or "plan")
    else:
        kept = profile_point.rule if profile_point.method == method else "plan"
        point = with_method(profile_point, method, rule or kept)
    values: dict[str, object] = {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"{shown(part)} in {shown(text)} is not key=value", hint=METHOD_SYNTAX)
        _check_key(key, point)
        if key in values:
            raise UsageError(f"{key} appears twice in {shown(text)}", hint=METHOD_SYNTAX)
        values[key] = _value(key, value)
    return replace(point, **values)  # type: ignore[arg-type]


def method_label(point: OperatingPoint) -> str:
    """The shortest spec text that `parse_method` turns into what `point` computes.

    Only settings that the method reads and that differ from its published constants are in it.
    """
    name = method_name(point)
    if name == "share:plan":
        name = PLAN_ALIAS
    settings = [f"{key}={value}" for key, value in own_settings(point)]
    return ":".join([name, *settings])


def own_settings(point: OperatingPoint) -> tuple[tuple[str, str], ...]:
    """What the method reads and what differs from its published constants, as a spec text has it:
    names and values, in the order of `OperatingPoint`."""
    default, wanted = default_point(point.method, point.rule), fields_of(point)
    return tuple(
        (field.name, _text(getattr(point, field.name)))
        for field in fields(OperatingPoint)
        if field.name in wanted and getattr(point, field.name) != getattr(default, field.name)
    )


def _method_and_rule(name: str, parts: list[str]) -> tuple[Method, Rule | None]:
    """Takes the rule off the front of `parts`."""
    if name == PLAN_ALIAS:
        return "share", "plan"
    if name not in METHODS:
        known = (*METHODS, PLAN_ALIAS)
        hint = nearest(name, known) or "one of " + ", ".join(known)
        raise UsageError(f"unknown method {shown(name)}", hint=hint)
    method = typing.cast("Method", name)
    if not parts or "=" in parts[0]:
        return method, None
    rule = parts.pop(0)
    if method != "share":
        raise UsageError(f"method {method} has no rule {shown(rule)}", hint=METHOD_SYNTAX)
    if rule not in RULES:
        hint = nearest(rule, RULES) or "one of " + ", ".join(RULES)
        raise UsageError(f"unknown rule {shown(rule)}", hint=hint)
    return method, typing.cast("Rule", rule)


def _check_key(key: str, point: OperatingPoint) -> None:
    wanted = fields_of(point)
    if key in wanted:
        return
    known = [field.name for field in fields(OperatingPoint)]
    settings = f"{point.method} takes {', '.join(wanted)}" if wanted else "dense takes none"
    if key in known:
        raise UsageError(f"{key} has no effect in method {method_name(point)}", hint=settings)
    raise UsageError(f"unknown setting {shown(key)}", hint=nearest(key, wanted) or settings)


def method_name(point: OperatingPoint) -> str:
    """Method and rule without settings, such as `share:release` or `hip`."""
    return point.method if point.method != "share" else f"share:{point.rule}"


def _value(key: str, text: str) -> object:
    hint = typing.get_type_hints(OperatingPoint)[key]
    kinds = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union)
        else (hint,)
    )
    if text == "none" and types.NoneType in kinds:
        return None
    kind = kinds[0]
    if kind is str or typing.get_origin(kind) is typing.Literal:
        return text  # checked by the operating point
    if (_WHOLE if kind is int else _NUMBER).fullmatch(text) is None:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{key}={shown(text)} is not {what}", hint=METHOD_SYNTAX)
    return kind(text)


def _text(value: object) -> str:
    return "none" if value is None else str(value)
