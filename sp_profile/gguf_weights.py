"""Weights of GGUF files of the llama family, dequantized straight into a transformers model.

transformers' own loader parses the vocabulary once more and builds the table of tensor names once
a submodule, which takes most of the time that a small model needs to load. Other architectures
take that loader.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sp_profile.gguf_file import GgufHeader, GgufTensor
from sp_runtime.errors import CorruptArtefactError

ARCHITECTURES = ("llama",)


# ggml's names inside a block, and transformers'.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def is_covered(header: GgufHeader) -> bool:
    """Whether `load_llama` knows every tensor of the file (a mixture of experts is not covered)."""
    return header.architecture in ARCHITECTURES and all(
        _transformers_name(tensor.name) is not None for tensor in header.tensors
    )


def load_llama(header: GgufHeader, config: Any, dtype: torch.dtype) -> Any:
    """A causal language model of `config` on the CPU, with the file's weights in `dtype`.

    Raises CorruptArtefactError where tensors are missing or of another shape.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    state = {name: weight.to(dtype) for name, weight in _weights(header, config)}
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation="sdpa",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are reported here
    )
    require_all_loaded(report, header.path, ("missing_keys", "mismatched_keys", "unexpected_keys"))
    return model


def require_all_loaded(report: Any, path: Path, problems: tuple[str, ...]) -> None:
    """Raise CorruptArtefactError for a transformers loading report that names a parameter."""
    for problem in problems:
        if names := sorted(str(name) for name in report[problem]):
            raise CorruptArtefactError(
                f"{path}: weights do not fit the config: {problem.replace('_', ' ')} "
                f"{names[0]} ({len(names)} in all)"
            )


def _weights(header: GgufHeader, config: Any) -> Iterator[tuple[str, Tensor]]:
    """(transformers' name, float32 weight) of every tensor."""
    data = np.memmap(header.path, dtype=np.uint8, mode="r")
    for tensor in header.tensors:
        weight = _dequantized(data, tensor)
        if ".attn_q." in tensor.name:
            weight = _pairs_to_halves(weight, config.num_attention_heads)
        elif ".attn_k." in tensor.name:
            weight = _pairs_to_halves(weight, config.num_key_value_heads)
        name = _transformers_name(tensor.name)
        assert name is not None  # is_covered
        yield name, torch.from_numpy(weight)


def _dequantized(data: NDArray[np.uint8], tensor: GgufTensor) -> NDArray[np.float32]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.kind)
    block, size = GGML_QUANT_SIZES[kind]
    row = tensor.shape[-1] // block * size
    raw = np.asarray(data[tensor.offset : tensor.offset + row * math.prod(tensor.shape[:-1])])
    if kind == GGMLQuantizationType.F32:
        return raw.view(np.float32).reshape(tensor.shape).copy()
    if kind == GGMLQuantizationType.F16:
        return raw.view(np.float16).reshape(tensor.shape).astype(np.float32)
    weight = dequantize(raw.reshape(*tensor.shape[:-1], row), kind)
    return np.ascontiguousarray(weight, dtype=np.float32)


def _pairs_to_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder each head's rows: ggml rotates neighbouring rows, transformers the two halves."""
    rows = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def _transformers_name(name: str) -> str | None:
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        known = _LAYER_NAMES.get(part)
        return known and f"model.layers.{layer}.{known}.{suffix}"
    known = _NAMES.get(stem)
    return known and f"{known}.{suffix}"
