"""Identity of a model as far as its attention goes, read from a config before any weights load."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sp_runtime.errors import ProfileMismatchError, UnsupportedError

FULL = "full_attention"
SLIDING = "sliding_attention"

# The config keys that change what a model attends to, or tell two models of one shape apart.
# A list of keys to keep, and not of keys to drop, so that bookkeeping (names, dtype, quantization,
# library version, cache settings) and keys that a later release adds never change the hash.
# Layer types, the window and the rope parameters are hashed in their derived form instead.
HASHED_KEYS = (
    "attention_bias",
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "attn_scale",
    "attn_temperature_tuning",
    "clip_qkv",
    "final_logit_softcapping",
    "floor_scale",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "logits_scaling",
    "mlp_bias",
    "no_rope_layers",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_norm",
    "qk_rope_head_dim",
    "query_pre_attn_scalar",
    "use_bidirectional_attention",
    "use_qk_norm",
    "v_head_dim",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFingerprint:
    """What a profile must share with a model to be used on it.

    architecture: name of the text config's class without "Config" (equal before and after loading).
    layer_types: one of "full_attention" and "sliding_attention" a layer; a window that holds the
        model's whole context counts as full.
    rope: rope parameters as canonical JSON.
    config_sha256: hash of the attention-relevant config keys (`HASHED_KEYS` and the fields above).
    weights_sha256: identity of the weights, or None where it was not taken.
    """

    architecture: str
    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    rope: str
    max_position_embeddings: int
    config_sha256: str
    weights_sha256: str | None = None

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Numbers of the full-attention layers, ascending."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == FULL)


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintDifference:
    """One field in which two fingerprints differ, both sides printable."""

    field: str
    expected: str
    found: str


def fingerprint_config(config: Any, weights_sha256: str | None = None) -> ModelFingerprint:
    """Fingerprint of a transformers config, or of anything with the same attributes.

    A multimodal config is reduced to its text part. Raises UnsupportedError for a config that is
    not a decoder-only transformer's, naming the attribute that is missing or the layer type.
    """
    get_text_config = getattr(config, "get_text_config", None)
    text = config if get_text_config is None else get_text_config(decoder=True)
    heads = _count(text, "num_attention_heads")
    num_layers = _count(text, "num_hidden_layers")
    max_positions = _count(text, "max_position_embeddings")
    layer_types = _layer_types(text, num_layers, max_positions)
    name = type(text).__name__
    known: dict[str, Any] = {
        "architecture": name.removesuffix("Config") or name,
        "model_type": str(getattr(text, "model_type", "")),
        "num_layers": num_layers,
        "num_heads": heads,
        "num_kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or _count(text, "hidden_size") // heads,
        "layer_types": layer_types,
        "rope": _canonical_json(_rope(text)),
        "max_position_embeddings": max_positions,
    }
    hashed = {key: getattr(text, key, None) for key in HASHED_KEYS}
    if SLIDING in layer_types:
        hashed["sliding_window"] = text.sliding_window
    hashed = {key: value for key, value in hashed.items() if value is not None}
    digest = hashlib.sha256(_canonical_json({**known, "config": hashed}).encode()).hexdigest()
    return ModelFingerprint(**known, config_sha256=digest, weights_sha256=weights_sha256)


def compare(
    expected: ModelFingerprint, found: ModelFingerprint
) -> tuple[FingerprintDifference, ...]:
    """Every field that differs, in field order; weights only where both identities are known."""
    differences = []
    for field in fields(ModelFingerprint):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if field.name == "weights_sha256" and None in (ours, theirs):
            continue
        if ours != theirs:
            differences.append(
                FingerprintDifference(field=field.name, expected=_show(ours), found=_show(theirs))
            )
    return tuple(differences)


def require_match(
    expected: ModelFingerprint, found: ModelFingerprint, *, allow_weights: bool = False
) -> None:
    """Raise ProfileMismatchError, showing both fingerprints, unless `found` is the profile's model.

    allow_weights: accept other weights of the same architecture (a fine-tune of the model).
    """
    differing = {difference.field for difference in compare(expected, found)}
    if allow_weights:
        differing.discard("weights_sha256")
    if not differing:
        return
    rows = [("", "profile", "model", "")]
    for field in fields(ModelFingerprint):
        ours, theirs = _show(getattr(expected, field.name)), _show(getattr(found, field.name))
        rows.append((field.name, ours, theirs, "differs" if field.name in differing else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    table = "\n".join(
        "  "
        + "  ".join(
            [*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in rows
    )
    if differing == {"weights_sha256"}:
        hint = "allow other weights explicitly if this is a fine-tune of the profile's model"
    else:
        hint = "use the model that the profile was made for, or calibrate this one"
    raise ProfileMismatchError(
        f"the profile was made for another model ({', '.join(sorted(differing))}):\n{table}\n",
        hint=hint,
    )


def _count(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(
            f"the config has {name} = {value!r}, expected a positive integer",
            hint="only decoder-only transformer models are supported",
        )
    return value


def _layer_types(config: Any, num_layers: int, max_positions: int) -> tuple[str, ...]:
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        types = [_derived_layer_type(config, layer, window) for layer in range(num_layers)]
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown or len(types) != num_layers:
        found = ", ".join(unknown) if unknown else f"{len(types)} types for {num_layers} layers"
        raise UnsupportedError(
            f"layer types of this model are not supported: {found}",
            hint=f"layers must be {FULL} or {SLIDING}",
        )
    if window is not None and window >= max_positions:
        return (FULL,) * num_layers  # no position is ever out of the window's reach
    return tuple(types)


def _derived_layer_type(config: Any, layer: int, window: int | None) -> str:
    """Layer type of a config that lists none: as the model families of such configs define it."""
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return FULL
    pattern = getattr(config, "sliding_window_pattern", None)
    if pattern:
        return SLIDING if (layer + 1) % pattern else FULL
    return SLIDING if layer >= (getattr(config, "max_window_layers", None) or 0) else FULL


def _rope(config: Any) -> dict[str, Any]:
    """Rope parameters in one form, whether the config keeps them in one mapping or in two."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        parameters = dict(getattr(config, "rope_scaling", None) or {})
        if getattr(config, "rope_theta", None) is not None:
            parameters["rope_theta"] = config.rope_theta
        if getattr(config, "partial_rotary_factor", None) is not None:
            parameters["partial_rotary_factor"] = config.partial_rotary_factor
    nested = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
    if nested:  # one set of parameters a layer type
        return {key: _normal_rope(value) for key, value in nested.items()}
    return _normal_rope(parameters)


def _normal_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in parameters.items() if value is not None and key != "type"}
    kept.setdefault("rope_type", parameters.get("type") or "default")
    if kept.get("partial_rotary_factor") == 1:  # some releases write this default, some do not
        del kept["partial_rotary_factor"]
    return kept


def _canonical_json(value: Any) -> str:
    return json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        # 7 digits: a model file in float32 (GGUF) gives the same fingerprint as its JSON config.
        short = float(f"{value:.7g}")
        return int(short) if short.is_integer() else short
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):  # layer types, as runs
        runs: list[tuple[object, int]] = []
        for item in value:
            same = runs and runs[-1][0] == item
            runs = [*runs[:-1], (item, runs[-1][1] + 1)] if same else [*runs, (item, 1)]
        return ", ".join(f"{count} x {item}" for item, count in runs)
    return str(value)
