"""Sparse prefill of a transformers model: `with attach(model, profile) as report: model(...)`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sp_runtime.audit import Audit
from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import fingerprint_config, require_match
from sp_runtime.integrations.transformers_session import (
    AttentionHandler,
    ForwardCall,
    attention_modules,
    attention_session,
)
from sp_runtime.kernels.select import KernelChoice, select_kernels
from sp_runtime.method_spec import parse_method, with_method
from sp_runtime.operating_point import RULES, OperatingPoint, Rule, default_point
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import Profile, load_profile
from sp_runtime.report import PrefillReport

__all__ = ["AttentionHandler", "ForwardCall", "attach", "attention_session", "resolve_point"]

SESSION_NAME = "sparse_prefill"
DEFAULT_BLOCK_SIZE = 128


@contextmanager
def attach(
    model: nn.Module,
    profile: Profile | str | os.PathLike[str] | None = None,
    *,
    method: str | None = None,
    rule: Rule | None = None,
    point: OperatingPoint | str | None = None,
    kernels: str | KernelChoice = "auto",
    block_size: int | None = None,
    weights_sha256: str | None = None,
    allow_weights_mismatch: bool = False,
    audit: float | Audit = 0.0,
) -> Iterator[PrefillReport]:
    """Prefill a transformers model sparsely inside the block; decoding and short prompts are dense.

    Every forward of the model inside is covered, `generate` and chunks on one DynamicCache
    included; each chunk starts a fresh pattern. Sliding-window layers stay native. The report says
    what every forward, layer and head did, and stays readable after the block.

    Args:
        profile: the model's profile, or what `load_profile` takes: a folder or a hub name. Without
            one, the method must be one that needs none.
        method, rule, point: see `resolve_point`; share under rule plan if nothing is said.
        kernels: "auto", "triton", "reference" or "fa4", or a backend chosen before; a named one
            never falls back.
        block_size: in tokens; the profile's, or 128 without one.
        weights_sha256: identity of the model's weights, compared with the profile's if given.
        allow_weights_mismatch: accept other weights of the same architecture.
        audit: about this share of the heads of each layer, such as 1/1000, is computed densely as
            well, and what the mask of each keeps is in `report.audits`; outputs and counts of
            blocks stay what they are. An `Audit` brings a seed of its own.

    Raises:
        ProfileMismatchError: the profile is another model's.
        UnsupportedError: the model, or a forward inside the block, would be computed wrongly.
        UsageError: arguments that do not go together; a model that is attached already.

    Example:
        with attach(model, "profiles/smollm2-135m") as report:
            model.generate(input_ids, max_new_tokens=32)
        print(report)
    """
    if isinstance(profile, (str, os.PathLike)):
        profile = load_profile(profile)
    modules = attention_modules(model)
    if profile is None:
        layers = tuple(int(module.layer_idx) for module in modules)
    else:
        found = fingerprint_config(model.config, weights_sha256)
        require_match(profile.model, found, allow_weights=allow_weights_mismatch)
        layers = profile.model.full_layers
    chosen = resolve_point(profile, method=method, rule=rule, point=point)
    size = _block_size(profile, block_size)
    if isinstance(kernels, str):
        kernels = select_kernels(kernels, next(model.parameters()).device)
    if not isinstance(audit, Audit):
        audit = Audit(audit)
    engine = Engine(
        make_pattern=make_pattern_factory(
            chosen, profile, block_size=size, trained_length=_trained_length(model)
        ),
        point=chosen,
        kernels=kernels.kernels,
        block_size=size,
        layers=layers,
        report=PrefillReport(kernels=f"{kernels.name}: {kernels.reason}"),
        audit=audit,
    )
    handler = _EngineHandler(engine)
    with attention_session(
        model,
        handler,
        name=SESSION_NAME,
        layers=frozenset(layers),
        on_native=handler.note_native,
    ):
        yield engine.report


def resolve_point(
    profile: Profile | None,
    *,
    method: str | None = None,
    rule: Rule | None = None,
    point: OperatingPoint | str | None = None,
) -> OperatingPoint:
    """The operating point that a profile, a point and explicit choices amount to.

    point: settings, or the name of one of the profile's points; None: the profile's "default", or
    the published constants without a profile. method, where given, is a spec text (see
    `method_spec`), whose method replaces the point's and brings its own constants, and whose
    settings come on top; rule is shorthand for the rule of method share.
    """
    if rule is not None and rule not in RULES:
        raise UsageError(f"unknown rule {rule!r}", hint=", ".join(RULES))
    if isinstance(point, OperatingPoint):
        base = point
    elif profile is not None:
        base = profile.point() if point is None else profile.point(point)
    elif point is None:
        base = None
    else:
        raise UsageError(
            f"operating point {point!r} is a name, and there is no profile to look it up in",
            hint="pass a profile or an OperatingPoint",
        )
    if base is not None and rule is not None:
        base = with_method(base, base.method, rule)
    if method is None:
        return base or default_point("share", rule or "plan")
    chosen = parse_method(_with_rule(method, rule), profile_point=base)
    if rule is not None and (chosen.method, chosen.rule) != ("share", rule):
        raise UsageError(
            f"rule {rule} does not go with method {method}", hint=f"say share:{rule} for it"
        )
    return chosen


def _with_rule(method: str, rule: Rule | None) -> str:
    """`share` and `--rule release` are `share:release`."""
    name, _, rest = method.strip().partition(":")
    if rule is None or name != "share" or rest.partition(":")[0] in RULES:
        return method
    return f"{name}:{rule}:{rest}".removesuffix(":")


def _block_size(profile: Profile | None, block_size: int | None) -> int:
    if profile is None:
        return DEFAULT_BLOCK_SIZE if block_size is None else block_size
    return profile.calibration.block_size if block_size is None else block_size


class _EngineHandler:
    """The engine behind an attention session."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._native: set[tuple[int, str]] = set()

    def begin(self, call: ForwardCall) -> None:
        self._engine.begin(q_len=call.q_len, kv_len=call.kv_len)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self._engine.attend(layer=layer, q=q, k=k, v=v, scale=scale)

    def note_native(self, layer: int, reason: str) -> None:
        """Reported once, however many forwards leave the layer native."""
        if (layer, reason) not in self._native:
            self._native.add((layer, reason))
            self._engine.report.add_native(layer, reason)


def _trained_length(model: nn.Module) -> int | None:
    """The positions that the model was trained for, in tokens, as its config says."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None
