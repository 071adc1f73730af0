"""What the runtime would compute wrongly on a transformers model, refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sp_runtime.errors import UnsupportedError
from sp_runtime.integrations.transformers_mask import LayerMask


def refuse_model(model: nn.Module, config: Any, modules: list[Any]) -> None:
    """Raise one UnsupportedError with every reason that is known before a forward.

    config: the decoder's config; modules: its attention modules.
    """
    reasons = model_reasons(model, config, modules)
    if reasons:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be attached:\n"
            + "\n".join(f"  - {reason}" for reason in reasons),
            hint="run this model without sparse prefill",
        )


def model_reasons(model: nn.Module, config: Any, modules: list[Any]) -> tuple[str, ...]:
    """Every reason why a model cannot be attached, each beginning with the name of its cause."""
    reasons = []
    layers = sorted({int(module.layer_idx) for module in modules})
    if layers != list(range(config.num_hidden_layers)):
        reasons.append(
            f"layers: {len(layers)} of {config.num_hidden_layers} layers have an attention module "
            "that goes through AttentionInterface"
        )
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None:
        reasons.append(f"softcap: attention logits are soft-capped at {softcap}")
    if any(isinstance(getattr(module, "sinks", None), Tensor) for module in modules):
        reasons.append("sinks: attention has learned sink logits")
    if any(getattr(module, "is_causal", True) is False for module in modules):
        reasons.append("not causal: attention is bidirectional")
    dropout = getattr(config, "attention_dropout", 0.0) or 0.0
    if dropout > 0 and any(module.training for module in modules):
        reasons.append(f"dropout: attention_dropout is {dropout} in train mode; call model.eval()")
    cache = getattr(getattr(model, "generation_config", None), "cache_implementation", None)
    if cache is not None and cache.endswith("static"):  # "hybrid" means dynamic since v5
        reasons.append(f"static cache: generation_config asks for cache_implementation={cache!r}")
    if getattr(config, "output_attentions", False):
        reasons.append("output_attentions: no attention weights are ever stored")
    return tuple(reasons)


def refuse_call(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: LayerMask,
    options: dict[str, Any],
) -> None:
    """Raise UnsupportedError if this layer's call holds anything the handler would ignore."""
    _refuse_options(module, options)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UnsupportedError(
            "requires_grad: sparse prefill has no backward pass",
            hint="run the forward under torch.no_grad() or torch.inference_mode()",
        )
    if mask.kv_offset + mask.kv_len != mask.q_offset + mask.q_len or (
        mask.window is None and mask.kv_offset != 0
    ):
        raise UnsupportedError(
            f"static cache: keys [{mask.kv_offset}, {mask.kv_offset + mask.kv_len}) do not end at "
            f"the last query, {mask.q_offset + mask.q_len}",
            hint="use a DynamicCache, and an attention mask as long as the input",
        )
    if mask.padded:
        raise UnsupportedError(
            "padding: the attention mask hides some keys",
            hint="run prompts of different lengths one at a time",
        )
    if not mask.plain and mask.is_full:
        raise UnsupportedError(
            "custom mask: packed sequences, bidirectional blocks or another overlay on causality",
            hint="run one sequence a batch row, with consecutive position_ids",
        )
    if q.shape[2] != mask.q_len or k.shape[2] != mask.kv_len:
        raise UnsupportedError(
            f"cross attention: {q.shape[2]} queries on {k.shape[2]} keys under a mask of "
            f"{mask.q_len} by {mask.kv_len}",
            hint="only causal decoder self-attention is supported",
        )
    if v.shape[-1] != q.shape[-1]:
        raise UnsupportedError(
            f"head size: values have {v.shape[-1]} and queries {q.shape[-1]} features a head",
            hint="latent attention (MLA) is not supported",
        )


def _refuse_options(module: nn.Module, options: dict[str, Any]) -> None:
    """Refuse what transformers passes by keyword; keywords without a meaning for SDPA pass."""
    found = {
        "softcap": options.get("softcap") is not None,
        "sinks": options.get("s_aux") is not None,
        "dropout": (options.get("dropout") or 0.0) > 0,
        "not causal": (options.get("is_causal") is False)
        or getattr(module, "is_causal", True) is False,
        "output_attentions": bool(options.get("output_attentions")),
        "position bias": options.get("position_bias") is not None,
        "paged cache": options.get("cache") is not None,
    }
    named = [name for name, present in found.items() if present]
    if named:
        raise UnsupportedError(
            f"{', '.join(named)}: not supported in an attached forward",
            hint="run this call outside the `with` block",
        )
