"""One model's attention handed to a handler for the length of a `with` block.

transformers looks attention and mask functions up by name in class-wide tables, and passes neither
the model nor the cache to them. So nothing is kept in those tables: our mask function returns a
`LayerMask` that says what the layer is meant to attend to, transformers carries it to the attention
function, and the attention function finds its session on the attention module. A layer reaches the
handler only if its own mask proves it to be plain causal attention over every key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.integrations.transformers_mask import ForwardCall, LayerMask, sp_mask
from sp_runtime.integrations.transformers_refusals import refuse_call, refuse_model

SESSION_ATTRIBUTE = "_sp_session"


class AttentionHandler(Protocol):
    """Computes the full-attention layers of one model."""

    def begin(self, call: ForwardCall) -> None:
        """A new forward starts; called once, before its first layer."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of one layer, layers in order: [B, H, Nq, D] from q of the same shape.

        k, v [B, Hkv, Nk, D] after rotary embedding and cache update; query i stands at position
        q_offset + i. `scale` multiplies q k^T.
        """
        ...


class AttentionSession:
    """State of one attached model: which layer comes next, and who computes it."""

    def __init__(
        self,
        handler: AttentionHandler,
        *,
        layers: frozenset[int] | None,
        on_native: Callable[[int, str], None] | None,
    ) -> None:
        self._handler = handler
        self._layers = layers
        self._on_native = on_native
        self._call: ForwardCall | None = None
        self._last_layer = -1

    def run(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: object,
        scaling: float | None,
        options: dict[str, Any],
    ) -> Tensor:
        """One layer's attention, [B, Nq, H, D] contiguous; raises UnsupportedError by name."""
        if not isinstance(mask, LayerMask):
            raise _foreign_mask(mask)
        refuse_call(module, q, k, v, mask, options)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self._enter(layer, mask.call)
        reason = self._native_reason(layer, mask)
        if reason is not None:
            if self._on_native is not None:
                self._on_native(layer, reason)
            return run_native(module, q, k, v, mask, scaling, options)
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        output = self._handler.attend(layer, q, k, v, scale)
        return output.transpose(1, 2).contiguous()

    def _enter(self, layer: int, call: ForwardCall) -> None:
        """Layers run in order, so a layer that is not after the last one starts a new forward."""
        if layer <= self._last_layer or self._call is None:
            self._call = call
            self._handler.begin(call)
        elif call != self._call:
            raise UnsupportedError(
                f"layer {layer} sees another sequence than the layers before it: {call} after "
                f"{self._call}",
                hint="use one cache, filled by whole forwards of this model",
            )
        self._last_layer = layer

    def _native_reason(self, layer: int, mask: LayerMask) -> str | None:
        if not mask.is_full:
            return f"sliding window of {mask.window} tokens"
        if self._layers is not None and layer not in self._layers:
            return "not a full-attention layer of the profile"
        return None


@contextmanager
def attention_session(
    model: nn.Module,
    handler: AttentionHandler,
    *,
    name: str,
    layers: frozenset[int] | None = None,
    on_native: Callable[[int, str], None] | None = None,
) -> Iterator[None]:
    """Route the attention of a transformers model to `handler`; the model is restored on leaving.

    name: the attention implementation's name, [a-z][a-z0-9_]*; serves any number of models.
    layers: layers the handler takes where they are full attention; None: every one that is.
    on_native: told (layer, reason) whenever a layer is left to transformers' own SDPA.

    Raises UnsupportedError listing everything about the model that the handler would compute
    wrongly, and UsageError where a session is open on this model already; both leave the model
    untouched. Inside, a forward that is refused raises UnsupportedError.
    """
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
        raise UsageError(
            f"{name!r} is not a session name", hint="use lower-case letters and underscores"
        )
    modules = attention_modules(model)
    owner = _owner(model)
    _refuse_nested(modules, owner)
    refuse_model(model, owner.config, modules)
    _register(name)
    session = AttentionSession(handler, layers=layers, on_native=on_native)
    previous = owner.config._attn_implementation
    try:
        for module in modules:
            setattr(module, SESSION_ATTRIBUTE, session)
        owner.set_attn_implementation(name)
        if any(module.config._attn_implementation != name for module in modules):
            raise UnsupportedError(
                f"{type(owner).__name__} does not take another attention implementation",
                hint="its attention must go through transformers' AttentionInterface",
            )
        yield
    finally:
        for module in modules:
            module.__dict__.pop(SESSION_ATTRIBUTE, None)
        owner.set_attn_implementation(previous)


def attention_modules(model: nn.Module) -> list[Any]:
    """The decoder's attention modules, in layer order."""
    config = _text_config(model)
    modules = [
        module
        for module in model.modules()
        if getattr(module, "config", None) is config
        and isinstance(getattr(module, "layer_idx", None), int)
        and "Attention" in type(module).__name__
    ]
    return sorted(modules, key=lambda module: int(module.layer_idx))


def sp_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, Nq, D] -> [B, Nq, H, D]."""
    session = module.__dict__.get(SESSION_ATTRIBUTE)
    if session is None:  # a model that shares its config object with an attached one
        output = run_native(module, query, key, value, attention_mask, scaling, options)
    else:
        output = session.run(module, query, key, value, attention_mask, scaling, options)
    return output, None


def run_native(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: object,
    scaling: float | None,
    options: dict[str, Any],
) -> Tensor:
    """transformers' own SDPA attention, with the mask it would have got: [B, Nq, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    native = mask.native if isinstance(mask, LayerMask) else mask
    output, _ = sdpa_attention_forward(module, q, k, v, native, scaling=scaling, **options)
    return output


def _register(name: str) -> None:
    """Enter our functions into the class-wide tables; the same ones whoever comes first."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    if AttentionInterface().get(name, sp_attention) is not sp_attention:
        raise UsageError(f"attention implementation {name!r} exists", hint="use another name")
    AttentionInterface.register(name, sp_attention)
    AttentionMaskInterface.register(name, sp_mask)


def _refuse_nested(modules: list[Any], owner: Any) -> None:
    if any(SESSION_ATTRIBUTE in module.__dict__ for module in modules):
        raise UsageError(
            "this model is already attached", hint="leave the first `with` block before the next"
        )
    from transformers import AttentionInterface

    current = owner.config._attn_implementation
    if current is not None and AttentionInterface().get(current) is sp_attention:
        raise UsageError(
            "another model that shares this model's config object is attached",
            hint="build each model from its own config (copy.deepcopy)",
        )


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UsageError(
            f"{type(model).__name__} is not a transformers model",
            hint="pass a PreTrainedModel, such as AutoModelForCausalLM gives",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"encoder-decoder: {type(model).__name__} is not a decoder-only model",
            hint="only causal decoder self-attention is supported",
        )
    return config.get_text_config(decoder=True)


def _owner(model: nn.Module) -> Any:
    """The outermost module that owns the decoder's config: set_attn_implementation is called on it,
    so that a multimodal model's other towers keep theirs."""
    config = _text_config(model)
    for module in model.modules():
        if getattr(module, "config", None) is config and hasattr(module, "set_attn_implementation"):
            return module
    raise UsageError(f"{type(model).__name__} holds no decoder of its text config")


def _foreign_mask(mask: object) -> UnsupportedError:
    if mask is None:
        return UnsupportedError(
            "the model asks for attention without a mask (not causal, or cross attention)",
            hint="only causal decoder self-attention is supported",
        )
    return UnsupportedError(
        "a custom attention mask was passed to the model",
        hint="leave attention_mask out, or pass the 2D one without zeros",
    )
